"""Measures SQLite and PostgreSQL with 1,000 to 1,000,000 tasks and two logs of 1,000,000 lines."""

import json
import os
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

from benchmarks import contents, paths, plan, removal, stores
from benchmarks.command import UNMEASURABLE, measuring, parser, reason, show
from benchmarks.contents import Person
from benchmarks.load import Load, load, load_once
from benchmarks.sections import streamed
from benchmarks.servers import ours
from benchmarks.stores import POSTGRESQL, SQLITE, Store
from benchmarks.table import Goal, Run, figure_text, interleaved, markdown
from tests.support.databases import Databases
from tests.support.receiver import Receiver

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
KINDS = (SQLITE, POSTGRESQL)
SIZES = (1_000, 100_000, 1_000_000)
LINES = 1_000_000
# The one whose whole list is read.
LISTED = 100_000
REMOVED = 20_000
QUIET_SECONDS = 5.0
# Tasks that grow at the same time, as several agents' tasks do.
GROWING = 64
# Agents that send lines to PostgreSQL without a service.
SENDING = 10_000
# How many lines they send for each second of a measurement.
APPENDED = 2_500
CLIENTS = (1, 16, 64)

CLAIM = "claim a task"
REPORT = "end a task; its webhook is posted immediately"
LIST = "whole list of 100,000 tasks"
WAITS = (*paths.PATHS, CLAIM, REPORT, LIST)

