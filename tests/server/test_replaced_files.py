"""SQLite's files are removed or replaced under the running service: no answered write is lost."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.databases import Databases
from tests.support.service import Service
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
def stopped_service(tmp_path: Path, workers: str, databases: Databases) -> Service:
    databases.copy_sqlite(tmp_path / "data")
    return Service(tmp_path / "data", WORKERS=workers)


def wait_until_open(service: Service, database: Path) -> None:
    """Wait until each worker has the files open: one that is later takes those that it finds."""
    names = {str(database), f"{database}-wal", f"{database}-shm"}
    count = int(service.environment["TASKSERVICE_WORKERS"])
    until(
        lambda: (
            len(service.workers()) == count
            and all(names <= open_files(pid) for pid in service.workers())
        )
    )


def open_files(pid: int) -> set[str]:
    files = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # just closed
            files.add(os.readlink(link))
    return files


def remove_log_and_index(database: Path) -> None:
    for end in ("-wal", "-shm"):
        Path(f"{database}{end}").unlink()


def remove_log(database: Path) -> None:
    Path(f"{database}-wal").unlink()


def remove_index(database: Path) -> None:
    Path(f"{database}-shm").unlink()


def replace_database(database: Path) -> None:
    """As a restore does that forgot to stop the service."""
    copy = database.with_suffix(".copy")
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as source:
        target = sqlite3.connect(copy)
        source.backup(target)
        target.close()
    source.close()
    copy.replace(database)


def replace_log(database: Path) -> None:
    log = Path(f"{database}-wal")
    shutil.copy(log, f"{log}.copy")
    Path(f"{log}.copy").replace(log)


def refused(person: RemoteClient, task: dict[str, str]) -> None:
    """Writes get 503 and so do reads, which notice it within 20 ms; no answer names a file."""
    writes = [
        person.request("POST", "/task", json={"agentId": "summarizer"}),
        person.request("POST", f"/task/{task['id']}/logs", json={"logs": ["a line"]}),
    ]
    assert [answer.status_code for answer in writes] == [503] * 2
    read = partial(person.request, "GET", f"/task/{task['id']}")
    until(lambda: read().status_code == 503)
    ready = partial(requests.get, f"{person.url}/readyz", timeout=10)
    until(lambda: ready().status_code == 503)
    assert not any("taskservice.db" in answer.text for answer in (*writes, read(), ready()))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            remove_log_and_index,
            ("taskservice.db-wal was removed", "taskservice.db-shm was removed"),
        ),
        (remove_log, ("taskservice.db-wal was removed",)),
        (remove_index, ("taskservice.db-shm was removed",)),
        (Path.unlink, ("taskservice.db was removed",)),
        (replace_database, ("taskservice.db was replaced",)),
        (replace_log, ("taskservice.db-wal was replaced",)),
    ],
)
def test_writes_are_refused_until_a_restart(
    stopped_service: Service, tmp_path: Path, damage: Callable[[Path], None], named: tuple[str, ...]
) -> None:
    database = tmp_path / "data" / "taskservice.db"
    with stopped_service:
        wait_until_open(stopped_service, database)
        alice = stopped_service.add_user()
        task = alice.start()
        # As long after the last change: then only the directory is looked at.
        os.utime(database.parent, (0, 0))
        assert alice.request("GET", f"/task/{task['id']}").status_code == 200
        damage(database)
        for _ in range(4):
            refused(alice, task)
        log = stopped_service.log.read_text()
        assert all(text in log for text in named)
        assert requests.get(f"{stopped_service.url}/livez", timeout=10).status_code == 200
        stopped_service.stop()
        log = stopped_service.log.read_text()
        assert "ERROR   Maintenance failed: " in log
        assert "Traceback" not in log


def test_reads_notice_it_without_a_write(stopped_service: Service, tmp_path: Path) -> None:
    database = tmp_path / "data" / "taskservice.db"
    with stopped_service:
        wait_until_open(stopped_service, database)
        alice = stopped_service.add_user()
        path = f"/task/{alice.start()['id']}"
        assert alice.request("GET", path).status_code == 200
        replace_database(database)
        until(lambda: alice.request("GET", path).status_code == 503)


@pytest.mark.parametrize("damage", [remove_log_and_index, remove_index])
def test_answered_writes_survive_a_restart(
    stopped_service: Service, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    database = tmp_path / "data" / "taskservice.db"
    with stopped_service:
        wait_until_open(stopped_service, database)
        alice = stopped_service.add_user()
        alice.request("PUT", "/agent/summarizer")
        answered = []
        for number in range(40):
            if number == 20:
                damage(database)
            answer = alice.request("POST", "/task", json={"agentId": "summarizer"})
            if answer.status_code == 201:
                answered.append(answer.json()["id"])
        assert len(answered) == 20
        # As after a power cut: no process can tidy up.
        stopped_service.kill()
        stopped_service.start()
        listed = {task["id"] for task in alice.request("GET", "/task").json()}
        assert listed == set(answered)
        assert stopped_service.run("db", "check").returncode == 0


def test_file_that_is_moved_back_is_used_again(stopped_service: Service, tmp_path: Path) -> None:
    database = tmp_path / "data" / "taskservice.db"
    with stopped_service:
        wait_until_open(stopped_service, database)
        alice = stopped_service.add_user()
        task = alice.start()
        database.rename(tmp_path / "away")
        refused(alice, task)
        (tmp_path / "away").rename(database)
        assert alice.request("GET", f"/task/{task['id']}").status_code == 200
        assert alice.start()["status"] == "running"
