"""For operators: livez, readyz, metrics of all workers, and request IDs."""

import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import requests
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from taskservice.app import create_app
from taskservice.background.maintenance import Maintenance
from taskservice.config import Config
from taskservice.database import clock, migrations
from taskservice.database.engine import dispose
from taskservice.database.models import Delivery
from taskservice.database.transactions import transaction
from taskservice.operations import metrics
from taskservice.operations.health import (
    _COUNTS,
    NO_BACKGROUND_WORK,
    SERVER_LOCK,
    DatabaseProbe,
    is_running,
)
from taskservice.operations.metrics import RECORDS, SLOTS, RequestCounts
from taskservice.operations.request_log import configure_logging
from taskservice.serving.settings import gunicorn_settings
from tests.support.api_client import ApiClient, RemoteClient, expect, problem
from tests.support.databases import Databases
from tests.support.fork_server import ForkedPopen
from tests.support.internals import hang, plan_of, run_sql, set_for_database
from tests.support.maintenance import DAY, fall_silent
from tests.support.marks import only_postgresql
from tests.support.mcp import McpClient
from tests.support.mounts import fill, read_only, small_disk
from tests.support.plain_browser import hidden_text
from tests.support.pseudo_terminal import NASTY, SHOWN, obeyed
from tests.support.receiver import Receiver, answer
from tests.support.service import COMMAND, Service
from tests.support.waiting import PATIENCE_SECONDS, until

REQUESTS = "taskservice_requests_total"
DURATION = "taskservice_request_duration_seconds"
PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4"

only_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Scrape:
    """What Prometheus makes of the text: values by the sample's name and labels."""

    def __init__(self, shown: str) -> None:
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(shown)
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def requests(self, route: str, method: str = "GET", status: int = 200) -> float:
        return self.get(REQUESTS, route=route, method=method, status=str(status))

    def by(self, label: str, name: str) -> dict[str, float]:
        """Of one metric with one label, its values by that."""
        return {dict(labels)[label]: value for (its, labels), value in self.samples.items()
                if its == name}  # fmt: skip


def scrape(app: Flask) -> Scrape:
    response = app.test_client().get("/metrics")
    assert response.status_code == 200
    return Scrape(response.get_data(as_text=True))


def is_ready(app: Flask) -> bool:
    return app.test_client().get("/readyz").status_code == 200


def refused_as_unready(app: Flask) -> dict[str, Any]:
    """The problem of a service that lives but is not ready, as its metrics soon say too."""
    client = app.test_client()
    began = time.monotonic()
    response = client.get("/readyz")
    assert time.monotonic() - began < 3
    assert int(response.headers["Retry-After"]) > 0
    assert client.get("/livez").status_code == 200
    assert scrape(app).get("taskservice_database_up") == 0
    return problem(response, 503)


# --- metrics -----------------------------------------------------------------------------


def test_metrics_are_prometheus_text_without_a_key(app: Flask) -> None:
    client = app.test_client()
    for accept in ("*/*", PROMETHEUS, "text/plain", "text/plain;version=0.0.4"):
        response = client.get("/metrics", headers={"Accept": accept})
        assert response.status_code == 200, accept
        assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"
    built = scrape(app).by("version", "taskservice_build_info")
    assert list(built.values()) == [1.0]


def test_requests_are_counted_by_rule_method_and_status(app: Flask, alice: ApiClient) -> None:
    task, before = alice.start(), scrape(app)
    for _ in range(3):
        alice.task(task)
    alice.get("/task/nothing")
    alice.get("/task", query_string={"nothing": "1"})
    app.test_client().get("/api/v1/task")
    after = scrape(app)

    def counted(*labels: Any) -> float:
        return after.requests(*labels) - before.requests(*labels)

    assert counted("/api/v1/task/<task_id>", "GET", 200) == 3
    assert counted("/api/v1/task/<task_id>", "GET", 404) == 1
    assert counted("/api/v1/task", "GET", 422) == 1
    assert counted("/api/v1/task", "GET", 401) == 1
    assert counted("/metrics", "GET", 200) == 1
    assert not any(task["id"] in str(labels) for _, labels in after.samples)


