"""Killed at any moment and again and again, the service loses no webhook and invents none."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from flask import Flask

from tests import receiver as play
from tests.live import Service
from tests.owed import columns, owe_many
from tests.people import Person, RemotePerson
from tests.receiver import Exchange, Receiver
from tests.server_process import until
from tests.test_worker import working

TASKS = int(os.environ.get("CALLBACK_TASKS", "2000"))
KILLS = int(os.environ.get("CALLBACK_KILLS", "20"))
DUE = int(os.environ.get("CALLBACK_DUE", "10000"))
CLIENTS = 8
# There are fewer moments; the test ends at the first that does not come.
MOMENTS = 100

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class CrashingService(Service):
    """The service with short leases, which dies with all its processes at once."""

    command = (sys.executable, "-m", "tests.crashing", "serve")

    def __init__(self, app: Flask, folder: Path, lease: float) -> None:
        super().__init__(
            folder / "data", DATABASE_URL=app.config["DATABASE_URL"], LOG_LEVEL="warning"
        )
        self.armed = folder / "armed"
        self.environment |= {"CRASH_ARMED": str(self.armed), "CRASH_LEASE": str(lease)}
        self.crash_at(0)

    def crash_at(self, moment: int) -> None:
        """Count from 1 while `armed` is there; 0 never comes."""
        self.environment["CRASH_AT"] = str(moment)

    def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # Its workers, which nobody here can wait for, hold the port until they are gone too.
        until(self._is_closed)

    def _is_closed(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0


def failing_at_first() -> play.Behaviour:
    """Each webhook is answered 500 once, and 204 from then on."""
    known = set()

    def behave(exchange: Exchange) -> None:
        webhook_id = exchange.request.headers["webhook-id"]
        play.answer(204 if webhook_id in known else 500)(exchange)
        known.add(webhook_id)

    return behave


def wait_until_all_is_delivered(app: Flask, seconds: float = 60) -> None:
    """And until no lease is left."""
    end = time.monotonic() + seconds
    while set(columns(app, "state", "lease")) - {("delivered", None)}:
        assert time.monotonic() < end, columns(app, "state", "lease", "next_attempt_at")
        time.sleep(0.1)


def check_that_received_is_finished(alice: Person, receiver: Receiver) -> int:
    """The tasks of the webhooks are the finished ones, each under one id; returns how many."""
    listed = alice.get("/task?fields=id,status,callback").json
    finished = {task["id"] for task in listed if task["status"] != "running" and task["callback"]}
    ids: dict[str, set[str]] = {}
    for request in receiver.requests:
        task_id = json.loads(request.body)["id"]
        ids.setdefault(task_id, set()).add(request.headers["webhook-id"])
    assert ids.keys() == finished
    assert all(len(some) == 1 for some in ids.values())
    assert len(set().union(*ids.values())) == len(ids)
    return len(finished)


# --- at each moment ----------------------------------------------------------------------


def live_through_a_task(service: Service, key: str, receiver: Receiver) -> bool:
    """Start a task, finish it, have its webhook repeated and delivered again.

    False as soon as the service has died.
    """
    alice = RemotePerson(service.url, key)

    def posted() -> int:
        return sum(json.loads(each.body)["id"] == task["id"] for each in receiver.requests)

    def wait_for(count: int) -> None:
        while posted() < count:
            assert service.process is not None
            if service.process.poll() is not None:
                raise ConnectionError
            time.sleep(0.02)

    try:
        body = {"agentId": "worker", "callback": receiver.url}
        task = alice.request("POST", "/task", json=body).json()
        path = f"/task/{task['id']}"
        alice.request("PATCH", path, json={"status": "complete"}).raise_for_status()
        wait_for(2)
        # It is being posted until that is written down.
        while alice.request("POST", f"{path}/deliveries").status_code == 409:
            time.sleep(0.02)
        wait_for(3)
        while alice.request("GET", f"{path}/deliveries").json()[0]["state"] != "delivered":
            time.sleep(0.02)
    except (requests.ConnectionError, ConnectionError):
        return False
    # Died with the very last answer.
    return service.process is not None and service.process.poll() is None


def test_killed_at_any_moment_no_webhook_is_lost_or_invented(
    app: Flask, alice: Person, receiver: Receiver, tmp_path: Path
) -> None:
    alice.register("worker")
    receiver.answer = failing_at_first()
    service = CrashingService(app, tmp_path, lease=1.0)
    for moment in range(1, MOMENTS):
        service.crash_at(moment)
        service.start()
        try:
            # What the last crash has left, this process puts right.
            wait_until_all_is_delivered(app)
            check_that_received_is_finished(alice, receiver)
            service.armed.touch()
            lives = live_through_a_task(service, alice.key, receiver)
        finally:
            service.armed.unlink(missing_ok=True)
            service.kill()
        if lives:
            break
    assert lives
    # At least: four commits and one send of the request, twice claim, send and record.
    assert moment > 20
    tasks = check_that_received_is_finished(alice, receiver)
    print(f"\n{moment - 1} crashes, {tasks} tasks finished, {len(receiver.requests)} posts")


# --- again and again ---------------------------------------------------------------------


class Client(threading.Thread):
    """Starts tasks and finishes them, and repeats what got no answer."""

    def __init__(self, service: Service, key: str, left: Iterator[int], done: list[str]) -> None:
        super().__init__(daemon=True)
        self.person = RemotePerson(service.url, key)
        self.left, self.done = left, done
        self.url = ""

    def run(self) -> None:
        for _ in self.left:
            body = {"agentId": "worker", "callback": self.url}
            headers = {"Idempotency-Key": str(uuid4())}
            task = self.call("POST", "/task", json=body, headers=headers)
            self.call("PATCH", f"/task/{task['id']}", json={"status": "complete"})
            self.done.append(task["id"])

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        while True:
            with suppress(requests.RequestException):
                answer = self.person.request(method, path, **options)
                if answer.ok:
                    return dict(answer.json())
            time.sleep(0.1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_every_task_that_finishes_while_the_service_is_killed_is_posted(
    app: Flask, alice: Person, receiver: Receiver, tmp_path: Path
) -> None:
    alice.register("worker")
    service = CrashingService(app, tmp_path, lease=3.0)
    service.start()
    left, done = iter(range(TASKS)), list[str]()
    clients = [Client(service, alice.key, left, done) for _ in range(CLIENTS)]
    try:
        for client in clients:
            client.url = receiver.url
            client.start()
        for number in range(1, KILLS + 1):
            while len(done) < number * TASKS // (KILLS + 1):
                time.sleep(0.005)
            service.kill()
            service.start()
        for client in clients:
            client.join()
        wait_until_all_is_delivered(app)
    finally:
        service.kill()
    assert len(done) == TASKS
    assert check_that_received_is_finished(alice, receiver) == TASKS
    print(f"\n{TASKS} tasks, {KILLS} kills, {len(receiver.requests) - TASKS} posts repeated")


# --- and with many at it -----------------------------------------------------------------


def test_each_of_many_due_deliveries_is_posted_by_one_of_three_workers(
    app: Flask, alice: Person, receiver: Receiver
) -> None:
    owe_many(app, alice, receiver.url, DUE)
    began = time.monotonic()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(working(app))
        receiver.wait_for(DUE, timeout=DUE / 20)
        seconds = time.monotonic() - began
        wait_until_all_is_delivered(app)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == DUE
    assert len(receiver.requests) == DUE
    print(f"\n{DUE} deliveries in {seconds:.1f} s")
