"""What 100,000,000 tasks and 10,000 agents that send a line each second would need, in arithmetic.

Each line of the table multiplies a measured figure: it is an extrapolation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

TASKS = 100_000_000
AGENTS = 10_000
# How long a task runs, for the number of tasks a day.
TASK_SECONDS = 600
DAY = 86_400
# How long a dropped log waits for its readers.
WAIT_SECONDS = 60
# Connections that a process keeps open: its threads and eight more, to read and to write.
CONNECTIONS = 2 * (16 + 8)
HEAD = ("100,000,000 tasks, 10,000 agents that send a line a second", "arithmetic", "result")


@dataclass(frozen=True)
class Measured:
    """The figures of PostgreSQL that the plan multiplies, in the units of their table."""

    task_bytes: float
    index_bytes: float
    line_bytes: float
    append_wal: float
    first_append_wal: float
    node_appends: float
    database_appends: float
    removed_tasks: float
    log_lines: float
    log_seconds: float
    backup_seconds: float
    count_wait: float
    # With how many tasks the last two were measured.
    size: int


def lines(measured: Measured) -> Iterator[tuple[str, str, str]]:
    m = measured
    yield _product("tasks on disk, with five lines each", TASKS, "tasks", m.task_bytes, "bytes")
    yield _product("of these, indexes of tasks", TASKS, "tasks", m.index_bytes, "bytes")
    a_day = AGENTS * DAY
    yield _product("lines a day, each sent alone", a_day, "lines", m.line_bytes, "bytes")
    yield _product("write-ahead log a second", AGENTS, "appends", m.append_wal, "bytes")
    yield _product(
        "the same while each append changes pages for the first time since a checkpoint",
        AGENTS, "appends", m.first_append_wal, "bytes",
    )  # fmt: skip
    processes = AGENTS / m.node_appends
    yield _quotient("processes of the service, fully busy", AGENTS, m.node_appends, "processes")
    yield _quotient("processors of PostgreSQL", AGENTS, m.database_appends, "processors")
    yield (
        "connections of twice these processes, without PgBouncer",
        f"2 × {processes:.1f} × {CONNECTIONS}",
        f"{2 * processes * CONNECTIONS:,.0f}",
    )
    ended = AGENTS / TASK_SECONDS
    yield (
        "tasks that end a second, of ten minutes each",
        f"{AGENTS:,} ÷ {TASK_SECONDS} s",
        f"{ended:.1f}, or {TASKS:,} in {TASKS / ended / DAY:.0f} days",
    )
    yield (
        "share of the time that their removal takes",
        f"{ended:.1f} ÷ {m.removed_tasks:,.0f} tasks/s",
        f"{ended / m.removed_tasks:.1%}",
    )
    swept = m.log_lines / max(m.log_seconds - WAIT_SECONDS, 1)
    yield (
        "share of the time that the removal of single lines takes",
        f"{AGENTS:,} ÷ ({m.log_lines:,.0f} lines ÷ ({m.log_seconds:.0f} - {WAIT_SECONDS}) s)",
        f"{AGENTS / swept:.0%}",
    )
    times = TASKS / m.size
    yield (
        "`pg_dump` of all tasks",
        f"{times:,.0f} × {m.backup_seconds:.1f} s",
        f"{times * m.backup_seconds / 3_600:.1f} h",
    )
    yield (
        "count of all tasks, as `/metrics` has it",
        f"{times:,.0f} × {m.count_wait:,.0f} ms",
        f"{times * m.count_wait / 1_000:.1f} s",
    )


def _product(name: str, count: float, what: str, figure: float, unit: str) -> tuple[str, str, str]:
    return name, f"{count:,.0f} {what} × {figure:,.0f} {unit}", size(count * figure)


def _quotient(name: str, count: float, figure: float, unit: str) -> tuple[str, str, str]:
    return name, f"{count:,.0f}/s ÷ {figure:,.0f}/s", f"{count / figure:.1f} {unit}"


def size(bytes_: float) -> str:
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if bytes_ >= 10**power:
            return f"{bytes_ / 10**power:.1f} {unit}"
    return f"{bytes_:,.0f} bytes"
