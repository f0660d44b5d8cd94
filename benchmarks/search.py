"""Measures searches in 300 MB of logs, the latency of a GET during searches, and `new-lines`.

The search looks in LINES lines of about 30 bytes for a text that none of them contains, so each
request reads up to its limit. Then a client gets one task repeatedly, first alone, then while two
other clients search. At the end, two logs of 100 MB are compared.
"""

import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.api_client import API, RemoteClient
from tests.support.service import Service

LINES = int(os.environ.get("LINES", "10000000"))
LINES_PER_TASK = 1_000_000
LINES_PER_BODY = 100_000
GETS = 3_000


def search_all(person: RemoteClient) -> list[float]:
    """The seconds of each request, as long as there is a next one."""
    seconds = []
    query = "text=nowhere"
    while query:
        began = time.perf_counter()
        answer = person.session.get(f"{person.url}{API}/search?{query}")
        seconds.append(time.perf_counter() - began)
        answer.raise_for_status()
        assert not answer.json()["hits"]
        query = urlsplit(answer.links.get("next", {}).get("url", "")).query
    return seconds


def search_forever(url: str, key: str) -> None:
    """In a process of its own, so that its client takes no time of another."""
    person = RemoteClient(url, key)
    while True:
        search_all(person)


def fill(person: RemoteClient, count: int, text: Callable[[int], str]) -> dict[str, Any]:
    """Create a failed task with `count` lines."""
    task = person.start("logs", claim=True)
    path = f"/task/{task['id']}"
    for first in range(0, count, LINES_PER_BODY):
        numbers = range(first, min(first + LINES_PER_BODY, count))
        body = "".join(map(text, numbers)).encode()
        person.request("PUT", f"{path}/logs", data=body).raise_for_status()
    person.request("PATCH", path, json={"status": "error"}).raise_for_status()
    return task


def p95_of_gets(person: RemoteClient, task: dict[str, Any]) -> float:
    """Milliseconds."""
    seconds = []
    address = f"{person.url}{API}/task/{task['id']}"
    for _ in range(GETS):
        began = time.perf_counter()
        person.session.get(address).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return 1_000 * sorted(seconds)[GETS * 95 // 100]


def memory(service: Service, which: str) -> int:
    """Megabytes of the worker: `VmRSS` now, `VmHWM` the most since `forget_peak`."""
    (worker,) = service.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(status.partition(f"{which}:")[2].split()[0]) // 1024


def forget_peak(service: Service) -> int:
    (worker,) = service.workers()
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    return memory(service, "VmRSS")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Service(Path(folder, "data"), LOG_LEVEL="warning") as service,
    ):
        alice = service.add_user()
        for _ in range(LINES // LINES_PER_TASK):
            fill(alice, LINES_PER_TASK, lambda number: f"order {number:08} is on its way\n")
        small = alice.start("small")
        before = forget_peak(service)
        seconds = search_all(alice)
        cost = memory(service, "VmHWM") - before
        print(f"{LINES:,} lines searched in {sum(seconds):.1f} s by {len(seconds)} requests, "
              f"{max(seconds):.2f} s at most; {cost} MB more memory")  # fmt: skip
        alone = p95_of_gets(alice, small)
        bob = service.add_user("bob")
        fill(bob, LINES_PER_TASK, lambda number: f"order {number:08} is on its way\n")
        # A user searches once at a time.
        keys = [str(person.session.headers["apikey"]) for person in (alice, bob)]
        searchers = [Process(target=search_forever, args=(alice.url, key)) for key in keys]
        for searcher in searchers:
            searcher.start()
        beside = p95_of_gets(alice, small)
        for searcher in searchers:
            searcher.terminate()
            searcher.join()
        print(f"p95 of a GET: {alone:.2f} ms alone, {beside:.2f} ms during two searches, "
              f"a ratio of {beside / alone:.2f}")  # fmt: skip
        good = fill(alice, 1_000_000, lambda number: f"page {number} " + "x" * 88 + "\n")
        failed = fill(alice, 1_000_000, lambda number: f"page {number} " + "y" * 88 + "\n")
        before = forget_peak(service)
        began = time.perf_counter()
        path = f"/task/{failed['id']}/new-lines?against={good['id']}"
        comparison = alice.request("GET", path).json()
        took = time.perf_counter() - began
        cost = memory(service, "VmHWM") - before
        print(f"two logs of 100 MB compared in {took:.2f} s: {len(comparison['lines'])} lines, "
              f"cut: {comparison['cut']}; {cost} MB more memory")  # fmt: skip


if __name__ == "__main__":
    main()
