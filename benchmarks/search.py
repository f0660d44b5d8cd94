"""Measures searches in 300 MB of logs, the latency of a GET during searches, and `new-lines`.

The search looks in LINES lines of about 30 bytes for a text that none of them contains, so each
request reads up to its limit. Then a client gets one task repeatedly, first alone, then while two
other clients search. At the end, two logs of 100 MB are compared.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Process
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.contents import Person, add_person
from benchmarks.load import load
from benchmarks.servers import Server, ours, pin_load

LINES = int(os.environ.get("LINES", "10000000"))
LINES_PER_TASK = 1_000_000
LINES_PER_BODY = 100_000
GET_SECONDS = 5.0


def search_all(person: Person) -> list[float]:
    """The seconds of each request, as long as there is a next one."""
    seconds = []
    query = "text=nowhere"
    while query:
        began = time.perf_counter()
        answer = person.call("GET", f"/search?{query}")
        seconds.append(time.perf_counter() - began)
        assert not answer.json()["hits"]
        query = urlsplit(answer.links.get("next", {}).get("url", "")).query
    return seconds


def search_forever(server: Server, key: str) -> None:
    person = Person(server, key)
    while True:
        search_all(person)


@contextmanager
def searching(server: Server, *keys: str) -> Iterator[None]:
    """Each in a separate process, so that its client takes no time of another."""
    searchers = [Process(target=search_forever, args=(server, key)) for key in keys]
    for searcher in searchers:
        searcher.start()
    try:
        yield
    finally:
        for searcher in searchers:
            searcher.terminate()
            searcher.join()


def fill(person: Person, count: int, text: Callable[[int], str]) -> dict[str, Any]:
    """Create a failed task with `count` lines."""
    task = person.start([])
    path = f"/task/{task['id']}"
    for first in range(0, count, LINES_PER_BODY):
        numbers = range(first, min(first + LINES_PER_BODY, count))
        person.call("PUT", f"{path}/logs", data="".join(map(text, numbers)).encode())
    person.call("PATCH", path, json={"status": "error"})
    return task


def order(number: int) -> str:
    return f"order {number:08} is on its way\n"


def measure(server: Server) -> None:
    alice, bob = add_person(server, "alice"), add_person(server, "bob")
    for _ in range(LINES // LINES_PER_TASK):
        fill(alice, LINES_PER_TASK, order)
    get = [alice.request("GET", f"/task/{alice.start([])['id']}")]
    before = server.forget_peak()
    seconds = search_all(alice)
    print(f"{LINES:,} lines searched in {sum(seconds):.1f} s by {len(seconds)} requests, "
          f"{max(seconds):.2f} s at most; {server.peak() - before:.0f} MB more memory")  # fmt: skip
    alone = load(server.port, get, GET_SECONDS, connections=1).p95
    fill(bob, LINES_PER_TASK, order)
    # A user searches once at a time.
    with searching(server, alice.key, bob.key):
        beside = load(server.port, get, GET_SECONDS, connections=1).p95
    print(f"p95 of a GET: {alone:.2f} ms alone, {beside:.2f} ms during two searches, "
          f"a ratio of {beside / alone:.2f}")  # fmt: skip
    good = fill(alice, 1_000_000, lambda number: f"page {number} " + "x" * 88 + "\n")
    failed = fill(alice, 1_000_000, lambda number: f"page {number} " + "y" * 88 + "\n")
    before, began = server.forget_peak(), time.perf_counter()
    path = f"/task/{failed['id']}/new-lines?against={good['id']}"
    comparison = alice.call("GET", path).json()
    print(f"two logs of 100 MB compared in {time.perf_counter() - began:.2f} s: "
          f"{len(comparison['lines'])} lines, cut: {comparison['cut']}; "
          f"{server.peak() - before:.0f} MB more memory")  # fmt: skip


def main() -> None:
    pin_load()
    with tempfile.TemporaryDirectory() as folder, ours(Path(folder, "data")) as server:
        measure(server)


if __name__ == "__main__":
    main()