def test_latency_is_a_histogram_by_rule(app: Flask, alice: ApiClient) -> None:
    route, before = "/api/v1/user", scrape(app)
    for _ in range(5):
        alice.get("/user")
    after = scrape(app)
    buckets = [value for (name, labels), value in after.samples.items()
               if name == f"{DURATION}_bucket" and ("route", route) in labels]  # fmt: skip
    count = after.get(f"{DURATION}_count", route=route)
    assert count - before.get(f"{DURATION}_count", route=route) == 5
    assert buckets == sorted(buckets)
    assert buckets[-1] == count
    assert 0 < after.get(f"{DURATION}_sum", route=route) < 60


def test_invented_methods_and_paths_share_one_series(app: Flask) -> None:
    client, before = app.test_client(), scrape(app)
    for number in range(20):
        client.open(f"/nothing-{number}", method=f"FOO{number}")
    after = scrape(app)
    assert after.requests("other", "other", 404) - before.requests("other", "other", 404) == 20
    assert len(after.samples) - len(before.samples) < 50


def test_tasks_and_deliveries_are_counted(app: Flask, alice: ApiClient, receiver: Receiver) -> None:
    ended = [alice.start(callback=receiver.url) for _ in range(3)]
    alice.start()
    alice.report(ended[0], status="complete")
    alice.report(ended[1], status="error", error={"type": "failed", "message": "no"})
    alice.report(alice.start(callback=receiver.url), status="complete")
    set_state(app, "failed", count=1)
    until(lambda: scrape(app).by("status", "taskservice_tasks")
          == {"running": 2, "complete": 2, "error": 1})  # fmt: skip
    states = scrape(app).by("state", "taskservice_deliveries")
    assert states == {"pending": 0, "delivered": 2, "failed": 1, "cancelled": 0}


def test_deliveries_of_hooks_are_counted(app: Flask, alice: ApiClient, receiver: Receiver) -> None:
    hook = {"target": receiver.url, "events": ["task.ended", "task.failed"]}
    expect(alice.post("/hook", json=hook), 201)
    alice.report(alice.start(claim=True), status="error")
    until(lambda: scrape(app).by("state", "taskservice_deliveries")["pending"] == 2)


def test_agents_are_counted_by_state(app: Flask, alice: ApiClient) -> None:
    for agent_id, status in {"good": "complete", "bad": "error", "worse": "error"}.items():
        alice.report(alice.start(agent_id, claim=True), status=status)
    alice.register("new")
    run_sql(app, "UPDATE agents SET late_since = '2026-11-24T13:36:00Z' WHERE id = 'bad'")
    until(lambda: scrape(app).by("state", "taskservice_agents")
          == {"ok": 1, "broken": 2, "late": 1})  # fmt: skip


def test_tasks_that_hang_are_counted(app: Flask, alice: ApiClient) -> None:
    for _ in range(2):
        hang(app, alice.start(claim=True))
    until(lambda: scrape(app).get("taskservice_tasks_hanging") == 2)


def set_state(app: Flask, state: str, count: int) -> None:
    with app.app_context(), transaction() as connection:
        ids = connection.execute(text("SELECT id FROM deliveries ORDER BY id")).scalars().all()
        for delivery_id in ids[:count]:
            connection.execute(
                text("UPDATE deliveries SET state = :state WHERE id = :id"),
                {"state": state, "id": delivery_id},
            )


