"""Maintenance: the jobs of the background loop."""

import sqlite3
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from flask import Flask

from taskservice import resources
from taskservice.background import maintenance
from taskservice.background.maintenance import Maintenance
from taskservice.background.removal import JOB_SECONDS
from taskservice.database.transactions import read_snapshot
from taskservice.services import deliveries as delivery_service
from tests.support.api_client import ApiClient, expect
from tests.support.internals import reads
from tests.support.service import Service
from tests.support.waiting import until


def key_of(person: ApiClient) -> dict[str, object]:
    key: dict[str, object] = expect(person.get("/user"), 200)["key"]
    return key


def test_last_use_of_a_key_is_kept_to_the_minute(app: Flask, alice: ApiClient) -> None:
    assert key_of(alice)["lastUsedAt"] is None
    Maintenance(app).do_round()
    last_used_at = str(key_of(alice)["lastUsedAt"])
    assert last_used_at.endswith(":00.000Z")
    assert last_used_at[:13] in (str(key_of(alice)["createdAt"])[:13], last_used_at[:13])


def test_failing_chore_does_not_stop_the_others(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("as if the disk were gone")

    monkeypatch.setattr(maintenance, "JOBS", (fail, *maintenance.JOBS))
    key_of(alice)
    Maintenance(app).do_round()
    assert key_of(alice)["lastUsedAt"] is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_next_round_comes_in_time_however_long_the_chores_take(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, begun = threading.Event(), []

    def job() -> None:
        begun.append(time.monotonic())
        time.sleep(0.4)

    monkeypatch.setattr(resources, "stopping", stop)
    monkeypatch.setattr(maintenance, "JOBS", (job,))
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.5)
    loop = Maintenance(app)
    loop.start()
    until(lambda: len(begun) == 5)
    stop.set()
    loop.join()
    gaps = [later - earlier for earlier, later in pairwise(begun[:5])]
    # On a busy machine some may come late; one after each pause would come after 0.9 s.
    assert min(gaps) < 0.7


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_unfinished_job_continues_immediately(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, begun = threading.Event(), []

    def job() -> bool:
        # The round after the last of these would come in an hour.
        monkeypatch.setattr(maintenance, "ROUND_SECONDS", 3_600.0)
        begun.append(time.monotonic())
        return len(begun) < 5

    monkeypatch.setattr(resources, "stopping", stop)
    monkeypatch.setattr(maintenance, "JOBS", (job,))
    monkeypatch.setattr(maintenance, "ROUND_SECONDS", 0.0)
    loop = Maintenance(app)
    loop.start()
    until(lambda: len(begun) == 5)
    stop.set()
    loop.join()
    # At the stop, each job is done once more.
    assert len(begun) == 6


def test_chores_with_a_backlog_are_done_before_the_next_round() -> None:
    """All calls of `in_batches` in a round."""
    assert 8 * JOB_SECONDS < 0.8 * maintenance.ROUND_SECONDS


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_uses_are_written_down_when_the_service_stops(service: Service, data_folder: Path) -> None:
    service.add_user().request("GET", "/user")
    assert service.stop() == 0
    connection = sqlite3.connect(data_folder / "taskservice.db")
    ((last_used_at,),) = connection.execute("SELECT last_used_at FROM api_keys").fetchall()
    connection.close()
    assert last_used_at is not None


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_what_is_due_is_found_by_index_on_postgresql(app: Flask) -> None:
    """A scan of all rows would take a second of each round where there are a million."""
    statements = reads(app, Maintenance(app).do_round)
    with app.app_context():
        statements += reads(app, delivery_service.seconds_until_due)
        with read_snapshot() as connection:
            # Otherwise it scans a table that has only a few rows.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plans = [
                "\n".join(connection.exec_driver_sql(f"EXPLAIN {sql}", values).scalars())
                for sql, values in statements
                if sql.startswith("SELECT")
            ]
    for condition in (
        "(dropped_at < ", "(leased_until > ", "(next_attempt_at > ", "(expires_at <= ",
    ):  # fmt: skip
        assert any(f"Index Cond: {condition}" in plan for plan in plans)
