"""Retention removes very much while others write."""

import threading

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database.models import Log
from taskservice.database.models import Task as TaskModel
from tests.support.api_client import ApiClient
from tests.support.internals import copy_task
from tests.support.maintenance import end, fill, set_back_drops, until_gone
from tests.support.waiting import until


@pytest.fixture
def app(app: Flask) -> Flask:
    app.config |= {"RETENTION_DAYS": 30.0, "LOG_RETENTION_DAYS": 7.0}
    return app


class Writer(threading.Thread):
    """Appends line after line; a line that is refused, after 5 s, is an error of the test."""

    def __init__(self, person: ApiClient) -> None:
        super().__init__()
        self._person, self._task = person, person.start()
        self._done = threading.Event()
        self.written = 0

    def run(self) -> None:
        while not self._done.wait(0.005):
            self._person.append(self._task, "a line")
            self.written += 1

    def __enter__(self) -> "Writer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


@pytest.mark.parametrize(("tasks", "lines"), [(100, 10_000), (2_000, 50_000)])
def test_no_writer_is_refused_while_much_is_removed(
    app: Flask, alice: ApiClient, maintenance: Maintenance, tasks: int, lines: int
) -> None:
    logged, done = alice.start(), alice.start()
    fill(alice, logged, lines)
    end(app, alice, logged, days=31)
    end(app, alice, done, days=31)
    copy_task(app, done, tasks)
    with Writer(alice) as writer:
        until(lambda: writer.written)
        until_gone(app, maintenance, TaskModel, 1)
        set_back_drops(app)
        until_gone(app, maintenance, Log, 1)
    assert writer.written > 5
