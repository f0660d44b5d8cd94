"""Writers of SQLite that wait for one another share one commit, and each learns its outcome."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
from flask import Flask
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from taskservice import resources
from taskservice.database import writer_queue
from taskservice.database.engine import Database
from taskservice.database.transactions import transaction
from taskservice.database.types import db
from tests.support.api_client import ApiClient, expect, problem
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

T = TypeVar("T")
WRITERS = 16


@pytest.fixture(autouse=True)
def patient_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_queue, "MAX_GROUP_SECONDS", 60.0)


@pytest.fixture
def commits(app: Flask) -> list[Connection]:
    """Each commit of a write."""
    seen: list[Connection] = []
    with app.app_context():
        event.listen(db.engine, "commit", seen.append)
    return seen


def has_waiting(app: Flask, count: int) -> bool:
    queue = resources.find(Database, app).writer_queue
    assert queue is not None
    return queue._waiting == count


def write_together(
    app: Flask, writers: list[Callable[[], T]], first: Callable[[Connection], Any] = repr
) -> tuple[OperationalError | None, list[T]]:
    """Let these wait while `first` writes, then follow; its error, and what the others return."""
    error = None
    with ThreadPoolExecutor(len(writers)) as pool:
        futures = []
        try:
            with app.app_context(), transaction() as connection:
                for number, write in enumerate(writers, 1):
                    futures.append(pool.submit(write))
                    until(partial(has_waiting, app, number))
                first(connection)
        except OperationalError as raised:
            error = raised
        return error, [future.result() for future in futures]


def appending(alice: ApiClient, task: dict[str, Any], line: str) -> Callable[[], Any]:
    client = ApiClient(alice.app, alice.name, alice.key)
    return lambda: client.post(f"/task/{task['id']}/logs", json={"logs": [line]})


def test_writers_that_wait_share_one_commit(
    app: Flask, alice: ApiClient, commits: list[Connection]
) -> None:
    task = alice.start()
    lines = [str(number) for number in range(WRITERS)]
    commits.clear()
    error, answers = write_together(app, [appending(alice, task, line) for line in lines])
    assert error is None
    for answer in answers:
        expect(answer, 201)
    assert len(commits) == 1
    assert set(alice.task(task)["logs"]) == set(lines)


def test_write_that_waits_for_no_other_is_committed_at_once(
    alice: ApiClient, commits: list[Connection]
) -> None:
    task = alice.start()
    commits.clear()
    alice.append(task, "a line")
    assert len(commits) == 1


def test_refused_write_undoes_nothing_of_the_others(app: Flask, alice: ApiClient) -> None:
    task, finished = alice.start(), alice.start()
    alice.report(finished, status="complete")
    writers = [appending(alice, target, "a line") for target in [task, finished] * 5]
    error, answers = write_together(app, writers)
    assert error is None
    assert [answer.status_code for answer in answers] == [201, 409] * 5
    assert alice.task(task)["logs"] == ["a line"] * 5
    assert alice.task(finished)["logs"] == []


def test_first_writer_that_is_refused_leaves_the_others_their_commit(
    app: Flask, alice: ApiClient
) -> None:
    task = alice.start()

    def refuse(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE tasks SET name = 'other'")
        raise OperationalError("refused", None, Exception())

    error, answers = write_together(app, [appending(alice, task, "a line")] * 3, refuse)
    assert error is not None
    for answer in answers:
        expect(answer, 201)
    assert alice.task(task)["logs"] == ["a line"] * 3
    assert alice.task(task)["name"] == task["name"]


def test_commit_that_fails_is_told_to_all_and_stores_nothing(app: Flask, alice: ApiClient) -> None:
    task = alice.start()

    def break_a_constraint(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.exec_driver_sql("UPDATE tasks SET agent_id = 'none'")

    writers = [appending(alice, alice.start(), "lost") for _ in range(WRITERS)]
    error, answers = write_together(app, writers, break_a_constraint)
    assert "FOREIGN KEY" in str(error)
    for answer in answers:
        problem(answer, 503)
    assert alice.task(task) == task
    alice.append(task, "a line")
    assert alice.task(task)["logs"] == ["a line"]


def test_rollback_by_sqlite_itself_is_told_to_all(app: Flask, alice: ApiClient) -> None:
    """As on a full disk: SQLite then rolls back all that the transaction has written."""
    task = alice.start()

    def rename(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE tasks SET name = 'other'")

    def roll_back() -> str:
        with app.app_context(), pytest.raises(OperationalError) as raised, transaction() as later:
            later.exec_driver_sql("INSERT OR ROLLBACK INTO users SELECT * FROM users")
        return str(raised.value)

    error, answers = write_together(app, [roll_back], rename)
    assert "rolled back" in str(error)
    assert "rolled back" in answers[0]
    assert alice.task(task) == task
    alice.report(task, name="other")
    assert alice.task(task)["name"] == "other"


def test_lost_connection_is_told_and_the_others_write(app: Flask, alice: ApiClient) -> None:
    task = alice.start()
    writers = [appending(alice, task, "a line")] * 3
    error, answers = write_together(app, writers, lambda connection: connection.invalidate())
    assert error is not None
    for answer in answers:
        expect(answer, 201)
    assert alice.task(task)["logs"] == ["a line"] * 3


def test_writers_that_give_up_at_any_time_leave_nothing_half_done(
    app: Flask, alice: ApiClient
) -> None:
    database = resources.find(Database, app)
    queue, lock = database.writer_queue, threading.Lock()
    assert queue is not None
    stored: list[str] = []
    refused: list[str] = []

    def write(writer: int) -> None:
        chance = random.Random(writer)
        with app.app_context():
            for number in range(60):
                name = f"{writer}-{number}"
                try:
                    seconds = chance.uniform(0, 0.01)
                    with queue.transaction(database.writes, seconds) as connection:
                        connection.exec_driver_sql(
                            "INSERT INTO users VALUES (?, ?, '2026')", (name, name)
                        )
                except OperationalError:
                    outcome = refused
                else:
                    outcome = stored
                with lock:
                    outcome.append(name)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(write, number) for number in range(8)]:
            future.result()
    assert stored
    assert refused
    with app.app_context(), transaction() as connection:
        names = connection.exec_driver_sql("SELECT id FROM users WHERE id LIKE '%-%'").scalars()
        assert {name for name in names if len(name) < 10} == set(stored)