JOINED_BYTES = "size on disk of a line that was sent with many other lines"
WRITER_WAIT = "longest wait of a writer"
DISK_WAIT = "longest write to a plain file on the same disk"
TASKS_REMOVED = "while tasks are removed"
LOG_REMOVED = "while this log is removed"
BESIDE_TABS = f"95th percentile of a GET, with {paths.TABS} open tabs / without tabs"
GOALS = {
    goal.path: goal
    for goal in (
        Goal(plan.RATE, "", "tasks/s", 1_000, is_absolute=True),
        Goal(f"{WRITER_WAIT} {TASKS_REMOVED}", "", "ms", 250, True, True),
        Goal(plan.LOG_SECONDS, "", "s", 120, True, True),
        Goal(f"{WRITER_WAIT} {LOG_REMOVED}", "", "ms", 250, True, True),
        *(Goal(f"{BESIDE_TABS}, {page}", "", "", 2, True, True) for page in paths.PAGES),
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

    def load(self, path: str, seconds: float) -> Load:
        return load(self.reader.server.port, self.requests[path], seconds, connections=1)

    def p50(self, path: str) -> float:
        # Long enough for hundreds of answers, but for those that are too slow anyway.
        return self.load(path, self.run.seconds / 4).p50


def scaled(number: int, run: Run) -> int:
    return max(int(number * run.scale), 4 * contents.AGENTS)


def measured(run: Run, kinds: Sequence[str]) -> Figures:
    figures, folder = Figures(), run.subfolder("scaling")
    keys = contents.make_small(folder / "small")
    databases = Databases(folder, folder)
    for number, unscaled in enumerate(SIZES):
        size = scaled(unscaled, run)
        data = folder / str(number)
        _note(f"making {size:,} tasks")
        database = contents.grow(folder / "small", data, size)
        ids = contents.some_ids(database, size)
        # PostgreSQL first: its rows come from the file, which the service will change.
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
        _measure_beside_tabs(place)
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
    url = stores.durable_postgresql(databases)
    stores.copy_to_postgresql(database, url)
    return Store(url)


@contextmanager
def _place(
    run: Run, figures: Figures, store: Store, data: Path,
    keys: tuple[str, str], ids: Sequence[str], size: int,
) -> Iterator[Place]:  # fmt: skip
    if size == scaled(SIZES[-1], run):
        # Before anything but tasks is in it.
        figures.add(store.kind, plan.TASK_BYTES, store.bytes() / size, "bytes")
        for name, bytes_ in store.sizes().items():
            figures.sizes.setdefault(name, {})[store.kind] = bytes_ / size
    with ours(data, DATABASE_URL=store.url, CALLBACK_ALLOWED="loopback") as server:
        reader, writer = (Person(server, key) for key in keys)
        lines = scaled(LINES, run)
        together, alone = _long_logs(figures, store, writer, lines)
        store.settle()
        tail = f"/task/{alone}/logs?after={lines - 100}&limit=100"
        requests = paths.reads_of(reader, ids, size) | {
            paths.START: [writer.request("POST", "/task", b'{"agentId":"bench"}')],
            paths.APPEND: [writer.request("POST", together, b'{"logs":["a line more"]}')],
            paths.TAIL: [writer.request("GET", tail)],
        }
        yield Place(run, figures, store, reader, writer, size, requests, alone)


def _long_logs(figures: Figures, store: Store, writer: Person, lines: int) -> tuple[str, str]:
    """The path of a log whose lines were sent together, and the task of one with single lines."""
    before = store.bytes()
    together = contents.long_log(writer, lines)
    between = store.bytes()
    alone = str(writer.start([stores.LINE])["id"])
    store.add_lines(alone, lines)
    figures.add(store.kind, JOINED_BYTES, (between - before) / lines, "bytes")
    figures.add(store.kind, plan.LINE_BYTES, (store.bytes() - between) / lines, "bytes")
    return together, alone


def _measure_waits(place: Place) -> None:
    figures = interleaved(
        place.run.rounds, {path: partial(place.p50, path) for path in paths.PATHS}
    )
    for path, samples in figures.items():
        _add_wait(place, path, statistics.median(samples))
    _add_wait(place, CLAIM, _claims(place))
    _add_wait(place, REPORT, _reports(place))


def _add_wait(place: Place, path: str, milliseconds: float) -> None:
    of_path = place.figures.waits.setdefault(path, {})
    of_path.setdefault(place.store.kind, {})[place.size] = milliseconds


def _claims(place: Place) -> float:
    writer, count = place.writer, scaled(contents.SAMPLE, place.run)
    port = writer.server.port
    load_once(port, place.requests[paths.START] * count)
    return load_once(port, [writer.request("POST", "/agent/bench/claim")] * count).p50


def _reports(place: Place) -> float:
    writer = place.writer
    with Receiver() as receiver:
        tasks = [
            writer.start([], callback=receiver.url)
            for _ in range(scaled(contents.SAMPLE, place.run))
        ]
        body = b'{"status":"complete","output":{"pages":34}}'
        reports = [writer.request("PATCH", f"/task/{task['id']}", body) for task in tasks]
        return load_once(writer.server.port, reports).p50


def _measure_list(place: Place) -> None:
    whole = place.reader.request("GET", "/task", Connection="close")
    times = [streamed(place.reader.server.port, whole)[0] for _ in range(place.run.rounds)]
    _add_wait(place, LIST, statistics.median(times) * 1000)


def _measure_beside_tabs(place: Place) -> None:
    seconds = place.run.seconds
    for page in paths.PAGES:
        ratios = []
        for _ in range(place.run.rounds):
            alone = place.load(paths.GET, seconds).p95
            with paths.tabs(place.reader.server, place.requests[page][0]):
                ratios.append(place.load(paths.GET, seconds).p95 / alone)
        place.add(f"{BESIDE_TABS}, {page}", statistics.median(ratios), "")


def _measure_rates(place: Place, databases: Databases) -> None:
    writer, store = place.writer, place.store
    urls = [f"/task/{writer.start([])['id']}/logs" for _ in range(GROWING)]
    body = b'{"logs":["a line of a task that grows"]}'
    place.requests[plan.GROW] = [writer.request("POST", path, body) for path in urls]
    for path in (paths.GET, paths.START, plan.GROW):
        for clients in CLIENTS:
            took = load(writer.server.port, place.requests[path], place.run.seconds, clients)
            place.add(f"{path}, {_clients(clients)}", took.rate, "requests/s")
    if store.kind == POSTGRESQL:
        pgbench = databases.programs / "pgbench"
        agents = min(SENDING, place.size)
        for clients in CLIENTS:
            count = int(APPENDED * place.run.seconds)
            rate = stores.appends_alone(pgbench, store.url, agents, clients, count)
            place.add(f"{plan.ALONE}, {_clients(clients)}", rate, "commits/s")
        first, later = store.wal_of_appends(min(scaled(contents.SAMPLE, place.run), agents))
        place.add(plan.WAL, later, "bytes")
        place.add(plan.FIRST_WAL, first, "bytes")


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def _measure_count(place: Place) -> None:
    times = []
    for _ in range(place.run.rounds):
        began = time.perf_counter()
        place.store.number("SELECT count(*) FROM tasks")
        times.append(time.perf_counter() - began)
    place.add(plan.COUNT, statistics.median(times) * 1000, "ms")


def _measure_backup(place: Place, databases: Databases) -> None:
    file = place.run.folder / f"backup-{place.store.kind}"

    def back_up() -> float:
        began = time.perf_counter()
        if place.store.kind == SQLITE:
            removal.command(place.reader.server, "db", "backup", str(file))
        else:
            dump = [str(databases.programs / "pg_dump"), "-Fc", "-f", str(file), place.store.url]
            subprocess.run(dump, check=True, capture_output=True)
        return time.perf_counter() - began

    place.add(plan.BACKUP, back_up(), "s")
    file.unlink()
    waits, _ = removal.with_writer(place.writer, back_up)
    place.add_waits("while a backup is made", waits)
    place.add("size of the backup", file.stat().st_size / 1e6, "MB")
    file.unlink()


def _measure_removal(place: Place) -> None:
    """Remove twice a number of the tasks that ended first, and the long log."""
    server, store, writer = place.reader.server, place.store, place.writer
    # Else the disk would still be busy with what was written before.
    os.sync()
    waits, _ = removal.with_writer(writer, lambda: time.sleep(QUIET_SECONDS))
    place.add_waits("while nothing is removed", waits)
    count = min(scaled(REMOVED, place.run), place.size // 10)
    part = count / store.number("SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL")
    place.add(plan.RATE, removal.prune(server, contents.DAYS * (1 - part)), "tasks/s")
    waits, _ = removal.with_writer(
        writer, lambda: removal.prune(server, contents.DAYS * (1 - 2 * part))
    )
    place.add_waits(TASKS_REMOVED, waits)
    is_quick = place.run.scale < 1
    waits, seconds = removal.with_writer(
        writer, lambda: removal.remove_log(store, writer, place.long_task, is_quick)
    )
    place.add(plan.LOG_SECONDS, seconds, "s")
    place.add_waits(LOG_REMOVED, waits)


def _plan(figures: Figures, log_lines: int, size: int) -> list[tuple[str, str, str]]:
    others = {
        name: of_kind[POSTGRESQL][0]
        for name, of_kind in figures.others.items()
        if POSTGRESQL in of_kind
    }
    index_bytes = sum(
        bytes_.get(POSTGRESQL, 0)
        for name, bytes_ in figures.sizes.items()
        if name.startswith("tasks_")
    )
    return list(plan.lines(others, index_bytes, log_lines, size))


def _tables(figures: Figures, kinds: Sequence[str], log_lines: int) -> Iterator[Table]:
    """The head and the lines of each table."""
    sizes = sorted({size for path in figures.waits.values() for kind in path.values()
                    for size in kind})  # fmt: skip
    columns = [(kind, size) for kind in kinds for size in sizes]
    yield (
        ["median latency of one client, ms", *(f"{kind} {size:,}" for kind, size in columns),
         "goal", "reached"],
        [
            [
                path,
                *(figure_text(waits.get(kind, {}).get(size)) for kind, size in columns),
                *_wait_goal(path, list(waits.get(SQLITE, {}).values())),
            ]
            for path in WAITS
            if (waits := figures.waits.get(path))
        ],
    )  # fmt: skip
    yield (
        [f"with {max(sizes, default=0):,} tasks", *kinds, "goal", "reached"],
        [
            [
                name,
                *(figure_text(*of_kind[kind]) if kind in of_kind else "" for kind in kinds),
                *_goal(GOALS.get(name), [figure for figure, _ in of_kind.values()]),
            ]
            for name, of_kind in figures.others.items()
        ],
    )
    yield (
        ["bytes of a task in", *kinds],
        [
            [f"`{name}`", *(figure_text(of_kind.get(kind)) for kind in kinds)]
            for name, of_kind in sorted(
                figures.sizes.items(), key=lambda item: -max(item[1].values())
            )
            if max(of_kind.values()) >= 1
        ],
    )
    if POSTGRESQL in kinds and POSTGRESQL not in figures.left_out:
        yield plan.HEAD, _plan(figures, log_lines, max(sizes))


def _wait_goal(path: str, waits: Sequence[float]) -> list[str]:
    """The cells of the goal of a path, by its waits on SQLite from the fewest tasks on."""
    goal = paths.WAIT_GOALS.get(path)
    if goal is None or not waits:
        return ["", ""]
    return _goal(goal, [waits[-1] if goal.is_absolute else waits[-1] / waits[0]])


def _goal(goal: Goal | None, figures: Sequence[float]) -> list[str]:
    if goal is None:
        return ["", ""]
    reached = all(goal.is_reached(figure) for figure in figures)
    return [goal.bound_text(), "yes" if reached else "NO"]


def main() -> None:
    options = parser("benchmarks.scaling", __doc__, KINDS).parse_args()
    kinds = options.only or KINDS
    began = time.monotonic()
    with measuring(options) as run:
        figures = measured(run, kinds)
    (head, lines), *others = _tables(figures, kinds, scaled(LINES, run))
    show(began, head, lines)
    for head, lines in others:
        print("\n" + markdown(head, lines))
    for kind, why in figures.left_out.items():
        print(f"\n{kind} left out: {why}")
    if options.json:
        options.json.write_text(json.dumps(vars(figures), indent=1))


if __name__ == "__main__":
    main()
