"""What 100,000,000 tasks and 10,000 agents that send a line each second would need, in arithmetic.

Each line of the table multiplies a measured figure: it is an extrapolation.
"""

from collections.abc import Iterator, Mapping

TASKS = 100_000_000
AGENTS = 10_000
# How long a task runs, for the number of tasks a day.
TASK_SECONDS = 600
DAY = 86_400
# How long a dropped log waits for its readers.
WAIT_SECONDS = 60
# Connections that a process keeps open: its threads and eight more, to read and to write.
CONNECTIONS = 2 * (16 + 8)
HEAD = ("100,000,000 tasks, 10,000 agents that each send a line per second", "arithmetic", "result")

# The names of the figures that it multiplies.
TASK_BYTES = "size on disk of a task with 5 lines"
LINE_BYTES = "size on disk of a line that was sent alone"
WAL = "write-ahead log per append"
FIRST_WAL = "write-ahead log of the first append after a checkpoint"
GROW = "append a line to one of 64 logs"
ALONE = "appends by PostgreSQL alone"
COUNT = "count of all tasks, for `/metrics`"
BACKUP = "`db backup`, or `pg_dump -Fc`"
RATE = "tasks removed by retention, without other writers"
LOG_SECONDS = "removal of a log of 1,000,000 single lines, including a wait of 60 s"


def lines(
    figures: Mapping[str, float], index_bytes: float, log_lines: int, size: int
) -> Iterator[tuple[str, str, str]]:
    """The lines of the table, from the figures of PostgreSQL with `size` tasks, by name.

    `index_bytes` is the size of a task in the indexes; `log_lines` counts the removed log.
    """

    def most(name: str) -> float:
        return max(figure for key, figure in figures.items() if key.startswith(name))

    task_bytes, line_bytes = figures[TASK_BYTES], figures[LINE_BYTES]
    yield _product("tasks on disk, with five lines each", TASKS, "tasks", task_bytes, "bytes")
    yield _product("indexes of tasks on disk", TASKS, "tasks", index_bytes, "bytes")
    yield _product(
        "lines of one day on disk, each appended separately",
        AGENTS * DAY,
        "lines",
        line_bytes,
        "bytes",
    )
    yield _product("write-ahead log per second", AGENTS, "appends", figures[WAL], "bytes")
    yield _product(
        "write-ahead log per second, directly after a checkpoint",
        AGENTS, "appends", figures[FIRST_WAL], "bytes",
    )  # fmt: skip
    processes = AGENTS / most(GROW)
    yield _quotient("fully busy processes of the service", AGENTS, most(GROW), "processes")
    yield _quotient("CPUs of PostgreSQL", AGENTS, most(ALONE), "CPUs")
    yield (
        "connections for twice as many processes, without PgBouncer",
        f"2 × {processes:.1f} × {CONNECTIONS}",
        f"{2 * processes * CONNECTIONS:,.0f}",
    )
    ended = AGENTS / TASK_SECONDS
    yield (
        "tasks that end each second, if a task takes ten minutes",
        f"{AGENTS:,} ÷ {TASK_SECONDS} s",
        f"{ended:.1f}, or {TASKS:,} in {TASKS / ended / DAY:.0f} days",
    )
    yield (
        "share of time spent on removing tasks",
        f"{ended:.1f} ÷ {figures[RATE]:,.0f} tasks/s",
        f"{ended / figures[RATE]:.1%}",
    )
    seconds = figures[LOG_SECONDS]
    swept = log_lines / max(seconds - WAIT_SECONDS, 1)
    yield (
        "share of time spent on removing lines",
        f"{AGENTS:,} ÷ ({log_lines:,} lines ÷ ({seconds:.0f} - {WAIT_SECONDS}) s)",
        f"{AGENTS / swept:.0%}",
    )
    times = TASKS / size
    yield (
        "`pg_dump` of all tasks",
        f"{times:,.0f} × {figures[BACKUP]:.1f} s",
        f"{times * figures[BACKUP] / 3_600:.1f} h",
    )
    yield (
        COUNT,
        f"{times:,.0f} × {figures[COUNT]:,.0f} ms",
        f"{times * figures[COUNT] / 1_000:.1f} s",
    )


def _product(name: str, count: float, what: str, figure: float, unit: str) -> tuple[str, str, str]:
    return name, f"{count:,.0f} {what} × {figure:,.0f} {unit}", size_text(count * figure)


def _quotient(name: str, count: float, figure: float, unit: str) -> tuple[str, str, str]:
    return name, f"{count:,.0f}/s ÷ {figure:,.0f}/s", f"{count / figure:.1f} {unit}"


def size_text(bytes_: float) -> str:
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if bytes_ >= 10**power:
            return f"{bytes_ / 10**power:.1f} {unit}"
    return f"{bytes_:,.0f} bytes"
