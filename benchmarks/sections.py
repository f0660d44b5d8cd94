"""What `make bench` measures, each section on separate servers, ours and others in turn."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks.command import UNMEASURABLE, reason
from benchmarks.contents import LINES, Contents, add_person, fill, multiply
from benchmarks.load import load, load_once
from benchmarks.servers import Server, ours, running, yardstick
from benchmarks.stores import durable_postgresql
from benchmarks.table import Goal, Row, Run, interleaved, row
from benchmarks.yardsticks import naive, raw_postgresql, raw_sqlite
from tests.support.databases import Databases

WARM_UP_SECONDS = 0.3
SYNC_SECONDS = 0.002
MANY_TASKS = 100_000


# Ours, and what it is compared with.
Servers: TypeAlias = tuple[Server, Server]


@dataclass(frozen=True)
class Section:
    """Measures together what has these goals, in their order."""

    goals: tuple[Goal, ...]
    measure: Callable[[Run], list[Row]]


def rates(
    run: Run, measurements: Mapping[str, tuple[Server, Sequence[bytes]]]
) -> dict[str, list[float]]:
    """Requests a second of each of these requests to a server, in turn."""
    for server, requests in measurements.values():
        load(server.port, requests, min(WARM_UP_SECONDS, run.seconds))
    return interleaved(
        run.rounds,
        {
            name: partial(_rate, server, requests, run.seconds)
            for name, (server, requests) in measurements.items()
        },
    )


def _rate(server: Server, requests: Sequence[bytes], seconds: float) -> float:
    return load(server.port, requests, seconds).rate


def compare(
    run: Run, goals: Sequence[Goal], servers: Servers, requests: Sequence[list[bytes]]
) -> list[Row]:
    """A row for each goal: the same requests to both servers."""
    rows = []
    for goal, sent in zip(goals, requests, strict=True):
        figures = rates(run, {"ours": (servers[0], sent), "beside": (servers[1], sent)})
        rows.append(row(goal, figures["ours"], figures["beside"]))
    return rows


# --- reads --------------------------------------------------------------------------------

REQUESTS = "requests/s"
BARE = "bare Flask view"
NAIVE = "ORM, marshmallow"
RAW = "raw sqlite3"

READS = (
    Goal("GET one task", BARE, REQUESTS, 0.70),
    Goal("GET one task, 304", BARE, REQUESTS, 0.78),
    Goal("GET one task", NAIVE, REQUESTS, None),
    Goal("page of 50 tasks", NAIVE, REQUESTS, 3.4),
)


def reads(run: Run) -> list[Row]:
    folder = run.subfolder("reads")
    with ours(folder / "ours") as service:
        contents = fill(service)
        get = contents.gets()[0]
        body = contents.reader.call("GET", f"/task/{contents.tasks[0]['id']}").text
        database = str(folder / "naive.db")
        naive.store(database, contents.keys(), contents.tasks)
        bare = yardstick("bare", get, YARDSTICK_BODY=body)
        orm = yardstick("naive", get, YARDSTICK_DATABASE=database)
        gets, pages = contents.gets(), contents.pages()
        with running(bare, orm):
            figures = rates(
                run,
                {
                    "get": (service, gets),
                    "304": (service, contents.conditional_gets()),
                    "page": (service, pages),
                    "bare": (bare, gets),
                    "naive get": (orm, gets),
                    "naive page": (orm, pages),
                },
            )
    pairs = (("get", "bare"), ("304", "bare"), ("get", "naive get"), ("page", "naive page"))
    return [
        row(goal, figures[ours], figures[beside])
        for goal, (ours, beside) in zip(READS, pairs, strict=True)
    ]


# --- writes -------------------------------------------------------------------------------

WRITES = (
    Goal("append a line, 1 process", RAW, REQUESTS, 0.78),
    Goal("start a task, 1 process", RAW, REQUESTS, 0.74),
)
WRITES_OF_FOUR = (Goal("append a line, 4 processes", RAW, REQUESTS, 0.75),)
WRITES_TO_SLOW_DISK = (
    Goal("append a line, syncs of 2 ms", "one commit per request", REQUESTS, 3.2),
)


@contextmanager
def writing(folder: Path, workers: int, **variables: str) -> Iterator[tuple[Contents, Servers]]:
    """Ours and raw sqlite3 with the same users and tasks."""
    service = ours(folder / "ours", WORKERS=str(workers))
    service.environment |= variables
    with service:
        contents = fill(service)
        database = str(folder / "raw.db")
        raw_sqlite.store(database, contents.keys(), contents.growing)
        first = contents.appends()[0]
        raw = yardstick("raw_sqlite", first, workers, YARDSTICK_DATABASE=database, **variables)
        with raw:
            yield contents, (service, raw)


def writes(run: Run) -> list[Row]:
    with writing(run.subfolder("writes"), workers=1) as (contents, servers):
        return compare(run, WRITES, servers, [contents.appends(), contents.starts()])


def writes_of_four(run: Run) -> list[Row]:
    with writing(run.subfolder("four"), workers=4) as (contents, servers):
        return compare(run, WRITES_OF_FOUR, servers, [contents.appends()])


def writes_to_slow_disk(run: Run) -> list[Row]:
    folder = run.subfolder("slow-disk")
    with writing(folder, workers=1, LD_PRELOAD=str(slow_sync(folder))) as (contents, servers):
        rows = compare(run, WRITES_TO_SLOW_DISK, servers, [contents.appends()])
    if rows[0].beside > 1 / SYNC_SECONDS:
        raise RuntimeError("The syncs were not slowed down")
    return rows


def slow_sync(folder: Path) -> Path:
    """The library that makes each sync take 2 ms; compiled here."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler (cc) to build what slows the syncs down")
    library = folder / "slow_sync.so"
    source = Path(__file__).with_name("slow_sync.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


# --- hooks --------------------------------------------------------------------------------

MANY_HOOKS = 50
REPORTS = 100
HOOKS = (
    Goal("additional time of a report with 50 hooks for other events", "", "ms",
         0.5, True, True),
)  # fmt: skip


def hooks(run: Run) -> list[Row]:
    """The median of one client's reports that end a task, with hooks less without."""
    with ours(run.subfolder("hooks") / "ours") as service:
        people = {name: add_person(service, name) for name in ("none", "hooks")}
        for number in range(MANY_HOOKS):
            hook = {"target": f"https://hooks{number}.invalid/"}
            people["hooks"].call("POST", "/hook", json=hook)

        def reported(name: str) -> float:
            person = people[name]
            start, end = {"agentId": "bench", "claim": True}, b'{"status":"complete"}'
            count = max(10, round(REPORTS * run.scale))
            ids = [person.call("POST", "/task", json=start).json()["id"] for _ in range(count)]
            reports = [person.request("PATCH", f"/task/{task_id}", end) for task_id in ids]
            return load_once(service.port, reports).p50

        p50 = interleaved(run.rounds * 2, {name: partial(reported, name) for name in people})
    # Where the difference is noise it can be negative, but no figure of the table can.
    pairs = zip(p50["hooks"], p50["none"], strict=True)
    differences = [max(with_hooks - without, 0.001) for with_hooks, without in pairs]
    return [row(HOOKS[0], differences)]


# --- the whole list -----------------------------------------------------------------------

LISTS = (
    Goal("list 100,000 tasks", f"{NAIVE} (times as fast)", "s", 8),
    Goal("list 100,000 tasks, first byte", NAIVE, "ms", 20, True, True),
    Goal("list 100,000 tasks, memory over idle", NAIVE, "MB", 16, True, True),
)


def whole_list(run: Run) -> list[Row]:
    folder, count = run.subfolder("list"), int(run.scale * MANY_TASKS)
    with ours(folder / "ours") as service:
        reader = add_person(service, "reader")
        tasks = [reader.start(LINES) for _ in range(50)]
    multiply(folder / "ours" / "taskservice.db", count)
    contents = Contents(reader, reader, tasks, tasks)
    database = str(folder / "naive.db")
    naive.store(database, contents.keys(), tasks, count // len(tasks))
    get = service.first = contents.gets()[0]
    servers = {"ours": service, "beside": yardstick("naive", get, YARDSTICK_DATABASE=database)}
    whole = reader.request("GET", "/task", Connection="close")
    lists: dict[str, list[tuple[float, float, float]]] = {name: [] for name in servers}
    for _ in range(run.rounds):
        for name, server in servers.items():
            lists[name].append(listed(server, whole))
    rows = []
    for place, goal in enumerate(LISTS):
        figures = {name: [figure[place] for figure in lists[name]] for name in lists}
        is_time = goal.path == LISTS[0].path
        rows.append(row(goal, figures["ours"], figures["beside"], inverted=is_time))
    return rows


def listed(server: Server, data: bytes) -> tuple[float, float, float]:
    """Seconds until the end, milliseconds until the first byte, megabytes over idle at most."""
    # What an earlier list left in memory would hide what this one needs.
    with server:
        idle = server.forget_peak()
        total, first = streamed(server.port, data)
        return total, first * 1000, max(server.peak() - idle, 0.1)


def streamed(port: int, data: bytes) -> tuple[float, float]:
    """Seconds until the last byte of an answer, and until the first of its body."""
    first, answer, end = 0.0, b"", b""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        began = time.perf_counter()
        connection.sendall(data)
        while part := connection.recv(1_048_576):
            if not first:
                answer += part
                if answer.partition(b"\r\n\r\n")[2]:
                    first = time.perf_counter() - began
            end = (end + part)[-20:]
        total = time.perf_counter() - began
    if not answer.startswith(b"HTTP/1.1 200") or b"]" not in end:
        raise RuntimeError(f"The list was broken off: {answer[:100]!r}")
    return total, first


# --- PostgreSQL ---------------------------------------------------------------------------

POSTGRESQL = (
    Goal("PostgreSQL: GET one task", "raw psycopg", REQUESTS, 0.55),
    Goal("PostgreSQL: append a line", "raw psycopg", REQUESTS, 0.65),
)


def postgresql(run: Run) -> list[Row]:
    """The server of the tests, with its syncs; on the CPU of the load."""
    folder = run.subfolder("postgresql")
    databases = Databases(folder, folder)
    url, raw_url = durable_postgresql(databases), databases.new_postgresql()
    with ours(folder / "ours", DATABASE_URL=url) as service:
        contents = fill(service)
        raw_postgresql.store(raw_url, contents.keys(), contents.tasks + contents.growing)
        get = contents.gets()[0]
        with yardstick("raw_postgresql", get, YARDSTICK_DATABASE=raw_url) as raw:
            requests = [contents.gets(), contents.appends()]
            return compare(run, POSTGRESQL, (service, raw), requests)


SECTIONS: dict[str, Section] = {
    "reads": Section(READS, reads),
    "writes": Section(WRITES, writes),
    "four": Section(WRITES_OF_FOUR, writes_of_four),
    "slow-disk": Section(WRITES_TO_SLOW_DISK, writes_to_slow_disk),
    "hooks": Section(HOOKS, hooks),
    "list": Section(LISTS, whole_list),
    "postgresql": Section(POSTGRESQL, postgresql),
}


def measured(name: str, run: Run) -> list[Row]:
    """The rows of a section; where it can't be measured, they say why."""
    section = SECTIONS[name]
    try:
        return section.measure(run)
    except UNMEASURABLE as error:
        return [Row(goal, left_out=reason(error)) for goal in section.goals]
