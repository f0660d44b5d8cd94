"""How many SQL statements and connections the hot paths use; neither number may grow."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from taskservice import resources
from taskservice.database.engine import Database
from tests.support.api_client import ApiClient, expect
from tests.support.internals import before_reads, in_use
from tests.support.statements import used
from tests.support.waiting import until


def test_hot_paths_use_few_statements_and_one_connection(
    app: Flask, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    alice.append(task, "one", "two")
    for _ in range(8):
        alice.append(alice.start(), "a line")
    path = f"/task/{task['id']}"
    same = {"If-None-Match": alice.get(path).headers["ETag"]}
    append = partial(alice.post, f"{path}/logs", json={"logs": ["a line"]})
    start = partial(alice.post, "/task", json={"agentId": "summarizer"})
    child = {"agentId": "summarizer", "parentId": task["id"], "labels": {"a": "1", "b": "2"}}
    alice.register("translator")
    # The first read of each request is for the key.
    for name, request, status, counts in (
        ("one task", partial(alice.get, path), 200, (1, 2, 0)),
        ("its fields", partial(alice.get, f"{path}?fields=id,status"), 200, (1, 2, 0)),
        ("304", partial(alice.get, path, headers=same), 304, (1, 2, 0)),
        ("page", partial(alice.get, "/task?limit=9"), 200, (1, 2, 0)),
        ("append", append, 201, (1, 1, 3)),
        ("start", start, 201, (1, 1, 3)),
        # One for the parent, and one for each label.
        ("child with labels", partial(alice.post, "/task", json=child), 201, (1, 1, 6)),
        ("page by label", partial(alice.get, "/task?limit=9&label=a:1"), 200, (1, 4, 0)),
        ("agents", partial(alice.get, "/agent"), 200, (1, 2, 0)),
        # One for each agent.
        ("agents' health", partial(alice.get, "/agent?expand=health"), 200, (1, 4, 0)),
        ("health", partial(alice.get, "/agent/translator?expand=health"), 200, (1, 3, 0)),
    ):
        with subtests.test(name):
            answers: list[TestResponse] = []
            assert used(app, lambda: answers.append(request())) == counts  # noqa: B023
            expect(answers[0], status)


def test_no_connection_is_held_while_an_answer_waits_or_streams(
    app: Flask, alice: ApiClient, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    path = f"/task/{task['id']}"
    alice.append(task, *["a line of this log " * 8] * 20_000)
    reads = resources.find(Database, app).reads
    for url in (path, "/task", f"{path}/events"):
        with subtests.test(url), alice.get(url, buffered=False) as response:
            next(response.iter_encoded())
            # The watcher has its own connection, which it takes from the pool at first.
            until(lambda: in_use(reads) == 0)
    has_read = threading.Event()

    def note(sql: str, _parameters: Any) -> None:
        if "FROM tasks" in sql:
            has_read.set()

    wait = partial(alice.get, f"{path}?fields=status", headers={"Prefer": "wait=30"})
    with ThreadPoolExecutor(1) as threads:
        with before_reads(app, note):
            waiter = threads.submit(wait)
            assert has_read.wait(30)
        until(lambda: in_use(reads) == 0)
        assert not waiter.done()
        alice.report(task, status="complete")
        assert expect(waiter.result(), 200) == {"status": "complete"}
