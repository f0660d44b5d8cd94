"""How long one client waits, from 1,000 to 1,000,000 tasks, and lines of one log."""

import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import requests
from sqlalchemy import create_engine

from benchmarks.contents import DAYS, LINES, Person, add_person, multiply
from benchmarks.load import Load, load, request
from benchmarks.servers import Server, exchange, ours
from benchmarks.table import Goal, Row, Run, interleaved, row
from taskservice.database import name_index

SIZES = (1_000, 10_000, 100_000, 1_000_000)
AGENTS = 20
TABS = 20
# The dashboard reloads its pages this often.
TAB_SECONDS = 1.0
SAMPLE = 200

GET = "GET one task"
PAGE = "page of 50 tasks"
ATTENTION = "what needs attention"
FINISHED = "page of 50, finishedAfter"
ENDED = "page of 50, q in the order of their end"
RARE = "page of 50, q with one match"
SEARCH = "page of 50, q without a match"
AGENT_SEARCH = "page of 50, q without a match, agentId"
SHORT_SEARCH = "page of 50, q of two letters without a match"
LIST_PAGE = "dashboard: list"
FAILED_PAGE = "dashboard: failed callbacks"
SEARCH_PAGE = "dashboard: search without a match"
AGENTS_PAGE = "dashboard: agents"
TASK_PAGE = "dashboard: task"
APPEND = "append a line to a long log"
TAIL = "last 100 lines of a long log"
FOUND = (FINISHED, ENDED, RARE, LIST_PAGE, FAILED_PAGE, AGENTS_PAGE, TASK_PAGE)
NOT_FOUND = (SEARCH, AGENT_SEARCH, SHORT_SEARCH, SEARCH_PAGE)
OF_TASKS = (GET, PAGE, ATTENTION, *FOUND, *NOT_FOUND)
TABS_OF = (LIST_PAGE, FAILED_PAGE, SEARCH_PAGE, AGENTS_PAGE, TASK_PAGE)
OF_LINES = (APPEND, TAIL)


def _at_most(path: str, bound: float, *, is_absolute: bool = True) -> Goal:
    return Goal(f"1,000,000: {path}", "at 1,000", "ms", bound, True, is_absolute)


GROWTH = (
    *(_at_most(path, 1.15, is_absolute=False) for path in (GET, PAGE)),
    _at_most(ATTENTION, 20),
    *(_at_most(path, 50) for path in (*FOUND, *OF_LINES)),
    *(_at_most(path, 100) for path in NOT_FOUND),
    *(
        Goal(f"1,000,000: GET, p95, {TABS} tabs: {tab}", "without tabs", "ms", 2, True)
        for tab in TABS_OF
    ),
)


@dataclass
class Grown:
    """A running service, and the requests for its many tasks and its long log."""

    server: Server
    requests: dict[str, list[bytes]]

    def load(self, path: str, seconds: float) -> Load:
        return load(self.server.port, self.requests[path], seconds, connections=1)

    def p50(self, path: str, seconds: float) -> float:
        return self.load(path, seconds).p50

    def p95(self, path: str, seconds: float) -> float:
        return self.load(path, seconds).p95


def growth(run: Run) -> list[Row]:
    folder = run.subfolder("growth")
    sizes = [max(int(size * run.scale), AGENTS * 2) for size in SIZES]
    keys = make_small(folder / "small")
    with ExitStack() as stack:
        grown = [
            stack.enter_context(_grown(folder / "small", keys, folder / str(number), size))
            for number, size in enumerate(sizes)
        ]
        figures = _waits(run, grown)
        rows = []
        for goal in GROWTH:
            path = goal.path.removeprefix("1,000,000: ")
            if path in figures:
                smallest, largest = figures[path][0], figures[path][-1]
                rows.append(row(goal, largest, smallest))
            else:
                rows.append(_beside_tabs(run, goal, grown[-1], path.partition(" tabs: ")[2]))
    return rows


def _waits(run: Run, grown: Sequence[Grown]) -> dict[str, list[list[float]]]:
    """Path -> for each size the milliseconds of each round."""
    # Long enough for hundreds of answers, but for those that are too slow anyway.
    seconds = run.seconds / 4
    figures = interleaved(
        run.rounds,
        {
            f"{path} {number}": partial(service.p50, path, seconds)
            for path in (*OF_TASKS, *OF_LINES)
            for number, service in enumerate(grown)
        },
    )
    return {
        path: [figures[f"{path} {number}"] for number in range(len(grown))]
        for path in (*OF_TASKS, *OF_LINES)
    }


def _beside_tabs(run: Run, goal: Goal, grown: Grown, tab: str) -> Row:
    alone, beside = [], []
    for _ in range(run.rounds):
        alone.append(grown.p95(GET, run.seconds))
        with _tabs(grown, tab):
            beside.append(grown.p95(GET, run.seconds))
    return row(goal, beside, alone)


@contextmanager
def _tabs(grown: Grown, path: str) -> Iterator[None]:
    """As if this page were open in TABS tabs, which reload it."""
    closed = threading.Event()

    def keep_open(number: int) -> None:
        if closed.wait(number / TABS * TAB_SECONDS):
            return
        while not closed.is_set():
            with suppress(OSError):
                exchange(grown.server.port, grown.requests[path][0])
            closed.wait(TAB_SECONDS)

    threads = [threading.Thread(target=keep_open, args=(number,)) for number in range(TABS)]
    for thread in threads:
        thread.start()
    try:
        # Until all have loaded it once.
        closed.wait(TAB_SECONDS)
        yield
    finally:
        closed.set()
        for thread in threads:
            thread.join()


