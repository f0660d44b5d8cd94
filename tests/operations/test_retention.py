"""Retention removes old tasks, logs first, and returns the space to the disk."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import func, insert, select, update

from taskservice.app import create_app
from taskservice.background import removal as retention
from taskservice.background.maintenance import Maintenance
from taskservice.config import Config
from taskservice.database import clock
from taskservice.database.engine import dispose
from taskservice.database.models import Attempt, Delivery, Log, LogChunk, LogWriter
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now, db
from taskservice.services import tasks as removal
from tests.support import receiver as play
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.internals import before_writes, copy_task, end_for_silence, plan_of, reads
from tests.support.maintenance import DAY, count, end, fill, set_back_drops, until_gone
from tests.support.receiver import Receiver
from tests.support.waiting import until

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def app(app: Flask) -> Flask:
    app.config |= {"RETENTION_DAYS": 30.0, "LOG_RETENTION_DAYS": 7.0}
    return app


def test_old_finished_task_goes_with_all_that_belongs_to_it(
    app: Flask, alice: ApiClient, maintenance: Maintenance, receiver: Receiver
) -> None:
    task = alice.start(callback=receiver.url)
    alice.append(task, "one", writer="w")
    end(app, alice, task, days=30.1)
    maintenance.do_round()
    problem(alice.get(f"/task/{task['id']}"), 404)
    set_back_drops(app)
    maintenance.do_round()
    for model in (TaskModel, Log, LogChunk, LogWriter, Delivery, Attempt):
        assert count(app, model) == 0


def test_few_deliveries_go_with_tasks_in_a_transaction(
    app: Flask,
    alice: ApiClient,
    maintenance: Maintenance,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "DELIVERIES_PER_BATCH", 10)
    for _ in range(5):
        end(app, alice, alice.start(callback=receiver.url), days=30.1)
    with app.app_context(), transaction() as connection:
        for delivery in connection.execute(select(Delivery.__table__)).all():
            copies = [delivery._asdict() | {"id": clock.new_id()} for _ in range(3)]
            connection.execute(insert(Delivery), copies)
    assert count(app, Delivery) == 20
    batches: list[int] = []
    remove = removal.remove

    def count_and_remove(connection: Any, task_ids: Any, **options: Any) -> None:
        batches.append(len(task_ids))
        remove(connection, task_ids, **options)

    monkeypatch.setattr(removal, "remove", count_and_remove)
    maintenance.do_round()
    assert batches == [2, 2, 1]
    assert count(app, TaskModel) == count(app, Delivery) == 0


def test_retention_counts_from_the_end_and_keeps_running_tasks(
    app: Flask, alice: ApiClient, bob: ApiClient, maintenance: Maintenance
) -> None:
    young, old, running = alice.start(), alice.start(), alice.start()
    his = bob.start()
    with app.app_context(), transaction() as connection:
        connection.execute(update(TaskModel).values(created_at=database_now(-1000 * DAY)))
    for person, task, days in ((alice, young, 29.9), (alice, old, 30.1), (bob, his, 31)):
        end(app, person, task, days)
    maintenance.do_round()
    listed = alice.get("/task?fields=id").json
    assert listed is not None
    assert {task["id"] for task in listed} == {young["id"], running["id"]}
    assert bob.get("/task").json == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_late_line_that_waits_while_its_log_is_dropped_begins_a_new_log(
    app: Flask, alice: ApiClient, database_url: str
) -> None:
    task = alice.start()
    alice.append(task, "one", "two")
    end_for_silence(app, task)
    is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool:
        with app.app_context(), transaction() as connection:
            values = {"task_ids": [task["id"]], "now": clock.now()}
            connection.execute(retention._EMPTY_LOG, values)
            late = pool.submit(alice.append, task, "late")
            with psycopg.connect(database_url, autocommit=True) as observer:
                until(lambda: observer.execute(is_waiting).fetchone())
            removal.detach_logs(connection, [task["id"]])
        assert late.result()["logCount"] == 3
    after = alice.task(task)
    assert (after["logs"], after["firstLog"]) == (["late"], 3)
    assert expect(alice.get("/task"), 200) == [after]


def test_log_goes_first_and_the_result_stays(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    task = alice.start(input={"mailbox": "office"})
    alice.append(task, "one", "two")
    end(app, alice, task, days=7.1)
    before = alice.task(task)
    etag = alice.get(f"/task/{task['id']}").headers["ETag"]
    maintenance.do_round()
    answer = alice.get(f"/task/{task['id']}", headers={"If-None-Match": etag})
    assert answer.status_code == 200
    after = alice.task(task)
    dropped = {"logs": [], "firstLog": 3, "logCount": 2, "updatedAt": after["updatedAt"]}
    assert after == before | dropped
    set_back_drops(app)
    maintenance.do_round()
    assert (count(app, Log), count(app, LogChunk)) == (0, 0)
    # Nothing is left to do, so nothing changes again.
    etag = alice.get(f"/task/{task['id']}").headers["ETag"]
    maintenance.do_round()
    assert alice.get(f"/task/{task['id']}").headers["ETag"] == etag
    listed = alice.get("/task").json
    assert listed == [after]


def test_young_or_running_log_stays(app: Flask, alice: ApiClient, maintenance: Maintenance) -> None:
    young, running = alice.start(), alice.start()
    for task in (young, running):
        alice.append(task, "one")
    end(app, alice, young, days=6.9)
    maintenance.do_round()
    assert [alice.task(task)["logs"] for task in (young, running)] == [["one"], ["one"]]


def test_task_whose_webhook_is_still_owed_is_left_alone(
    app: Flask, alice: ApiClient, maintenance: Maintenance, receiver: Receiver
) -> None:
    receiver.answer = play.answer(500)
    for days in (30.1, 7.1):
        task = alice.start(callback=receiver.url)
        alice.append(task, "one")
        end(app, alice, task, days)
    before = alice.get("/task").json
    maintenance.do_round()
    assert alice.get("/task").json == before
    with app.app_context(), transaction() as connection:
        failed = {"state": "failed", "next_attempt_at": None, "lease": None, "leased_until": None}
        connection.execute(update(Delivery).values(failed))
    maintenance.do_round()
    (left,) = alice.get("/task").json or []
    assert (left["id"], left["logs"]) == (task["id"], [])


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_task_is_locked_before_it_is_asked_whether_its_webhook_is_owed(
    app: Flask, alice: ApiClient, maintenance: Maintenance, receiver: Receiver
) -> None:
    """Or a redelivery between the question and the lock would be deleted."""
    task = alice.start(callback=receiver.url)
    end(app, alice, task, days=31)
    lock = select(TaskModel.id).with_for_update(skip_locked=True)
    free: list[Any] = []

    def note(statement: str, _: Any) -> None:
        if "EXISTS" in statement and "FROM deliveries" in statement:
            with db.engine.connect() as other:
                free.extend(other.execute(lock).all())
            questions.append(statement)

    questions: list[str] = []
    with before_writes(app, note):
        maintenance.do_round()
    assert (len(questions), free) == (1, [])
    problem(alice.get(f"/task/{task['id']}"), 404)


def test_retention_is_off_by_default(database_url: str, tmp_path: Path) -> None:
    app = create_app(
        Config(
            DATA=tmp_path / "data",
            DATABASE_URL=database_url,
            SECRET_KEY="a secret key for tests, long enough",
        )
    )
    alice = add_user(app, "alice")
    task = alice.start()
    alice.append(task, "one")
    end(app, alice, task, days=10_000)
    before = alice.task(task)
    Maintenance(app).do_round()
    assert alice.task(task) == before
    dispose(app)


def test_name_of_a_start_is_free_again(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    alice.register()
    start = {"json": {"agentId": "summarizer"}, "headers": {"Idempotency-Key": "one"}}
    first = alice.post("/task", **start).json
    assert first is not None
    end(app, alice, first, days=31)
    maintenance.do_round()
    second = alice.post("/task", **start)
    assert "Idempotency-Replayed" not in second.headers
    assert second.json is not None
    assert second.json["id"] != first["id"]


# --- at any size -------------------------------------------------------------------------


def test_more_tasks_than_a_batch_go(
    app: Flask, alice: ApiClient, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "TASKS_PER_BATCH", 20)
    task = alice.start()
    end(app, alice, task, days=31)
    copy_task(app, task, 50)
    until_gone(app, maintenance, TaskModel, 0)


def test_short_and_long_logs_go_together(
    app: Flask, alice: ApiClient, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHUNKS_PER_BATCH", 10)
    kept = alice.start()
    alice.append(kept, "kept")
    for chunks in (1, 0, 35, 2, 10, 11, 1, 30):
        task = alice.start()
        for number in range(chunks):
            alice.append(task, f"line {number}")
        expect(alice.delete(f"/task/{task['id']}"), 200)
    set_back_drops(app)
    until_gone(app, maintenance, Log, 1)
    with app.app_context(), reading() as connection:
        assert connection.scalar(select(func.count()).select_from(LogChunk)) == 1
    assert alice.task(kept)["logs"] == ["kept"]


def files(config: Config) -> int:
    """Bytes of the database and of its write-ahead log."""
    return sum(path.stat().st_size for path in config.DATA.glob("taskservice.db*"))


@on_sqlite
def test_space_comes_back_to_the_disk(
    app: Flask, alice: ApiClient, maintenance: Maintenance, config: Config
) -> None:
    maintenance.do_round()
    empty = files(config)
    task = alice.start()
    fill(alice, task, 100_000, length=300)
    end(app, alice, task, days=8)
    full = files(config)
    assert full > empty + 30_000_000
    maintenance.do_round()
    set_back_drops(app)
    kept = retention.SPARE_BYTES + retention.STEP_PAGES * 4_096 + 500_000

    def is_short_after_a_round() -> bool:
        maintenance.do_round()
        return files(config) < empty + kept

    until(is_short_after_a_round)
    assert alice.task(task)["output"] == {"sum": 15}


@on_sqlite
def test_large_write_ahead_log_is_emptied_after_its_last_reader(
    alice: ApiClient, maintenance: Maintenance, config: Config
) -> None:
    log = config.DATA / "taskservice.db-wal"
    with reader(config):
        fill(alice, alice.start(), 50_000, length=300)
        maintenance.do_round()
        assert log.stat().st_size > retention.LARGE_LOG_BYTES
    maintenance.do_round()
    assert log.stat().st_size == 0


@contextmanager
def reader(config: Config) -> Iterator[None]:
    """A reader that keeps its snapshot of the database during the block."""
    connection = sqlite3.connect(config.DATA / "taskservice.db", isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM tasks").fetchone()
    yield
    connection.close()


@on_sqlite
def test_old_tasks_are_found_by_index(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    statements = reads(app, maintenance.do_round)
    assert [
        plan_of(app, text, values)[0]
        for text, values in statements
        if "FROM tasks" in text and "task_names" not in text
    ] == [
        "SEARCH tasks USING COVERING INDEX tasks_by_end (user_id=? AND finished_at<?)",
        "SEARCH tasks USING INDEX tasks_with_old_log (finished_at>? AND finished_at<?)",
    ]