def test_oldest_due_delivery_has_an_age_unless_it_is_leased(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(500)
    alice.report(alice.start(callback=receiver.url), status="complete")

    def age() -> float:
        return scrape(app).get("taskservice_oldest_due_delivery_age_seconds")

    def put_off(seconds: float, leased_for: float | None = None) -> None:
        values = {
            "next_attempt_at": clock.now(seconds),
            "lease": leased_for and clock.new_id(),
            "leased_until": leased_for and clock.now(leased_for),
        }
        with app.app_context(), transaction() as connection:
            connection.execute(update(Delivery).values(values))

    put_off(+60)
    until(lambda: scrape(app).by("state", "taskservice_deliveries")["pending"] == 1)
    assert age() == 0
    put_off(-100)
    assert 100 <= until(age) < 200
    put_off(-100, leased_for=60)
    until(lambda: age() == 0)
    # The lease of a process that died has run out.
    put_off(-100, leased_for=-60)
    assert 100 <= until(age) < 200


def test_metrics_have_the_size_of_the_database(
    app: Flask, alice: ApiClient, database_url: str
) -> None:
    sizes = scrape(app).by("part", "taskservice_database_size_bytes")
    assert set(sizes) == ({"database", "wal"} if "sqlite" in database_url else {"database"})
    assert min(sizes.values()) > 0


def test_metrics_have_the_time_of_the_last_backup(app: Flask, data_folder: Path) -> None:
    name = "taskservice_last_backup_timestamp_seconds"
    # Where no backup was made, an alert would never end.
    assert (name, frozenset[Any]()) not in scrape(app).samples
    (data_folder / "last_backup").touch()
    os.utime(data_folder / "last_backup", (1_700_000_000, 1_700_000_000))
    assert scrape(app).get(name) == 1_700_000_000


@only_sqlite
def test_counts_of_a_large_database_read_indexes_only(app: Flask) -> None:
    steps = plan_of(app, str(_COUNTS))
    scans = [step for step in steps if step.startswith("SCAN") and "CONSTANT ROW" not in step]
    assert scans
    assert all("INDEX" in step for step in scans), steps
    # Only counts without a condition read a whole index, and these indexes have few rows.
    assert not [step for step in scans if "tasks_by" in step], steps


@only_sqlite
def test_metrics_without_a_database_are_only_of_the_process(
    app: Flask, alice: ApiClient, data_folder: Path
) -> None:
    assert scrape(app).get("taskservice_database_up") == 1
    dispose(app)
    gone = data_folder.with_name("gone")
    data_folder.rename(gone)
    until(lambda: scrape(app).get("taskservice_database_up") == 0)
    down = scrape(app)
    assert down.by("status", "taskservice_tasks") == {}
    assert down.requests("/metrics") > 0
    gone.rename(data_folder)
    until(lambda: scrape(app).get("taskservice_database_up") == 1)


def test_counts_without_a_free_record_are_harmless() -> None:
    counts = RequestCounts()
    for status in range(RECORDS + 50):
        counts.add("/", "GET", status, 0.1)
        counts.add("/", "GET", 0, 0.1)
    values = Scrape("".join(counts.metrics(0))).by("status", "taskservice_requests_total")
    assert len(values) == RECORDS
    assert values.pop("0") == RECORDS + 51
    assert set(values.values()) == {1}


def test_process_that_takes_over_a_slot_counts_on() -> None:
    counts = RequestCounts()
    counts.add("/", "GET", 200, 0.1)
    assert counts.use_free_slot({0}) == 1
    counts.add("/", "GET", 200, 0.1)
    counts.add("/", "GET", 404, 0.1)
    assert counts.use_free_slot({1}) == 0
    counts.add("/", "GET", 200, 0.1)
    values = Scrape("".join(counts.metrics(0))).by("status", "taskservice_requests_total")
    assert values == {"200": 3, "404": 1}


def test_living_workers_never_share_a_slot(config: Config) -> None:
    settings: Any = gunicorn_settings(config)
    arbiter: Any = SimpleNamespace(WORKERS={}, SIG_QUEUE=None)

    def fork(pid: int) -> int:
        worker: Any = SimpleNamespace()
        settings["pre_fork"](arbiter, worker)
        arbiter.WORKERS[pid] = worker
        slot: int = worker.slot
        return slot

    assert [fork(pid) for pid in range(4)] == [0, 1, 2, 3]
    del arbiter.WORKERS[1]
    assert [fork(pid) for pid in range(4, 4 + SLOTS)] == [1, *range(4, SLOTS), *[SLOTS] * 3]
    metrics.requests.use_free_slot(())


# --- several workers ---------------------------------------------------------------------


class OwnGunicorn(Service):
    """The service under a gunicorn of the user's own, with our settings."""

    def options(self) -> tuple[str, ...]:
        return ("-c", "python:taskservice.serving.gunicorn_config")

    def start(self) -> None:
        command = [sys.executable, "-m", "gunicorn", *self.options(), "taskservice.wsgi:app"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                # No clone, which would have a wsgi.py.
                cwd=self.log.parent,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_until_ready()


class OtherServer(OwnGunicorn):
    """The service under a server without our settings, as any WSGI server is."""

    def options(self) -> tuple[str, ...]:
        return ("--bind", self.environment["TASKSERVICE_BIND"], "--no-control-socket")


@pytest.fixture(params=[Service, OwnGunicorn], ids=["serve", "gunicorn"])
def two_workers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    with request.param(tmp_path / "data", WORKERS="2") as service:
        until(lambda: len(service.workers()) == 2)
        yield service


def test_server_without_our_settings_says_that_background_work_is_missing(tmp_path: Path) -> None:
    assert "webhooks are not retried" in NO_BACKGROUND_WORK
    assert "`taskservice background`" in NO_BACKGROUND_WORK
    with OwnGunicorn(tmp_path / "data") as server:
        until(lambda: readiness(server) == {"status": "ok"})
    assert NO_BACKGROUND_WORK not in server.log.read_text()
    with OtherServer(tmp_path / "data") as other:
        until(lambda: readiness(other) == {"status": "ok", "notice": NO_BACKGROUND_WORK})
        background = ForkedPopen([*COMMAND, "background"], env=other.environment)
        try:
            until(lambda: readiness(other) == {"status": "ok"})
        finally:
            background.kill()
            background.wait()
        until(lambda: "notice" in readiness(other))
    assert other.log.read_text().count(NO_BACKGROUND_WORK) == 1


def test_background_process_ends_silent_tasks_while_a_server_without_our_settings_runs(
    tmp_path: Path, no_grace: None
) -> None:
    other = OtherServer(tmp_path / "data")
    # No monitoring reads /readyz, which writes the heartbeat.
    other.ready_path = "/livez"

    def status(task: dict[str, Any]) -> Any:
        return alice.request("GET", f"/task/{task['id']}").json()["status"]

    with other:
        alice = other.add_user()
        early, late = alice.start(claim=True), alice.start(claim=True)
        app = create_app(Config.from_environment(other.environment))
        background = Maintenance(app, serves=False)
        fall_silent(app, early, 2 * DAY)
        background.do_round()
        assert status(early) == "error"
    # Its killed processes can live a little longer.
    until(lambda: not is_running(tmp_path / "data" / SERVER_LOCK))
    fall_silent(app, late, 2 * DAY)
    # As if it had ended more than a minute ago.
    run_sql(app, "DELETE FROM service_heartbeat")
    background.do_round()
    dispose(app)
    with other:
        assert status(late) == "running"


def readiness(service: Service) -> Any:
    return requests.get(f"{service.url}/readyz", timeout=10).json()


def test_requests_are_in_the_log_under_any_server(tmp_path: Path) -> None:
    with OtherServer(tmp_path / "data", LOG_FORMAT="json", LOG_LEVEL="debug") as other:
        assert readiness(other)["status"] == "ok"
        lines = [line for line in other.log.read_text().splitlines() if line.startswith("{")]
    entries = [json.loads(line) for line in lines]
    assert "GET /readyz" in [entry["message"] for entry in entries if entry.get("status") == 200]


def count_by(service: Service) -> float:
    """How many requests of `/livez` have been answered, as any worker says."""
    return Scrape(requests.get(f"{service.url}/metrics", timeout=10).text).requests("/livez")


def ask(service: Service, times: int) -> None:
    """So many answers, each on a separate connection, so that both workers give some.

    A connection that the kernel gave to a worker that was killed is broken, and counts nothing.
    """

    def livez(_number: int) -> int:
        while True:
            with suppress(requests.ConnectionError):
                return requests.get(f"{service.url}/livez", timeout=10).status_code

    with ThreadPoolExecutor(8) as people:
        assert set(people.map(livez, range(times))) == {200}


class Watcher(threading.Thread):
    """Scrapes all the time; a count that is less than an earlier one is added to `fallen`."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service, self._stop_now = service, threading.Event()
        self.looks, self.fallen = 0, list[tuple[float, float]]()

    def run(self) -> None:
        last = 0.0
        while not self._stop_now.is_set():
            try:
                count = count_by(self._service)
            except requests.RequestException:
                continue  # of a worker that was just killed
            self.looks += 1
            if count < last:
                self.fallen.append((last, count))
            last = count

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def has_two_others(service: Service, gone: set[int]) -> bool:
    return len(set(service.workers()) - gone) == 2


def test_counts_are_of_all_workers_and_survive_them(two_workers: Service) -> None:
    service, watcher = two_workers, Watcher(two_workers)
    assert service.process is not None
    ask(service, 60)
    # Each worker gives the counts of all.
    assert {count_by(service) for _ in range(20)} == {60}
    watcher.start()
    for number, end in enumerate(("killed", "killed", "reloaded"), start=1):
        before = set(service.workers())
        if end == "killed":
            os.kill(min(before), signal.SIGKILL)
        else:
            service.process.send_signal(signal.SIGHUP)
        gone = {min(before)} if end == "killed" else before
        until(partial(has_two_others, service, gone))
        ask(service, 20)
        assert {count_by(service) for _ in range(10)} == {60 + 20 * number}
    watcher.stop()
    assert watcher.looks > 10
    assert watcher.fallen == []


# --- readyz and livez --------------------------------------------------------------------


def test_ready_means_that_the_database_can_be_written(app: Flask) -> None:
    until(lambda: app.test_client().get("/readyz").json == {"status": "ok"})


@only_sqlite
def test_writer_that_holds_the_lock_makes_unready_within_a_second(
    app: Flask, data_folder: Path
) -> None:
    other = sqlite3.connect(data_folder / "taskservice.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused_as_unready(app)
    other.execute("ROLLBACK")
    other.close()
    until(lambda: is_ready(app))


@only_sqlite
def test_many_callers_wait_together_while_the_lock_is_held(app: Flask, data_folder: Path) -> None:
    other = sqlite3.connect(data_folder / "taskservice.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    before = threading.active_count()
    with ThreadPoolExecutor(10) as people:
        asked = [people.submit(refused_as_unready, app) for _ in range(10)]
        time.sleep(0.3)
        assert threading.active_count() - before - 10 <= 1
        for one in asked:
            one.result()
    other.execute("ROLLBACK")
    other.close()
    until(lambda: is_ready(app))


def test_database_that_another_version_has_migrated_makes_unready(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: is_ready(app))
    try:
        run_sql(app, "UPDATE alembic_version SET version_num = '9999'")
        refused_as_unready(app)
    finally:
        run_sql(app, f"UPDATE alembic_version SET version_num = '{migrations.head()}'")
    assert "it is at revision 9999, but this process works with" in caplog.text
    until(lambda: is_ready(app))


@only_sqlite
def test_missing_file_makes_unready_even_while_it_is_open(app: Flask, data_folder: Path) -> None:
    file = data_folder / "taskservice.db"
    until(lambda: is_ready(app))
    file.rename(file.with_suffix(".away"))
    refused_as_unready(app)
    file.with_suffix(".away").rename(file)
    until(lambda: is_ready(app))


@pytest.fixture
def app_on_small_disk(databases: Databases, tmp_path: Path) -> Iterator[Flask]:
    """The service with its data on a disk of two megabytes, in memory."""
    with small_disk(tmp_path / "data") as data:
        app = create_app(Config(DATA=data, DATABASE_URL=databases.copy_sqlite(data)).completed())
        yield app
        dispose(app)


def test_full_disk_makes_unready(app_on_small_disk: Flask, tmp_path: Path) -> None:
    until(lambda: is_ready(app_on_small_disk))
    filler = fill(tmp_path / "data")
    refused_as_unready(app_on_small_disk)
    # What can be read is still counted.
    assert scrape(app_on_small_disk).by("status", "taskservice_tasks")
    filler.unlink()
    until(lambda: is_ready(app_on_small_disk))


@only_sqlite
def test_read_only_disk_makes_unready(app: Flask, data_folder: Path) -> None:
    until(lambda: is_ready(app))
    dispose(app)
    with read_only(data_folder):
        refused_as_unready(app)
    until(lambda: is_ready(app))


@only_postgresql
def test_read_only_server_makes_unready(app: Flask) -> None:
    """As after a failover, or where the provider's disk is full."""
    until(lambda: is_ready(app))
    set_for_database(app, "default_transaction_read_only", "on")
    try:
        refused_as_unready(app)
    finally:
        set_for_database(app, "default_transaction_read_only", "off")
    until(lambda: is_ready(app))


@only_postgresql
def test_server_whose_disk_fails_makes_unready(app: Flask, alice: ApiClient) -> None:
    """A trigger raises what PostgreSQL raises when a write to its disk fails."""
    task = alice.start()
    until(lambda: is_ready(app))
    # It is written only every 10 seconds.
    run_sql(app, "DELETE FROM service_heartbeat")
    run_sql(
        app,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE 'could not write block' USING ERRCODE = 'io_error'; END $$",
    )
    for table in ("tasks", "service_heartbeat"):
        run_sql(
            app, f"CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION fail()"
        )
    problem(alice.patch(f"/task/{task['id']}", json={"name": "refused"}), 503)
    refused_as_unready(app)
    for table in ("tasks", "service_heartbeat"):
        run_sql(app, f"DROP TRIGGER fail ON {table}")
    until(lambda: is_ready(app))
    run_sql(app, "DROP FUNCTION fail")


def test_unmigrated_database_is_unready(app: Flask) -> None:
    with app.app_context(), transaction() as connection:
        connection.execute(text("ALTER TABLE alembic_version RENAME TO elsewhere"))
    try:
        assert "alembic" not in str(refused_as_unready(app))
    finally:
        with app.app_context(), transaction() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO alembic_version"))
    until(lambda: is_ready(app))


# --- probes of the database --------------------------------------------------------------


def test_caller_waits_for_a_limited_time_and_shares_the_result(app: Flask) -> None:
    calls, ready = list[int](), threading.Event()

    def query() -> int:
        calls.append(1)
        ready.wait(20)
        return len(calls)

    probe: DatabaseProbe[int] = DatabaseProbe(app, query)
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(TimeoutError):
            probe.result(0.05)
    assert time.monotonic() - began < 5
    ready.set()
    assert probe.result(60) == 1


def test_failed_probe_is_repeated(app: Flask) -> None:
    failures = iter([ValueError("no")])

    def query() -> str:
        for failure in failures:
            raise failure
        return "yes"

    probe: DatabaseProbe[str] = DatabaseProbe(app, query)
    with pytest.raises(ValueError, match="no"):
        probe.result(5)
    assert probe.result(5) == "yes"


# --- the log, and request IDs ------------------------------------------------------------


def test_problem_has_the_id_of_its_request(app: Flask, alice: ApiClient) -> None:
    response = alice.get("/task/nothing", headers={"X-Request-Id": "mine-42"})
    assert problem(response, 404)["requestId"] == response.headers["X-Request-Id"] == "mine-42"
    made = alice.post("/task", data=b"{", content_type="application/json")
    assert problem(made, 400)["requestId"] == made.headers["X-Request-Id"] != ""
    response = app.test_client().post("/livez")
    assert response.json is not None
    assert response.json["requestId"] == response.headers["X-Request-Id"]
    # All 401s have the same body; only the header has the ID.
    refused = app.test_client().get("/api/v1/task")
    assert "requestId" not in problem(refused, 401)
    assert refused.headers["X-Request-Id"] != ""


def test_every_line_of_a_request_has_its_id(tmp_path: Path) -> None:
    """Also those that are written on the way, deep inside, and by the server itself."""
    data = tmp_path / "data"
    with Service(data, LOG_FORMAT="json") as service:
        data.rename(tmp_path / "gone")
        headers = {"X-Request-Id": "mine-42"}
        refused = requests.get(f"{service.url}/readyz", headers=headers, timeout=10)
        assert (refused.status_code, refused.json()["requestId"]) == (503, "mine-42")
        (tmp_path / "gone").rename(data)
        lines = lines_of(service, "mine-42")
        assert len(lines) == 2
        assert "can't be used" in lines[0]["message"]
        assert lines[1]["message"] == "GET /readyz"


def lines_of(service: Service, request_id: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if "{" in line]
    return [line for line in lines if line.get("requestId") == request_id]


def test_refusal_of_the_server_itself_has_an_id_and_is_counted(tmp_path: Path) -> None:
    with Service(tmp_path / "data", LOG_FORMAT="json") as service:
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
        refused = json.loads(body)
        assert f"X-Request-Id: {refused['requestId']}".encode() in head
        (line,) = lines_of(service, refused["requestId"])
        assert "Refused" in line["message"]
        shown = requests.get(f"{service.url}/metrics", timeout=10).text
        assert Scrape(shown).requests("other", "GET", 400) == 1


FORGED = 'x status=500 ms=9999 requestId=0 "y'


def test_value_of_a_client_forges_no_field_of_a_line_of_the_log(tmp_path: Path) -> None:
    with Service(tmp_path / "data", LOG_LEVEL="debug") as service:
        alice = service.add_user()
        forger = with_key(alice, name=FORGED)
        answers: list[Any] = [
            forger.request("GET", "/user"),
            alice.request("GET", f"/{quote(FORGED)}"),
            alice.request("GET", "/user", headers={"X-Request-Id": 'status=500,"'}),
            McpClient(alice).legacy("tools/call", {"name": FORGED}),
            McpClient(alice).legacy(FORGED),
        ]
        ids = [answer.headers["X-Request-Id"] for answer in answers]
        lines = {fields["requestId"]: fields for fields in map(fields_of, request_lines(service))}
    of_key, of_path, of_id, of_tool, of_method = (lines[request_id] for request_id in ids)
    assert {fields["status"] for fields in (of_key, of_id, of_tool, of_method)} == {"200"}
    assert of_path["status"] == "404"
    assert of_path["message"] == f"GET /api/v1/{FORGED}"
    assert of_key["key"] == of_tool["tool"] == of_method["method"] == FORGED
    assert of_id["requestId"] == 'status=500,"'


def with_key(person: RemoteClient, **fields: str) -> RemoteClient:
    """The same user with another key."""
    created = person.request("POST", "/key", json=fields)
    assert created.status_code == 201, created.text
    return RemoteClient(person.url, created.json()["key"])


def request_lines(service: Service) -> list[str]:
    return [line for line in service.log.read_text().splitlines() if "requestId=" in line]


def fields_of(line: str) -> dict[str, str]:
    """The message and the fields of a line of the text log, each of which occurs once."""
    shape = r'\S+ \w+ +("(?:[^"\\]|\\.)*"|[^=]*)((?: \w+=(?:"(?:[^"\\]|\\.)*"|[^\s="]+))+)'
    parsed = re.fullmatch(shape, line)
    assert parsed, line
    pairs = re.findall(r' (\w+)=("(?:[^"\\]|\\.)*"|\S+)', parsed[2])
    fields = {name: unquoted(value) for name, value in [("message", parsed[1]), *pairs]}
    assert len(fields) == len(pairs) + 1, line
    return fields


def unquoted(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def test_exception_forges_no_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "2026-01-01T00:00:00.000Z ERROR   forged"
    configure_logging("info", "text")
    try:
        raise ValueError(f"no\n{forged}{NASTY}")
    except ValueError:
        logging.getLogger("taskservice").exception("Unhandled error in a request")
    logged = capsys.readouterr().err
    assert obeyed(logged) == []
    first, *later_lines = logged.splitlines()
    assert "ERROR   Unhandled error in a request" in first
    assert [line for line in later_lines if f"{forged}{SHOWN}" in line]
    assert [line for line in later_lines if not line.startswith(" ")] == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_line_of_each_request_names_its_user_and_its_key(
    tmp_path: Path, database_url: str, form: str
) -> None:
    settings = {"LOG_FORMAT": form, "LOG_LEVEL": "debug", "DATABASE_URL": database_url}
    with Service(tmp_path / "data", **settings) as service:
        alice = service.add_user("alice of the line")
        laptop = with_key(alice, name="laptop")
        key = laptop.request("GET", "/user").json()["key"]
        agent = alice.request("PUT", "/agent/summarizer", json={}).json()["id"]
        of_agent = with_key(alice, name="robot", agentId=agent)
        browser, html = signed_in(laptop), {"Accept": "text/html"}
        answers: dict[str, Any] = {
            "API": laptop.request("GET", "/task"),
            "a refused request": laptop.request("GET", "/task/nothing"),
            "MCP": McpClient(laptop).legacy("ping"),
            "dashboard": browser.get(f"{service.url}/keys", timeout=10),
            "no such page": browser.get(f"{service.url}/nothing", headers=html, timeout=10),
        }
        refused = {
            "no key": requests.get(f"{service.url}/api/v1/task", timeout=10),
            "no session": requests.get(f"{service.url}/sign-in", timeout=10),
            "no key needed": requests.get(f"{service.url}/livez", timeout=10),
        }
        robot = of_agent.request("GET", "/task").headers["X-Request-Id"]
        log = service.log.read_text()
    lines = lines_by_id(log, form)
    for name, response in answers.items():
        line = lines[response.headers["X-Request-Id"]]
        names = (line["user"], line["key"], line["keyId"])
        assert names == ("alice of the line", "laptop", key["id"]), name
    for name, response in refused.items():
        line = lines[response.headers["X-Request-Id"]]
        assert line.keys() & {"user", "key", "keyId"} == set(), name
    assert lines[robot]["key"] == "robot"
    (entered,) = [line for line in lines.values() if line["message"] == "POST /sign-in"]
    assert entered["keyId"] == key["id"]
    for person in (alice, laptop, of_agent):
        assert person.key not in log


def signed_in(person: RemoteClient) -> requests.Session:
    """A browser that has signed in with the key of this person."""
    browser = requests.Session()
    page = browser.get(f"{person.url}/sign-in", timeout=10)
    form = {**hidden_text(page.text), "key": person.key}
    assert browser.post(f"{person.url}/sign-in", data=form, timeout=10).url == f"{person.url}/"
    return browser


def lines_by_id(log: str, form: str) -> dict[str, dict[str, Any]]:
    """Request ID -> what the line of the request says."""
    lines = [line for line in log.splitlines() if "requestId" in line]
    fields = map(json.loads if form == "json" else fields_of, lines)
    return {line["requestId"]: line for line in fields}


def test_requests_that_are_frequent_and_go_well_are_logged_at_debug_alone(tmp_path: Path) -> None:
    for level, is_logged in (("info", False), ("debug", True)):
        (tmp_path / level).mkdir()
        with Service(tmp_path / level / "data", LOG_LEVEL=level) as service:
            browser = signed_in(service.add_user())
            first = browser.get(service.url, timeout=10)
            etag = {"If-None-Match": first.headers["ETag"]}
            second = browser.get(service.url, headers=etag, timeout=10)
            assert (first.status_code, second.status_code) == (200, 304)
            person = service.add_user("worker")
            person.request("PUT", "/agent/idle")
            claim = person.request("POST", "/agent/idle/claim")
            assert claim.status_code == 204
            task = person.start()
            path = f"/task/{task['id']}/logs"
            append = person.request("POST", path, json={"logs": ["a line"]})
            refused = person.request("POST", path, json={"logs": 1})
            missing = person.request("GET", "/task/nothing")
            report = person.request("PATCH", f"/task/{task['id']}", json={"note": "new"})
            counted = Scrape(requests.get(f"{service.url}/metrics", timeout=10).text)
            log = service.log.read_text()
        for seldom in (refused, missing, report):
            assert seldom.headers["X-Request-Id"] in log
        for frequent in (first, second, claim, append):
            assert (frequent.headers["X-Request-Id"] in log) == is_logged
        assert counted.requests("/api/v1/task/<task_id>/logs", "POST", 201) == 1


def test_every_line_of_the_log_is_json(tmp_path: Path) -> None:
    """Under both commands and both servers, from a misspelt setting to a wrong one."""
    settings = {"LOG_FORMAT": "json", "CALBACK_ALLOWED": "loopback"}
    with Service(tmp_path / "data", **settings) as first:
        first.stop()
    service = OwnGunicorn(tmp_path / "data", **settings)
    with service:
        service.stop()
    background = run_until_started([*COMMAND, "background"], service.environment)
    service.environment["TASKSERVICE_THREADS"] = "no"
    gunicorn = [sys.executable, "-m", "gunicorn", *service.options(), "taskservice.wsgi:app"]
    refused = [
        subprocess.run(
            command, env=service.environment, capture_output=True, text=True, check=False
        )
        for command in ([*COMMAND, "serve"], [*COMMAND, "background"], gunicorn)
    ]
    assert [done.returncode for done in refused] == [2, 2, 2]
    for log in (service.log.read_text(), background, *(done.stderr for done in refused)):
        lines = [json.loads(line) for line in log.splitlines()]
        assert {line["level"] for line in lines} <= {"info", "warning", "error"}
        assert lines != []
    assert [line["level"] for line in lines] == ["error"]


def run_until_started(command: list[str], environment: dict[str, str]) -> str:
    """What the command prints on stderr until it has started, and until its end."""
    process = ForkedPopen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    printed = ""
    while "started" not in printed:
        printed += process.stderr.readline()
    process.terminate()
    return printed + str(process.communicate(timeout=PATIENCE_SECONDS)[1])


def test_each_line_in_the_journal_has_its_priority(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.touch()
    status = log.stat()
    with Service(tmp_path / "data", LOG_LEVEL="debug", BOGUS="1") as service:
        service.stop()
        assert not [line for line in log.read_text().splitlines() if line.startswith("<")]
        log.write_text("")
        service.environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        service.start()
        alice = service.add_user()
        alice.request("GET", "/user")
        alice.request("PATCH", "/task/nothing", json={"note": "x"})
        service.stop()
    lines = log.read_text().splitlines()
    first_words = {
        "<4>": "BOGUS is not a known setting",
        "<6>": "Starting gunicorn",
        "<7>": "GET /api/v1/user",
    }
    for priority, words in first_words.items():
        assert {line[:3] for line in lines if words in line} == {priority}, lines
    assert {line[:3] for line in lines} == {"<4>", "<6>", "<7>"}