def make_small(folder: Path) -> tuple[str, str]:
    """Make the data of a service with few tasks; returns the keys of its two users."""
    with ours(folder) as server:
        reader, writer = add_person(server, "reader"), add_person(server, "writer")
        _start_tasks(reader)
        return reader.key, writer.key


@contextmanager
def _grown(small: Path, keys: tuple[str, str], folder: Path, size: int) -> Iterator[Grown]:
    database = grow(small, folder, size)
    with ours(folder) as server:
        reader, writer = (Person(server, key) for key in keys)
        # Of another user, so that no page of tasks has it.
        log = long_log(writer, size)
        yield Grown(server, requests_of(reader, writer, some_ids(database, size), size, log))


def grow(small: Path, folder: Path, size: int) -> Path:
    """Make the data of a service with `size` tasks of those in `small`; returns its database."""
    shutil.copytree(small, folder)
    database = folder / "taskservice.db"
    multiply(database, size, numbered=True)
    index_names(database)
    return database


def index_names(database: Path) -> None:
    """What maintenance does in rounds."""
    with create_engine(f"sqlite:///{database}").begin() as connection:
        while name_index.is_behind(connection):
            name_index.update(connection)


def _start_tasks(person: Person) -> None:
    """Two tasks of each agent, of which some have ended."""
    for number in range(AGENTS):
        agent = f"agent-{number}"
        person.call("PUT", f"/agent/{agent}")
        person.start(LINES, agentId=agent, name=f"nightly summary {number}")
        ended = person.start(LINES, agentId=agent, name=f"synopsis {number}")
        report = {"status": "complete", "output": {"pages": number}}
        person.call("PATCH", f"/task/{ended['id']}", json=report)


def long_log(person: Person, size: int) -> str:
    """The path of the log of a task with `size` lines."""
    path = f"/task/{person.start([])['id']}/logs"
    for first in range(1, size + 1, 100_000):
        last = min(first + 100_000, size + 1)
        body = "".join(f"line {number} of {size}\n" for number in range(first, last))
        person.call("PUT", path, data=body.encode())
    return path


def requests_of(
    reader: Person, writer: Person, ids: Sequence[str], size: int, log: str
) -> dict[str, list[bytes]]:
    """Path -> the requests that measure it, of a reader with `size` tasks, some of which are `ids`.

    `log` is the path of the log of a task of the writer, with `size` lines.
    """
    back = datetime.now(UTC) - timedelta(days=DAYS)
    after = f"{back:%Y-%m-%dT%H:%M:%S.000Z}"
    one, cookie = reader.request, _sign_in(reader)

    def page(path: str) -> list[bytes]:
        """Requests for the same page whose answers are not shared, as those of tabs are."""
        between = "&" if "?" in path else "?"
        pages = [f"{path}{between}createdAfter=2020-01-01T00:00:00.{n:03}Z" for n in range(SAMPLE)]
        return [request("GET", url, Cookie=cookie) for url in pages]

    return {
        GET: [one("GET", f"/task/{task_id}") for task_id in ids],
        PAGE: [one("GET", "/task?limit=50")],
        ATTENTION: [one("GET", "/attention")],
        FINISHED: [one("GET", f"/task?limit=50&finishedAfter={quote(after)}")],
        ENDED: [one("GET", "/task?limit=50&sort=finishedAt&q=synopsis+19")],
        RARE: [one("GET", f"/task?limit=50&q=+{size // 2}")],
        SEARCH: [one("GET", "/task?limit=50&q=absent")],
        AGENT_SEARCH: [one("GET", "/task?limit=50&q=absent&agentId=agent-3")],
        SHORT_SEARCH: [one("GET", "/task?limit=50&q=zq")],
        LIST_PAGE: page("/"),
        FAILED_PAGE: page("/?callback=failed"),
        SEARCH_PAGE: page("/?q=absent"),
        AGENTS_PAGE: page("/agents"),
        TASK_PAGE: page(f"/tasks/{ids[0]}"),
        APPEND: [writer.request("POST", log, b'{"logs":["a line more"]}')],
        TAIL: [writer.request("GET", f"{log}?after={max(size - 100, 0)}&limit=100")],
    }


def some_ids(database: Path, size: int) -> list[str]:
    """The ids of up to SAMPLE tasks of the reader, far from one another."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    step = max(size // SAMPLE, 1)
    # The first task is the reader's, the last one the writer's.
    of_reader = "user_id = (SELECT user_id FROM tasks WHERE rowid = 1)"
    query = f"SELECT id FROM tasks WHERE rowid % {step} = 0 AND {of_reader} LIMIT {SAMPLE}"
    ids = [str(UUID(task_id)) for (task_id,) in connection.execute(query)]
    connection.close()
    return ids


def _sign_in(person: Person) -> str:
    """The cookie of a browser that has signed in."""
    url = f"{person.server.url}/sign-in"
    with requests.Session() as browser:
        form = re.search(r'name="token" value="([^"]+)"', browser.get(url, timeout=30).text)
        assert form
        data = {"token": form[1], "key": person.key}
        browser.post(url, data=data, timeout=60).raise_for_status()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)
