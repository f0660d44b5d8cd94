"""`taskservice background` and `delivery`: deliveries in separate processes and by hand."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from taskservice.database.types import database_now
from tests.support import receiver as play
from tests.support.api_client import ApiClient, RemoteClient, expect
from tests.support.background_process import working
from tests.support.commands import one_line, run
from tests.support.deliveries import change, columns, deliveries_of, finish, make_due, the_delivery
from tests.support.internals import end_for_silence
from tests.support.receiver import Exchange, Receiver
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until

DELIVERIES = 60


def leave_due(alice: ApiClient, app: Flask, receiver: Receiver, count: int = 1) -> list[Any]:
    """Tasks whose first attempt has failed, and whose next one is due; the receiver is well."""
    receiver.answer = play.answer(503)
    tasks = [alice.start(callback=receiver.url) for _ in range(count)]
    for task in tasks:
        finish(alice, task)
    make_due(app)
    receiver.requests.clear()
    receiver.answer = play.answer(204)
    return tasks


def test_background_process_posts_what_is_due(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    (task,) = leave_due(alice, app, receiver)
    with working(app):
        receiver.wait_for(1)
        until(lambda: the_delivery(alice, task)["state"] == "delivered")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_idle_background_process_ends_immediately(app: Flask, signum: int) -> None:
    with working(app) as process:
        began = time.monotonic()
        assert process.end(signum) == 0
        # Within a second; but a machine may be busy. A round would be 20 s.
        assert time.monotonic() - began < 15


def test_stopping_background_process_releases_its_leases(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    leave_due(alice, app, receiver)
    receiver.answer = play.silence
    with working(app, CALLBACK_TIMEOUT="30") as process:
        receiver.wait_for(1)
        assert columns(app, "lease") != [(None,)]
        assert process.end(signal.SIGTERM) == 0
    # Only the request's own attempt was recorded.
    assert columns(app, "state", "lease", "attempt_count") == [("pending", None, 1)]
    receiver.answer = play.answer(204)
    with working(app):
        receiver.wait_for(2)


def test_process_that_is_killed_leaves_it_to_the_next_one_when_the_lease_has_run_out(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    (task,) = leave_due(alice, app, receiver)
    receiver.answer = play.silence
    with working(app):
        receiver.wait_for(1)
    assert columns(app, "lease") != [(None,)]
    change(app, leased_until=database_now(-1))
    receiver.answer = play.answer(204)
    with working(app):
        until(lambda: the_delivery(alice, task)["state"] == "delivered")
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_several_processes_post_each_delivery_once(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    leave_due(alice, app, receiver, DELIVERIES)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(working(app))
        receiver.wait_for(DELIVERIES)
        until(lambda: set(columns(app, "state")) == {("delivered",)})
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == DELIVERIES


def test_server_processes_post_what_is_due(
    alice: ApiClient, app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    (task,) = leave_due(alice, app, receiver)
    with Service(tmp_path / "data", DATABASE_URL=app.config["DATABASE_URL"]) as service:
        receiver.wait_for(1)
        until(lambda: the_delivery(alice, task)["state"] == "delivered")
        # A redelivery is made at once by the process that got the request.
        answer = requests.post(
            f"{service.url}/api/v1/task/{task['id']}/deliveries",
            headers={"apikey": alice.key}, timeout=10,
        )  # fmt: skip
        assert answer.status_code == 202
        receiver.wait_for(2)


def test_stopping_service_releases_its_leases(
    alice: ApiClient, app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    leave_due(alice, app, receiver)
    receiver.answer = play.silence
    url = app.config["DATABASE_URL"]
    with Service(tmp_path / "data", DATABASE_URL=url, CALLBACK_TIMEOUT="30") as service:
        receiver.wait_for(1)
        assert service.stop() == 0
    # An attempt that ran until its timeout of 30 s would be recorded as a second one.
    assert columns(app, "state", "lease", "attempt_count") == [("pending", None, 1)]


def test_stopping_service_releases_the_webhook_of_a_report(
    alice: ApiClient, app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    task = alice.start(callback=receiver.url)
    receiver.answer = play.silence
    url = app.config["DATABASE_URL"]
    with Service(tmp_path / "data", DATABASE_URL=url, CALLBACK_TIMEOUT="30") as service:
        person = RemoteClient(service.url, alice.key)
        with ThreadPoolExecutor(1) as pool:
            path, changes = f"/task/{task['id']}", {"status": "complete"}
            report = pool.submit(person.request, "PATCH", path, json=changes)
            receiver.wait_for(1)
            assert service.stop() == 0
            # The report is answered: the task has ended, whatever the receiver does.
            assert report.result().status_code == 200
            assert report.result().headers["Callback-Status"] == "pending"
    assert columns(app, "state", "lease", "attempt_count") == [("pending", None, 0)]
    receiver.answer = play.answer(204)
    with working(app):
        until(lambda: the_delivery(alice, task)["state"] == "delivered")
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_stopping_service_ends_the_test_of_a_hook(
    alice: ApiClient, app: Flask, receiver: Receiver, tmp_path: Path
) -> None:
    hook = expect(alice.post("/hook", json={"target": receiver.url}), 201)
    receiver.answer = play.silence
    url = app.config["DATABASE_URL"]
    with Service(tmp_path / "data", DATABASE_URL=url, CALLBACK_TIMEOUT="30") as service:
        person = RemoteClient(service.url, alice.key)
        with ThreadPoolExecutor(1) as pool:
            test = pool.submit(person.request, "POST", f"/hook/{hook['id']}/test")
            receiver.wait_for(1)
            began = time.monotonic()
            assert service.stop() == 0
            # A test that ran until its timeout would take 30 s.
            assert time.monotonic() - began < 15
            assert test.result().status_code == 503
            assert test.result().json()["code"] == "stopping"


def test_receivers_that_hang_hold_up_neither_readers_nor_other_reports(tmp_path: Path) -> None:
    """Of 16 threads 4 may be held, by 64 reports at once."""
    settings = {"THREADS": "16", "CALLBACK_TIMEOUT": "30"}
    released = threading.Event()

    def hang(exchange: Exchange) -> None:
        released.wait(PATIENCE_SECONDS)
        play.answer(503)(exchange)

    with (
        Receiver(answer=hang) as hanging,
        Service(tmp_path / "data", **settings) as service,
    ):
        alice = service.add_user()
        tasks = [alice.start(callback=hanging.url) for _ in range(64)]
        key = alice.key

        def report(task: dict[str, Any]) -> str:
            path, person = f"/task/{task['id']}", RemoteClient(service.url, key)
            answer = person.request("PATCH", path, json={"status": "complete"})
            return answer.headers["Callback-Status"]

        with ThreadPoolExecutor(64) as pool:
            reports = [pool.submit(report, task) for task in tasks]
            until(lambda: sum(future.done() for future in reports) >= 60)
            for _ in range(10):
                alice.request("GET", f"/task/{tasks[0]['id']}").raise_for_status()
            assert not all(future.done() for future in reports)
            released.set()
            assert {future.result() for future in reports} == {"pending"}


# --- by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_delivery_list_show_and_redeliver(
    alice: ApiClient, bob: ApiClient, app: Flask, receiver: Receiver
) -> None:
    data = Path(app.config["DATA"])
    receiver.answer = play.answer(410)
    failed = alice.start(callback=receiver.url)
    finish(alice, failed)
    receiver.answer = play.answer(204)
    finish(bob, bob.start(callback=receiver.url))

    listed = run(data, "delivery", "list", "--json").stdout.splitlines()
    newest, oldest = map(json.loads, listed)
    assert [newest["user"], oldest["user"]] == ["bob", "alice"]
    assert oldest["taskId"] == failed["id"]
    only = run(data, "delivery", "list", "--state", "failed")
    assert oldest["id"] in only.stdout
    assert newest["id"] not in only.stdout
    assert len(run(data, "delivery", "list", "--limit", "1", "--json").stdout.splitlines()) == 1

    shown = run(data, "delivery", "show", oldest["id"][:-1])
    assert "The receiver responded with 410 Gone." in shown.stdout
    assert receiver.url in shown.stdout
    assert json.loads(run(data, "delivery", "show", oldest["id"], "--json").stdout) == oldest

    assert "Several IDs match 0, such as " in one_line(run(data, "delivery", "show", "0"), 2)
    again = run(data, "delivery", "redeliver", oldest["id"][:-1])
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert the_delivery(alice, failed)["state"] == "pending"


def test_unknown_delivery_is_one_line(tmp_path: Path, subtests: pytest.Subtests) -> None:
    run(tmp_path, "db", "upgrade")
    for verb in ("show", "redeliver"):
        for name in ("nonsense", "01a20e63-92c4-7f10-b3a5-9e1d6c2f4b80"):
            with subtests.test(f"{verb} {name}"):
                line = one_line(run(tmp_path, "delivery", verb, name), 1)
                assert line == f"taskservice: No delivery matches {name}"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_replaced_delivery_is_not_delivered_again(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    receiver.answer = play.answer(500)
    task = alice.start(callback=receiver.url, claim=True)
    alice.report(task, status="error")
    end_for_silence(app, task)
    finish(alice, task)
    newer, older = deliveries_of(alice, task)
    refused = run(Path(app.config["DATA"]), "delivery", "redeliver", older["id"])
    replaced = f"taskservice: A newer delivery has replaced this delivery: {newer['id']}"
    assert one_line(refused, 1) == replaced
