"""A database that does not answer: 503, no partial writes, and recovery afterwards."""

import fcntl
import os
import signal
import sqlite3
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy.exc import IntegrityError, OperationalError

from taskservice import resources
from taskservice.config import Config
from taskservice.database import engine, transactions
from taskservice.database.engine import Database, dispose
from taskservice.database.types import db
from tests.support.api_client import ApiClient, expect, problem
from tests.support.apps import new_app
from tests.support.concurrency import is_free
from tests.support.internals import set_for_database
from tests.support.marks import one_database, only_postgresql
from tests.support.mcp import TASKS, McpClient
from tests.support.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def app(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """The app; its writers time out after 0.6 s."""
    for module in (engine, transactions):
        monkeypatch.setattr(module, "BUSY_SECONDS", 0.6)
    with new_app(config) as app:
        yield app


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_locked_database_is_503_and_nothing_is_half_written(
    alice: ApiClient, data_folder: Path
) -> None:
    task = alice.start()
    path = f"/task/{task['id']}"
    other = sqlite3.connect(data_folder / "taskservice.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for response in (
        alice.post("/task", json={"agentId": "summarizer"}),
        alice.post(f"{path}/logs", json={"logs": ["a line"]}),
        alice.patch(path, json={"status": "complete"}),
        alice.delete(path),
        alice.put("/agent/other", json={}),
    ):
        body = problem(response, 503)
        assert int(response.headers["Retry-After"]) > 0
        assert body["code"] == "unavailable"
        assert "locked" not in body["detail"]
    # Readers do not wait.
    assert expect(alice.get("/task"), 200) == [task]
    other.execute("ROLLBACK")
    other.close()
    alice.append(task, "a line")
    assert alice.task(task)["logs"] == ["a line"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_call_of_a_tool_is_503_while_the_database_is_locked(
    alice: ApiClient, data_folder: Path
) -> None:
    alice.register(tool=True)
    mcp = McpClient(alice, TASKS)
    with sqlite3.connect(data_folder / "taskservice.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = mcp.modern("tools/call", {"name": "summarizer"})
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert "sqlite" not in str(answer.json).lower()
        other.execute("ROLLBACK")
    other.close()
    assert mcp.call("summarizer")["resultType"] == "task"
    assert len(expect(alice.get("/task"), 200)) == 1


def test_lock_held_on_a_task_is_503(app: Flask, alice: ApiClient) -> None:
    """PostgreSQL waits for the row, SQLite for its only writer."""
    task = alice.start()
    with app.app_context(), transactions.transaction() as connection:
        connection.exec_driver_sql("UPDATE tasks SET name = name")
        problem(alice.patch(f"/task/{task['id']}", json={"name": "other"}), 503)
    assert alice.report(task, name="other")["name"] == "other"


@contextmanager
def other_connection(url: str, name: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, application_name=name) as connection:
        yield connection
        connection.rollback()


@only_postgresql
def test_locked_table_is_503_for_readers_too_and_then_all_is_well(
    alice: ApiClient, database_url: str
) -> None:
    task = alice.start()
    with other_connection(database_url, "locks") as other:
        for table in ("api_keys", "tasks", "users"):
            other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            for method, path in (("GET", "/task"), ("GET", "/user"), ("PUT", "/agent/new")):
                response = alice.request(method, path)
                if response.status_code == 503:
                    problem(response, 503)
            problem(alice.get("/user"), 503) if table != "tasks" else None
            other.rollback()
            assert expect(alice.get("/task"), 200) == [task]
    # No statement keeps waiting in the server after its client has stopped waiting.
    with other_connection(database_url, "looks") as other:
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        until(lambda: other.execute(waiting).fetchone() == (0,))


@only_postgresql
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_server_whose_processes_are_stopped_is_503(
    app: Flask, alice: ApiClient, database_url: str, method: str
) -> None:
    task = alice.start()
    stopped = backends(app, database_url)
    assert stopped
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(3):
            response = alice.request(method, f"/task/{task['id']}{'/cancel' * (method == 'POST')}")
            assert response.status_code in (200, 503)
        assert app.test_client().get("/livez").status_code == 200
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
    assert alice.start()["status"] == "running"


@only_postgresql
def test_connections_that_the_server_has_ended_are_replaced(
    app: Flask, alice: ApiClient, database_url: str
) -> None:
    """As a restart of the server ends them, while nothing uses them."""
    task = alice.start()
    for _ in range(2):
        # One that reads, and one that writes.
        with app.app_context(), transactions.reading() as reader:
            ended = [reader.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()]
        with app.app_context(), transactions.transaction() as writer:
            ended.append(writer.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        with other_connection(database_url, "looks") as other:
            other.execute("SELECT pg_terminate_backend(unnest(%s::int[]))", (ended,))
        until(lambda: not set(ended) & set(backends(app, database_url)))  # noqa: B023
        alice.append(task, "a line")
        assert alice.task(task)["logs"][-1] == "a line"


@one_database
def test_file_that_was_removed_before_its_first_use_is_named_as_other_failures(
    app: Flask, config: Config
) -> None:
    """Also for the driver's own connections: otherwise maintenance would log a traceback."""
    (config.DATA / "taskservice.db").unlink()
    with app.app_context(), pytest.raises(OperationalError):
        db.engine.raw_connection()


@only_postgresql
def test_after_a_lost_connection_no_kept_one_is_used(
    app: Flask, alice: ApiClient, database_url: str
) -> None:
    """Each might be lost too, and a request would wait for it."""
    reads = resources.find(Database, app).reads
    first, second = reads.acquire(), reads.acquire()
    kept = second.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    reads.release(second)
    first.invalidate()
    reads.release(first)
    until(lambda: kept not in backends(app, database_url))
    expect(alice.get("/user"), 200)


@only_postgresql
def test_server_that_is_read_only_is_503_for_writers_alone(app: Flask, alice: ApiClient) -> None:
    """As after a failover, or where the provider's disk is full."""
    task = alice.start()
    path = f"/task/{task['id']}"
    set_for_database(app, "default_transaction_read_only", "on")
    try:
        for method, where, body in (
            ("POST", "/task", {"agentId": "summarizer"}),
            ("POST", f"{path}/logs", {"logs": ["a line"]}), ("PATCH", path, {"status": "complete"}),
            ("DELETE", path, None), ("PUT", "/agent/other", {}),
            ("POST", "/key", {"name": "other"}), ("POST", "/callback-secret", None),
        ):  # fmt: skip
            response = alice.request(method, where, json=body)
            assert int(response.headers["Retry-After"]) > 0
            problem(response, 503)
        assert expect(alice.get("/task"), 200) == [task]
    finally:
        set_for_database(app, "default_transaction_read_only", "off")
    alice.append(task, "a line")


@only_postgresql
def test_values_of_a_failed_write_are_in_no_log(
    app: Flask, alice: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL tells of a row that it refuses all that is in it."""
    alice.register()
    change = "ALTER TABLE tasks {} CONSTRAINT of_a_test"
    with app.app_context(), transactions.transaction() as connection:
        connection.exec_driver_sql(f"{change.format('ADD')} CHECK (name <> 'refused')")
    try:
        body = {"agentId": "summarizer", "name": "refused", "input": {"secret": "hunter2"}}
        problem(alice.post("/task", json=body), 500)
    finally:
        with app.app_context(), transactions.transaction() as connection:
            connection.exec_driver_sql(change.format("DROP"))
    assert "23514" in caplog.text
    assert "of_a_test" in caplog.text
    assert "hunter2" not in caplog.text
    # The loops log a traceback, which must not have the values either.
    row = (uuid4(), "hunter2")
    with (
        app.app_context(),
        pytest.raises(IntegrityError) as failed,
        transactions.transaction() as connection,
    ):
        connection.exec_driver_sql("INSERT INTO users (id, name) VALUES (%s, %s)", row)
    told = "".join(traceback.format_exception(failed.value))
    assert "created_at" in told
    assert str(row[0]) not in told


def backends(app: Flask, url: str) -> list[int]:
    """The server's processes for the connections that the app has open."""
    with other_connection(url, "looks") as other:
        rows = other.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name <> 'looks'"
        )
        return [pid for (pid,) in rows]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_process_suspended_in_a_write_delays_others_only_briefly(
    alice: ApiClient, data_folder: Path
) -> None:
    task = alice.start()
    with open(data_folder / "taskservice.db-writers", "rb+") as queue:
        # As if a process got a SIGSTOP during its turn.
        fcntl.flock(queue, fcntl.LOCK_EX)
        for _ in range(3):
            problem(alice.post(f"/task/{task['id']}/logs", json={"logs": ["a line"]}), 503)
        # Readers do not wait.
        assert alice.task(task)["logCount"] == 0
        fcntl.flock(queue, fcntl.LOCK_UN)
    alice.append(task, "a line")
    assert alice.task(task)["logs"] == ["a line"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_turn_that_comes_in_time_is_taken(
    alice: ApiClient, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "BUSY_SECONDS", PATIENCE_SECONDS)
    task = alice.start()
    asked = threading.Event()
    monkeypatch.setattr("taskservice.database.files.time.sleep", lambda _: asked.set())
    with (
        open(data_folder / "taskservice.db-writers", "rb+") as queue,
        ThreadPoolExecutor(1) as pool,
    ):
        fcntl.flock(queue, fcntl.LOCK_EX)
        append = pool.submit(alice.append, task, "a line")
        assert asked.wait(PATIENCE_SECONDS)
        fcntl.flock(queue, fcntl.LOCK_UN)
        append.result()
        assert is_free(queue)
    assert alice.task(task)["logs"] == ["a line"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_unreachable_database_is_503_while_the_process_stays_live(
    app: Flask, alice: ApiClient, data_folder: Path
) -> None:
    client = app.test_client()
    until(lambda: client.get("/readyz").status_code == 200)
    engine.dispose(app)
    gone = data_folder.with_name("gone")
    data_folder.rename(gone)
    assert problem(alice.get("/task"), 503)
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200
    gone.rename(data_folder)
    assert expect(alice.get("/task"), 200) == []


# What an operator does by mistake, and how it is undone.
GONE = {
    "table": (
        "ALTER TABLE deliveries RENAME TO away", "ALTER TABLE away RENAME TO deliveries"
    ),
    "column": (
        "ALTER TABLE tasks RENAME callback_url TO away",
        "ALTER TABLE tasks RENAME away TO callback_url",
    ),
    "schema": ("ALTER SCHEMA public RENAME TO away", "ALTER SCHEMA away RENAME TO public"),
    "right": ("SET ROLE", "RESET ROLE"),
}  # fmt: skip


def test_missing_table_column_schema_or_right_is_503(
    app: Flask, alice: ApiClient, database_url: str, subtests: pytest.Subtests
) -> None:
    task = alice.start()
    paths = [f"/task/{task['id']}", f"/task/{task['id']}/deliveries"]
    for name, (take, give_back) in GONE.items():
        if name in ("schema", "right") and database_url.startswith("sqlite"):
            continue
        with subtests.test(name):
            change_database(app, database_url, take)
            answers = [alice.get(path) for path in paths]
            change_database(app, database_url, give_back)
            assert {200, 503} >= {answer.status_code for answer in answers}
            for answer in answers:
                if answer.status_code != 200:
                    assert problem(answer, 503)["code"] == "unavailable"
            assert 503 in {answer.status_code for answer in answers}
            assert expect(alice.get(paths[0]), 200) == task


def altered(app: Flask, change: str) -> bool:
    """Whether this succeeded; it has no more patience than the writers of these tests."""
    with suppress(OperationalError), app.app_context():
        with transactions.transaction() as connection:
            connection.exec_driver_sql(change)
        return True
    return False


def change_database(app: Flask, url: str, change: str) -> None:
    if "ROLE" not in change:
        until(lambda: altered(app, change))
        return
    # The setting is for new connections.
    dispose(app)
    with psycopg.connect(url.replace("+psycopg", ""), options="-c role=none") as connection:
        to = f"DATABASE {connection.info.dbname}"
        how = "RESET role" if change.startswith("RESET") else "SET role = pg_monitor"
        connection.execute(f"ALTER {to} {how}")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_missing_file_at_the_first_use_is_not_created(
    app: Flask, alice: ApiClient, data_folder: Path
) -> None:
    task = alice.start()
    # As in a worker process that has not used it yet.
    engine.dispose(app)
    file, away = data_folder / "taskservice.db", data_folder / "away"
    file.rename(away)
    assert problem(alice.get(f"/task/{task['id']}"), 503)
    assert not file.exists()
    away.rename(file)
    assert alice.task(task) == task
