"""A disk that is full, fails or becomes read-only under the running service."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.commands import check
from tests.support.concurrency import at_once, copies
from tests.support.databases import Databases
from tests.support.every_write import EveryWrite
from tests.support.mounts import empty_log, failing_disk, failing_writes, fill, small_disk
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import until

KIB = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    with small_disk(tmp_path / "data", "8m") as disk:
        yield disk


@pytest.fixture
def service(disk: Path, databases: Databases) -> Iterator[Service]:
    """A service whose data is on the small disk."""
    databases.copy_sqlite(disk)
    with Service(disk) as service:
        yield service


def test_every_write_on_a_full_disk_is_503_and_continues_with_space(
    service: Service, disk: Path
) -> None:
    writes = EveryWrite(service.add_user())
    empty_log(disk)
    filler = fill(disk)
    writes.are_refused()
    assert "taskservice_database_up 0\n" in requests.get(f"{service.url}/metrics", timeout=60).text
    assert check(disk, 1)["disk"]["state"] == "error"
    filler.unlink()
    writes.succeed()
    is_sound(disk)
    assert "Traceback" not in service.log.read_text()


def is_sound(data: Path) -> None:
    """`db check` finds nothing but that the disk is small, or that SQLite has a known bug."""
    states = {name: finding["state"] for name, finding in check(data).items()}
    assert {name for name, state in states.items() if state != "ok"} <= {"disk", "sqlite"}


def test_disk_that_fills_up_has_what_was_answered_and_nothing_else(
    service: Service, disk: Path
) -> None:
    """At each size of what is left, from nothing to enough for all."""
    alice = service.add_user()
    people = copies(alice, 8)
    tasks = [alice.start(claim=True) for _ in people]
    filler = fill(disk)
    numbers, answered = count(1), set[str]()
    statuses, freed = [503], count(4 * KIB, 4 * KIB)
    while 503 in statuses:
        os.truncate(filler, filler.stat().st_size - next(freed))
        lines = [f"{next(numbers)} {'x' * 3 * KIB}" for _ in people]
        appends = [
            partial(person.request, "POST", f"/task/{task['id']}/logs", json={"logs": [line]})
            for person, task, line in zip(people, tasks, lines, strict=True)
        ]
        statuses = [answer.status_code for answer in at_once(appends)]
        assert set(statuses) <= {201, 503}
        answered |= {line for line, status in zip(lines, statuses, strict=True) if status == 201}
    logs = [alice.request("GET", f"/task/{task['id']}").json()["logs"] for task in tasks]
    assert sorted(line for log in logs for line in log) == sorted(answered)
    filler.unlink()
    is_sound(disk)


def test_disk_that_becomes_read_only_is_503_for_writes(
    databases: Databases, tmp_path: Path
) -> None:
    with failing_disk(tmp_path / "data") as fail:
        databases.copy_sqlite(tmp_path / "data")
        with Service(tmp_path / "data") as service:
            writes = EveryWrite(service.add_user())
            fail()
            writes.are_refused()
            assert "Traceback" not in service.log.read_text()


@pytest.fixture(params=["1", "2"], ids=["one worker", "two workers"])
def failing_service(
    request: pytest.FixtureRequest, tmp_path: Path, databases: Databases
) -> Iterator[Service]:
    databases.copy_sqlite(tmp_path / "data")
    service = Service(tmp_path / "data", WORKERS=request.param)
    service.environment |= failing_writes(tmp_path)
    with service:
        until(lambda: len(service.workers()) == int(request.param))
        yield service


@pytest.mark.parametrize("what", ["writes", "syncs"])
def test_service_whose_writes_fail_is_unready_until_they_succeed(
    failing_service: Service, tmp_path: Path, what: str
) -> None:
    service, marker = failing_service, tmp_path / what
    alice = service.add_user()
    task = alice.start()
    marker.touch()
    refused = alice.request("PATCH", f"/task/{task['id']}", json={"name": "refused"})
    assert refused.status_code == 503
    until(lambda: readiness(service) == {503})
    assert "The database can't be used: disk I/O error" in service.log.read_text()
    assert requests.get(f"{service.url}/livez", timeout=10).status_code == 200
    assert alice.request("GET", f"/task/{task['id']}").json() == task
    marker.unlink()
    until(lambda: readiness(service) == {200})
    assert alice.request("PATCH", f"/task/{task['id']}", json={"name": "done"}).status_code == 200


def test_service_without_requests_notices_that_writes_fail(
    failing_service: Service, tmp_path: Path
) -> None:
    (tmp_path / "writes").touch()
    until(lambda: readiness(failing_service) == {503})
    (tmp_path / "writes").unlink()
    until(lambda: readiness(failing_service) == {200})


def readiness(service: Service) -> set[int]:
    """What `/readyz` answers on several connections, so that each worker is asked."""
    answers = [requests.get(f"{service.url}/readyz", timeout=10) for _ in range(8)]
    for answer in answers:
        if answer.status_code != 200:
            assert answer.json()["detail"] == "The database cannot be read or written now"
            assert int(answer.headers["Retry-After"]) > 0
    return {answer.status_code for answer in answers}


def test_webhook_whose_outcome_finds_a_full_disk_comes_again(service: Service, disk: Path) -> None:
    fillers: list[Path] = []

    def fill_disk(exchange: play.Exchange) -> None:
        fillers.append(fill(disk))
        play.answer(200)(exchange)

    with Receiver() as receiver:
        alice = service.add_user()
        task = alice.start(callback=receiver.url)
        empty_log(disk)
        receiver.answer = fill_disk
        path = f"/task/{task['id']}"
        reported = alice.request("PATCH", path, json={"status": "complete"})
        assert (reported.status_code, reported.json()["status"]) == (200, "complete")
        assert reported.headers["Callback-Status"] == "pending"
        receiver.answer = play.answer(200)
        fillers[0].unlink()
        end_leases(disk)
        until(lambda: delivery_of(alice, path)["state"] == "delivered")
        assert alice.request("GET", path).json() == reported.json()
        (first, second) = receiver.requests
        assert first.headers["webhook-id"] == second.headers["webhook-id"]


def delivery_of(alice: RemoteClient, path: str) -> dict[str, Any]:
    (delivery,) = alice.request("GET", f"{path}/deliveries").json()
    return dict(delivery)


def end_leases(data: Path) -> None:
    """As if 60 seconds had passed."""
    with closing(sqlite3.connect(data / "taskservice.db", timeout=30)) as connection, connection:
        connection.execute(
            "UPDATE deliveries SET leased_until = created_at WHERE lease IS NOT NULL"
        )
