"""The requests that are measured with many tasks, and how long each may take."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event

import requests

from benchmarks.contents import DAYS, Person
from benchmarks.load import request
from benchmarks.servers import Server, exchange
from benchmarks.table import Goal

TABS = 20
# The dashboard reloads its pages this often.
TAB_SECONDS = 1.0

GET = "GET one task"
PAGE = "page of 50 tasks"
ATTENTION = "what needs attention"
HANGING = "page of 50 tasks that hang"
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
START = "start a task"
APPEND = "append a line to a long log"
TAIL = "last 100 lines of a long log"
PATHS = (
    GET, PAGE, ATTENTION, HANGING, FINISHED, ENDED, RARE, SEARCH, AGENT_SEARCH, SHORT_SEARCH,
    LIST_PAGE, FAILED_PAGE, SEARCH_PAGE, AGENTS_PAGE, TASK_PAGE, START, APPEND, TAIL,
)  # fmt: skip
PAGES = (LIST_PAGE, FAILED_PAGE, SEARCH_PAGE, AGENTS_PAGE, TASK_PAGE)

# With the most tasks on SQLite, as a multiple of the wait with the fewest or in milliseconds.
WAIT_GOALS = {path: Goal(path, "", "ms", 1.15, True) for path in (GET, PAGE)} | {
    path: Goal(path, "", "ms", milliseconds, True, True)
    for milliseconds, paths in (
        (20, [ATTENTION, HANGING]),
        (50, [FINISHED, ENDED, RARE, LIST_PAGE, FAILED_PAGE, AGENTS_PAGE, TASK_PAGE, APPEND, TAIL]),
        (100, [SEARCH, AGENT_SEARCH, SHORT_SEARCH, SEARCH_PAGE]),
    )
    for path in paths
}


def reads_of(reader: Person, ids: Sequence[str], size: int) -> dict[str, list[bytes]]:
    """Path -> the requests of a reader that measure it, with `size` tasks and some of their IDs."""
    after = datetime.now(UTC) - timedelta(days=DAYS)
    one, cookie = reader.request, _sign_in(reader)

    def page(path: str) -> list[bytes]:
        return [request("GET", path, Cookie=cookie)]

    return {
        GET: [one("GET", f"/task/{task_id}") for task_id in ids],
        PAGE: [one("GET", "/task?limit=50")],
        ATTENTION: [one("GET", "/attention")],
        HANGING: [one("GET", "/task?limit=50&hanging=true")],
        FINISHED: [one("GET", f"/task?limit=50&finishedAfter={after:%Y-%m-%dT%H:%M:%SZ}")],
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
    }


def _sign_in(person: Person) -> str:
    """The cookie of a browser that has signed in."""
    url = f"{person.server.url}/sign-in"
    with requests.Session() as browser:
        form = re.search(r'name="token" value="([^"]+)"', browser.get(url, timeout=30).text)
        assert form
        data = {"token": form[1], "key": person.key}
        browser.post(url, data=data, timeout=60).raise_for_status()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)


@contextmanager
def tabs(server: Server, page: bytes) -> Iterator[None]:
    """As if this page were open in TABS tabs, which reload it."""
    closed = Event()

    def keep_open(number: int) -> None:
        pause = number / TABS * TAB_SECONDS
        while not closed.wait(pause):
            with suppress(OSError):
                exchange(server.port, page)
            pause = TAB_SECONDS

    with ThreadPoolExecutor(TABS) as pool:
        for number in range(TABS):
            pool.submit(keep_open, number)
        try:
            # Until all have loaded it once.
            closed.wait(TAB_SECONDS)
            yield
        finally:
            closed.set()
