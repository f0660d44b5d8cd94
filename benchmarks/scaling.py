"""Measures SQLite and PostgreSQL with 1,000 to 1,000,000 tasks and two logs of 1,000,000 lines."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks import plan, removal
from benchmarks.command import UNMEASURABLE, measuring, parser, reason, show
from benchmarks.contents import Person
from benchmarks.growth import (
    AGENTS,
    AGENTS_PAGE,
    APPEND,
    ATTENTION,
    GET,
    LIST_PAGE,
    PAGE,
    TAIL,
    grow,
    long_log,
    make_small,
    requests_of,
    some_ids,
)
from benchmarks.load import load, load_once
from benchmarks.removal import command
from benchmarks.sections import streamed
from benchmarks.servers import ours
from benchmarks.stores import (
    LINE,
    POSTGRESQL,
    SQLITE,
    Store,
    appends_alone,
    copy_to_postgresql,
    durable_postgresql,
)
from benchmarks.table import Goal, Row, Run, figure_text, interleaved, markdown
from tests.support.databases import Databases
from tests.support.receiver import Receiver

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
KINDS = (SQLITE, POSTGRESQL)
SIZES = (1_000, 100_000, 1_000_000)
LINES = 1_000_000
# The one whose whole list is read.
LISTED = 100_000
# How many tasks are made to be claimed, and to be reported.
SAMPLE = 200
REMOVED = 20_000
# Tasks that grow beside one another, as those of several agents.
GROWING = 64
# Agents that send lines to PostgreSQL without a service.
SENDING = 10_000
# How many lines they send for each second of a measurement.
APPENDED = 2_500
CLIENTS = (1, 16, 64)
START_BODY = b'{"agentId":"bench"}'

START = "start a task"
CLAIM = "claim a task"
REPORT = "report an end; its webhook is stored, and posted at once"
GROW = "append a line to one of 64 logs"
LIST = "whole list of 100,000 tasks"
WAITS = (GET, PAGE, START, CLAIM, APPEND, REPORT, TAIL, ATTENTION, LIST_PAGE, AGENTS_PAGE, LIST)

TASK_BYTES = "a task with its 5 lines, on disk"
JOINED_BYTES = "a line that was sent with thousands of others, on disk"
LINE_BYTES = "a line that was sent alone, on disk"
WAL = "write-ahead log of an append"
FIRST_WAL = f"{WAL}, if it is the first to change its pages since a checkpoint"
ALONE = "appends by PostgreSQL alone"
COUNT = "count of all tasks, as `/metrics` has it"
BACKUP = "`db backup`, or `pg_dump -Fc`"
RATE = "tasks removed by retention, without other writers"
LOG_SECONDS = "removal of a log of 1,000,000 lines that were sent alone, with the minute before it"
WRITER_WAIT = "longest wait of a writer"
DISK_WAIT = "longest wait of a plain file on the same disk"
TASKS_REMOVED = "while tasks are removed"
LOG_REMOVED = "while this log is removed"
GOALS = {
    goal.path: goal
    for goal in (
        Goal(RATE, "", "tasks/s", 1_000, is_absolute=True),
        Goal(f"{WRITER_WAIT} {TASKS_REMOVED}", "", "ms", 250, True, True),
        Goal(LOG_SECONDS, "", "s", 120, True, True),
        Goal(f"{WRITER_WAIT} {LOG_REMOVED}", "", "ms", 250, True, True),
    )
}


@dataclass
class Figures:
    """What was measured, by the kind of the database.

    `waits` are milliseconds by path and by number of tasks. `others` are figures with the most
    tasks, each with its unit, and `sizes` the bytes of a task in each table and index.
    """

    waits: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    others: dict[str, dict[str, tuple[float, str]]] = field(default_factory=dict)
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    # Of the long logs.
    lines: int = 0

    def add(self, kind: str, name: str, figure: float, unit: str) -> None:
        self.others.setdefault(name, {})[kind] = figure, unit


@dataclass
class Place:
    """A running service with tasks of a reader, and two long logs of a writer."""

    run: Run
    figures: Figures
    store: Store
    reader: Person
    writer: Person
    size: int
    requests: dict[str, list[bytes]]
    # The task whose log has lines that were sent alone.
    long_task: str

    def add(self, name: str, figure: float, unit: str) -> None:
        self.figures.add(self.store.kind, name, figure, unit)

    def add_waits(self, when: str, waits: removal.Waits) -> None:
        self.add(f"{WRITER_WAIT} {when}", waits.writer, "ms")
        self.add(f"{DISK_WAIT} {when}", waits.disk, "ms")

    def p50(self, path: str) -> float:
        port = self.reader.server.port
        return load(port, self.requests[path], self.run.seconds / 4, connections=1).p50


def scaled(number: int, run: Run) -> int:
    return max(int(number * run.scale), 4 * AGENTS)


def measured(run: Run, kinds: Sequence[str]) -> Figures:
    figures, folder = Figures(lines=scaled(LINES, run)), run.subfolder("scaling")
    keys = make_small(folder / "small")
    databases = Databases(folder, folder)
    for number, unscaled in enumerate(SIZES):
        size = scaled(unscaled, run)
        data = folder / str(number)
        _note(f"making {size:,} tasks")
        database = grow(folder / "small", data, size)
        ids = some_ids(database, size)
        # PostgreSQL first: its rows are those of the file, which the service will change.
        for kind in sorted(kinds):
            try:
                store = _store(kind, databases, database)
                _note(f"measuring {size:,} tasks on {kind}")
                with _place(run, figures, store, data, keys, ids, size) as place:
                    _measure(place, unscaled, databases)
            except UNMEASURABLE as error:
                figures.left_out[kind] = reason(error)
    return figures


def _measure(place: Place, unscaled: int, databases: Databases) -> None:
    """Measure what is measured of this number of tasks, before it is scaled."""
    _measure_waits(place)
    if unscaled == LISTED:
        _measure_list(place)
    if unscaled == SIZES[-1]:
        _measure_rates(place, databases)
        _measure_count(place)
        _measure_backup(place, databases)
        _measure_removal(place)


def _note(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _store(kind: str, databases: Databases, database: Path) -> Store:
    """The same rows as in this SQLite file, in the file or on PostgreSQL."""
    if kind == SQLITE:
        return Store(f"sqlite:///{database}")
    url = durable_postgresql(databases)
    copy_to_postgresql(database, url)
    return Store(url)


@contextmanager
def _place(
    run: Run, figures: Figures, store: Store, data: Path,
    keys: tuple[str, str], ids: Sequence[str], size: int,
) -> Iterator[Place]:  # fmt: skip
    if size == scaled(SIZES[-1], run):
        _add_sizes(figures, store, size)
    with ours(data, DATABASE_URL=store.url, CALLBACK_ALLOWED="loopback") as server:
        reader, writer = (Person(server, key) for key in keys)
        lines = scaled(LINES, run)
        together, alone = _long_logs(figures, store, writer, lines)
        store.settle()
        requests = requests_of(reader, writer, ids, lines, together)
        path = f"/task/{alone}/logs?after={lines - 100}&limit=100"
        requests[TAIL] = [writer.request("GET", path)]
        requests[START] = [writer.request("POST", "/task", START_BODY)]
        yield Place(run, figures, store, reader, writer, size, requests, alone)


def _long_logs(figures: Figures, store: Store, writer: Person, lines: int) -> tuple[str, str]:
    """The path of a log whose lines were sent together, and the task of one with single lines."""
    before = store.bytes()
    together = long_log(writer, lines)
    between = store.bytes()
    alone = str(writer.start([LINE])["id"])
    store.add_lines(alone, lines)
    figures.add(store.kind, JOINED_BYTES, (between - before) / lines, "bytes")
    figures.add(store.kind, LINE_BYTES, (store.bytes() - between) / lines, "bytes")
    return together, alone


def _add_sizes(figures: Figures, store: Store, size: int) -> None:
    """The sizes of tables and indexes, before anything but tasks is in them."""
    figures.add(store.kind, TASK_BYTES, store.bytes() / size, "bytes")
    for name, bytes_ in store.sizes().items():
        figures.sizes.setdefault(name, {})[store.kind] = bytes_ / size


def _measure_waits(place: Place) -> None:
    paths = [path for path in WAITS if path in place.requests]
    figures = interleaved(place.run.rounds, {path: partial(place.p50, path) for path in paths})
    for path, samples in figures.items():
        _add_wait(place, path, statistics.median(samples))
    _add_wait(place, CLAIM, _claims(place))
    _add_wait(place, REPORT, _reports(place))


def _add_wait(place: Place, path: str, milliseconds: float) -> None:
    of_path = place.figures.waits.setdefault(path, {})
    of_path.setdefault(place.store.kind, {})[place.size] = milliseconds


def _claims(place: Place) -> float:
    writer, count = place.writer, scaled(SAMPLE, place.run)
    port = writer.server.port
    load_once(port, [writer.request("POST", "/task", START_BODY)] * count)
    return load_once(port, [writer.request("POST", "/agent/bench/claim")] * count).p50


def _reports(place: Place) -> float:
    writer = place.writer
    with Receiver() as receiver:
        tasks = [writer.start([], callback=receiver.url) for _ in range(scaled(SAMPLE, place.run))]
        body = b'{"status":"complete","output":{"pages":34}}'
        reports = [writer.request("PATCH", f"/task/{task['id']}", body) for task in tasks]
        return load_once(writer.server.port, reports).p50


def _measure_list(place: Place) -> None:
    whole = place.reader.request("GET", "/task", Connection="close")
    times = [streamed(place.reader.server.port, whole)[0] for _ in range(place.run.rounds)]
    _add_wait(place, LIST, statistics.median(times) * 1000)


def _measure_rates(place: Place, databases: Databases) -> None:
    writer, store = place.writer, place.store
    paths = [f"/task/{writer.start([])['id']}/logs" for _ in range(GROWING)]
    body = b'{"logs":["a line of a task that grows"]}'
    place.requests[GROW] = [writer.request("POST", path, body) for path in paths]
    for path in (GET, START, GROW):
        for clients in CLIENTS:
            took = load(writer.server.port, place.requests[path], place.run.seconds, clients)
            place.add(f"{path}, {_clients(clients)}", took.rate, "requests/s")
    if store.kind == POSTGRESQL:
        pgbench = databases.programs / "pgbench"
        agents = min(SENDING, place.size)
        for clients in CLIENTS:
            count = int(APPENDED * place.run.seconds)
            rate = appends_alone(pgbench, store.url, agents, clients, count)
            place.add(f"{ALONE}, {_clients(clients)}", rate, "commits/s")
        first, later = store.wal_of_appends(min(scaled(SAMPLE, place.run), agents))
        place.add(WAL, later, "bytes")
        place.add(FIRST_WAL, first, "bytes")


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _measure_count(place: Place) -> None:
    times = []
    for _ in range(place.run.rounds):
        began = time.perf_counter()
        place.store.number("SELECT count(*) FROM tasks")
        times.append(time.perf_counter() - began)
    place.add(COUNT, statistics.median(times) * 1000, "ms")


def _measure_backup(place: Place, databases: Databases) -> None:
    file = place.run.folder / f"backup-{place.store.kind}"

    def back_up() -> float:
        began = time.perf_counter()
        if place.store.kind == SQLITE:
            command(place.reader.server, "db", "backup", str(file))
        else:
            dump = [str(databases.programs / "pg_dump"), "-Fc", "-f", str(file), place.store.url]
            subprocess.run(dump, check=True, capture_output=True)
        return time.perf_counter() - began

    place.add(BACKUP, back_up(), "s")
    file.unlink()
    waits, _ = removal.with_writer(place.writer, back_up)
    place.add_waits("while a backup is made", waits)
    place.add("size of this backup", file.stat().st_size / 1e6, "MB")
    file.unlink()


def _measure_removal(place: Place) -> None:
    count = min(scaled(REMOVED, place.run), place.size // 10)
    removed = removal.measured(
        place.reader.server, place.store, place.writer, count, place.long_task,
        is_quick=place.run.scale < 1,
    )  # fmt: skip
    place.add_waits("while nothing is removed", removed.quiet)
    place.add(RATE, removed.rate, "tasks/s")
    place.add_waits(TASKS_REMOVED, removed.tasks)
    place.add(LOG_SECONDS, removed.log_seconds, "s")
    place.add_waits(LOG_REMOVED, removed.log)


def _plan(figures: Figures, size: int) -> plan.Measured:
    def most(path: str) -> float:
        return max(others[f"{path}, {_clients(clients)}"] for clients in CLIENTS)

    others = {
        name: figure[0]
        for name, of_kind in figures.others.items()
        if (figure := of_kind.get(POSTGRESQL))
    }
    of_tasks = [
        bytes_.get(POSTGRESQL, 0.0)
        for name, bytes_ in figures.sizes.items()
        if name.startswith("tasks_")
    ]
    return plan.Measured(
        task_bytes=others[TASK_BYTES],
        index_bytes=sum(of_tasks),
        line_bytes=others[LINE_BYTES],
        append_wal=others[WAL],
        first_append_wal=others[FIRST_WAL],
        node_appends=most(GROW),
        database_appends=most(ALONE),
        removed_tasks=others[RATE],
        log_lines=figures.lines,
        log_seconds=others[LOG_SECONDS],
        backup_seconds=others[BACKUP],
        count_wait=others[COUNT],
        size=size,
    )


def _tables(figures: Figures, kinds: Sequence[str]) -> Iterator[Table]:
    """The head and the lines of each table."""
    sizes = sorted({size for path in figures.waits.values() for kind in path.values()
                    for size in kind})  # fmt: skip
    columns = [(kind, size) for kind in kinds for size in sizes]
    yield (
        ["median wait of one client, ms", *(f"{kind} {size:,}" for kind, size in columns)],
        [
            [
                path,
                *(_number(figures.waits[path].get(kind, {}).get(size)) for kind, size in columns),
            ]
            for path in WAITS
            if path in figures.waits
        ],
    )
    yield (
        [f"with {max(sizes, default=0):,} tasks", *kinds, "goal", "reached"],
        [_other(name, of_kind, kinds) for name, of_kind in figures.others.items()],
    )
    yield (
        ["bytes of a task in", *kinds],
        [
            [f"`{name}`", *(_number(of_kind.get(kind)) for kind in kinds)]
            for name, of_kind in sorted(
                figures.sizes.items(), key=lambda item: -max(item[1].values())
            )
            if max(of_kind.values()) >= 1
        ],
    )
    if POSTGRESQL in kinds and POSTGRESQL not in figures.left_out:
        yield plan.HEAD, list(plan.lines(_plan(figures, max(sizes))))


def _number(figure: float | None) -> str:
    return figure_text(figure, "")


def _other(name: str, of_kind: dict[str, tuple[float, str]], kinds: Sequence[str]) -> list[str]:
    cells = [figure_text(*of_kind[kind]) if kind in of_kind else "" for kind in kinds]
    if name not in GOALS:
        return [name, *cells, "", ""]
    goal = GOALS[name]
    verdicts = [Row(goal, figure).verdict for figure, _ in of_kind.values()]
    sign = "≤" if goal.is_less_better else "≥"
    bound = f"{sign} {figure_text(goal.at_least, goal.unit)}"
    return [name, *cells, bound, "NO" if "NO" in verdicts else "yes"]


def main() -> None:
    options = parser("benchmarks.scaling", __doc__, KINDS).parse_args()
    kinds = options.only or KINDS
    began = time.monotonic()
    with measuring(options) as run:
        figures = measured(run, kinds)
    (head, lines), *others = _tables(figures, kinds)
    show(began, head, lines)
    for head, lines in others:
        print("\n" + markdown(head, lines))
    for kind, why in figures.left_out.items():
        print(f"\n{kind} left out: {why}")
    if options.json:
        options.json.write_text(json.dumps(vars(figures), indent=1))


if __name__ == "__main__":
    main()
