"""`db backup`, `db check` and `prune`, run as processes while others write."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, text

from taskservice.database import clock, migrations
from taskservice.operations import database_check
from tests.support.api_client import RemoteClient
from tests.support.commands import check, one_line, run
from tests.support.databases import Databases
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.mounts import fill, read_only, small_disk
from tests.support.service import COMMAND, Service, environment
from tests.support.waiting import until

# A finished task with its user and its agent, for the files that no service is at.
A_TASK = (
    "INSERT INTO users VALUES ('u', 'alice', '2026')",
    "INSERT INTO agents (user_id, id, name, description, created_at) "
    "VALUES ('u', 'a', 'a', '', '2026')",
    "INSERT INTO tasks (id, user_id, agent_id, name, name_folded, status, input, output, "
    "created_at, updated_at, last_heartbeat_at, finished_at, first_log, log_count, log_bytes, "
    "version) "
    "VALUES ('0193a20e0193712c8fd1cd4758901234', 'u', 'a', 'a', 'a', 'complete', "
    "'{}', '{}', '2026', '2026', '2026', '2026', "
    "1, 0, 0, 1)",
)

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def data(tmp_path: Path, databases: Databases) -> Path:
    """A directory with a database in it."""
    databases.copy_sqlite(tmp_path / "data")
    (tmp_path / "data").chmod(0o700)
    return tmp_path / "data"


# --- backup ------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Starts tasks with a log, one after the other, and knows which were answered."""

    def __init__(self, person: RemoteClient) -> None:
        super().__init__()
        self._person, self._done = person, threading.Event()
        self.acknowledged: list[str] = []
        self.longest = 0.0

    def run(self) -> None:
        while not self._done.is_set():
            began = time.monotonic()
            task = self._person.start()
            path = f"/task/{task['id']}/logs"
            self._person.request("PUT", path, data=b"x" * 20_000).raise_for_status()
            self.longest = max(self.longest, time.monotonic() - began)
            self.acknowledged.append(task["id"])

    def wait_for(self, count: int) -> None:
        until(lambda: len(self.acknowledged) >= count)

    def stop(self) -> None:
        self._done.set()
        self.join()


@on_sqlite
def test_backup_made_while_others_write_serves_all_that_was_acknowledged(
    service: Service, tmp_path: Path
) -> None:
    alice = service.add_user()
    copy = tmp_path / "restored" / "taskservice.db"
    copy.parent.mkdir()
    writer = Writer(RemoteClient(service.url, alice.key))
    writer.start()
    writer.wait_for(20)
    before = list(writer.acknowledged)
    made = service.run("db", "backup", str(copy))
    writer.wait_for(len(before) + 1)
    writer.stop()
    service.stop()
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"{copy}: ")
    assert "verified" in made.stdout
    assert copy.stat().st_mode & 0o777 == 0o600
    assert os.listdir(copy.parent) == ["taskservice.db"]
    with Service(copy.parent) as restored:
        alice.url = restored.url
        listed = {task["id"]: task for task in alice.request("GET", "/task").json()}
        assert set(before) <= set(listed)
        assert all(listed[task_id]["logCount"] == 1 for task_id in before)
        # It continues from there.
        alice.start()
        assert restored.run("db", "check").returncode == 0


def test_time_of_a_backup_is_recorded_when_it_succeeded(data: Path, tmp_path: Path) -> None:
    marker, began = data / "last_backup", time.time()
    assert run(data, "db", "backup", str(tmp_path)).returncode == 1
    assert not marker.exists()
    assert run(data, "db", "backup", str(tmp_path / "backup.db")).returncode == 0
    # The clock of a file system is a little behind.
    assert began - 1 < marker.stat().st_mtime <= time.time()
    assert marker.stat().st_mode & 0o777 == 0o600


def test_backup_whose_time_cannot_be_recorded_is_a_backup(data: Path, tmp_path: Path) -> None:
    (data / "last_backup").symlink_to("missing/file")
    result = run(data, "db", "backup", str(tmp_path / "backup.db"))
    assert result.returncode == 0
    assert "last_backup can't be written" in result.stderr
    assert (tmp_path / "backup.db").exists()


def test_backup_names_the_secret_key(data: Path, tmp_path: Path) -> None:
    run(data, "db", "upgrade", SECRET_KEY="")
    kept = run(data, "db", "backup", str(tmp_path / "one.db"), SECRET_KEY="")
    assert str(data / "secret_key") in kept.stderr
    result = run(data, "db", "backup", str(tmp_path / "two.db"))
    assert (result.returncode, result.stderr) == (0, "")


def test_backup_replaces_nothing_unless_told_to(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    target.write_text("precious")
    assert "--force replaces it" in one_line(run(data, "db", "backup", str(target)), 1)
    assert target.read_text() == "precious"
    assert run(data, "db", "backup", str(target), "--force").returncode == 0
    assert target.read_bytes().startswith(b"SQLite format 3\0")
    link = tmp_path / "link"
    link.symlink_to(target)
    assert run(data, "db", "backup", str(link), "--force").returncode == 0
    assert link.is_symlink()


def test_backup_replaces_no_file_of_the_service_and_only_regular_files(
    data: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    (data / "secret_key").write_text("k" * 32)
    (data / "taskservice.db-writers").touch()
    (tmp_path / "link").symlink_to(data / "taskservice.db-writers")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    service_files = ["secret_key", "taskservice.db", *(f"taskservice.db-{end}" for end in ENDS)]
    targets = [*(data / name for name in service_files), *(tmp_path / name for name in NO_FILES)]
    before = files(data)
    for target in targets:
        with subtests.test(target.name):
            line = one_line(run(data, "db", "backup", str(target), "--force"), 1)
            assert line.endswith(("belongs to the database itself", "is not a regular file"))
            assert files(data) == before
            assert not list(tmp_path.glob("**/*.part"))
    assert (tmp_path / "pipe").is_fifo()


ENDS = ["wal", "shm", "journal", "writers"]
NO_FILES = ["link", "pipe", "device"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("target", ["missing/backup.db", ".", "/proc/backup.db"])
def test_backup_that_cannot_be_written_is_one_line(data: Path, tmp_path: Path, target: str) -> None:
    one_line(run(data, "db", "backup", str(tmp_path / target)), 1)


def test_backup_does_not_migrate(data: Path, tmp_path: Path) -> None:
    """Before an upgrade an operator makes a backup, perhaps with the new version."""
    shutil.rmtree(data)
    migrations.upgrade(f"sqlite:///{data / 'taskservice.db'}", "0001")
    made = run(data, "db", "backup", str(tmp_path / "backup.db"))
    assert "revision 0001" in made.stdout
    assert "Revision 0001" in check(data)["revision"]["message"]
    assert revision(data / "taskservice.db") == "0001"


@pytest.mark.parametrize("fault", ["pages", "references"])
def test_broken_database_is_not_backed_up(data: Path, tmp_path: Path, fault: str) -> None:
    if fault == "pages":
        corrupt(data / "taskservice.db")
    else:
        change(data, "INSERT INTO callback_secrets VALUES ('1', 'nobody', 's', '2026', NULL)")
    result = run(data, "db", "backup", str(tmp_path / "backup.db"))
    assert "The backup failed: " in one_line(result, 1)
    assert list(tmp_path.iterdir()) == [data]


# As on a slow disk: it waits where there is more to copy.
SLOW_BACKUP = """
import time
from taskservice.cli import main
from taskservice.operations import backup


def wait(status, remaining, total):
    # Python notices a signal between two calls, but not one that comes just before a sleep.
    for _ in range(6000 if remaining else 0):
        time.sleep(0.01)

class SlowConnection(backup.sqlite3.Connection):
    def backup(self, target, *, pages, progress):
        super().backup(target, pages=pages, progress=wait)


connect = backup.sqlite3.connect
backup.sqlite3.connect = lambda *path, **options: connect(*path, factory=SlowConnection, **options)
main(prog_name="taskservice")
"""


def copying(data: Path, target: Path) -> ForkedPopen:
    """A backup that has copied a part of the database."""
    grow(data / "taskservice.db", megabytes=10)
    process = ForkedPopen(
        [sys.executable, "-c", SLOW_BACKUP, "db", "backup", str(target)],
        env=environment(data), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: [p for p in target.parent.glob("*.part") if p.stat().st_size > 1_000_000])
    assert process.poll() is None
    return process


def test_backup_that_is_killed_leaves_no_file_of_that_name(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    process = copying(data, target)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not target.exists()
    assert list(tmp_path.glob("*.part"))
    assert check(data)["integrity"]["state"] == "ok"
    assert run(data, "db", "backup", str(target)).returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_backup_that_is_interrupted_leaves_nothing(
    data: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    process = copying(data, tmp_path / "backup.db")
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == [data]


def test_command_on_a_full_disk_names_the_reason(data: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        shutil.copy(data / "taskservice.db", disk)
        fill(disk)
        for command in (["user", "list"], ["db", "backup", str(tmp_path / "backup.db")]):
            assert one_line(run(disk, *command), 1).endswith("; its disk is full")


def test_backup_of_postgresql_is_refused_and_names_pg_dump(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.empty_postgresql()
    result = run(tmp_path, "db", "backup", str(tmp_path / "backup.db"), DATABASE_URL=url)
    assert "pg_dump" in one_line(result, 2)


def grow(database: Path, megabytes: int) -> None:
    """Fill the database with something that takes a while to copy."""
    connection = sqlite3.connect(database)
    connection.execute("INSERT INTO logs (id) VALUES (1)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO log_chunks (log_id, last, count, text) "
        "SELECT 1, i, 1, hex(zeroblob(512 * 1024)) FROM n",
        [megabytes],
    )
    connection.commit()
    connection.close()


def revision(database: Path) -> str:
    connection = sqlite3.connect(database)
    (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.close()
    return str(revision)


# --- check -------------------------------------------------------------------------------


def states(checks: dict[str, dict[str, str]]) -> set[str]:
    # This machine may have a SQLite with the known bug, or a disk with little space.
    return {line["state"] for name, line in checks.items() if name not in ("sqlite", "disk")}


def test_sound_database_is_ok(data: Path) -> None:
    checks = check(data)
    assert list(checks) == ["sqlite", "file", "disk", "integrity", "revision", "deliveries"]
    assert states(checks) == {"ok"}
    assert sqlite3.sqlite_version in checks["sqlite"]["message"]
    lines = run(data, "db", "check").stdout.splitlines()
    assert len(lines) == len(checks)
    assert all(line.split()[0] in ("ok", "warning") for line in lines)


def test_sound_postgresql_is_ok(databases: Databases, tmp_path: Path) -> None:
    checks = check(tmp_path, DATABASE_URL=databases.empty_postgresql())
    assert list(checks) == ["server", "durability", "revision", "deliveries"]
    # The server of the tests may run without fsync.
    del checks["durability"]
    assert states(checks) == {"ok"}


def test_full_disk_is_an_error(data: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        shutil.copy(data / "taskservice.db", disk)
        filler = fill(disk)
        line = check(disk, 1)["disk"]
        assert (line["state"], line["message"]) == ("error", "The disk is full: writes fail")
        filler.unlink()
        assert check(disk)["disk"]["state"] == "warning"


def test_read_only_disk_is_an_error(data: Path) -> None:
    with read_only(data):
        assert "cannot be written" in check(data, 1)["file"]["message"]


def test_read_only_server_is_an_error(databases: Databases, tmp_path: Path) -> None:
    url = databases.new_postgresql()
    options = quote("-c default_transaction_read_only=on")
    read_only_url = f"{url}{'&' if '?' in url else '?'}options={options}"
    assert "read-only" in check(tmp_path, 1, DATABASE_URL=read_only_url)["server"]["message"]


def corrupt(database: Path) -> None:
    """Overwrite the middle of the file, in which there are tasks."""
    connection = sqlite3.connect(database)
    connection.execute("INSERT INTO users VALUES ('u', 'alice', '2026')")
    connection.executemany(
        "INSERT INTO callback_secrets VALUES (?, 'u', ?, '2026', NULL)",
        [(str(number), "x" * 3_000) for number in range(100)],
    )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with open(database, "r+b") as file:
        file.seek(database.stat().st_size - 200_000)
        file.write(b"\xff" * 20_000)


def test_corrupted_page_is_found(data: Path) -> None:
    corrupt(data / "taskservice.db")
    checks = check(data, 1)
    assert checks["integrity"]["state"] == "error"
    assert "deliveries" in checks


def test_reference_to_nothing_is_found(data: Path) -> None:
    change(data, "INSERT INTO callback_secrets VALUES ('1', 'nobody', 's', '2026', NULL)")
    message = check(data, 1)["integrity"]["message"]
    assert message == "row 1 of callback_secrets refers to a missing row of users"


def test_newer_revision_is_found_and_left_alone(data: Path) -> None:
    change(data, "UPDATE alembic_version SET version_num = '9999'")
    checks = check(data, 1)
    assert "newer than the code" in checks["revision"]["message"]
    assert revision(data / "taskservice.db") == "9999"


def test_file_that_others_can_read_is_a_warning(data: Path) -> None:
    (data / "taskservice.db").chmod(0o644)
    assert "mode 644" in check(data)["file"]["message"]


def test_short_secret_key_is_one_line_and_exit_code_2(data: Path) -> None:
    (data / "secret_key").touch()
    for command in (["serve"], ["db", "check"]):
        line = one_line(run(data, *command, SECRET_KEY=""), 2)
        assert f"{data / 'secret_key'} must be text in UTF-8 of at least 32 bytes" in line


def test_missing_file_is_an_error_and_stays_missing(tmp_path: Path) -> None:
    assert check(tmp_path / "none", 1, SECRET_KEY="")["file"]["state"] == "error"
    assert not (tmp_path / "none").exists()


def test_file_that_is_not_a_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taskservice.db").write_text("no database" * 1_000)
    assert check(tmp_path, 1)["integrity"]["message"] == "file is not a database"


def test_unreachable_server_is_an_error_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://nobody:hidden-word@127.0.0.1:1/nowhere"
    checks = check(tmp_path, 1, DATABASE_URL=url)
    assert checks["connection"]["state"] == "error"
    assert "hidden-word" not in json.dumps(checks)


@pytest.mark.parametrize(("seconds", "state"), [(10, "ok"), (600, "warning")])
def test_unsent_webhooks_are_a_warning(data: Path, seconds: int, state: str) -> None:
    change(
        data,
        *A_TASK,
        "INSERT INTO deliveries (id, task_id, user_id, callback_url, host, state, created_at, "
        "attempt_count, next_attempt_at) "
        "SELECT 'd', id, user_id, 'http://x/', 'x', 'pending', '2026', 0, "
        f"'{clock.now(-seconds)}' FROM tasks",
    )
    line = check(data)["deliveries"]
    assert line["state"] == state
    assert ("taskservice background" in line["message"]) == (state != "ok")


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ((3, 40, 1), "warning"), ((3, 44, 5), "warning"), ((3, 44, 6), "ok"),
        ((3, 46, 1), "warning"), ((3, 50, 7), "ok"), ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"), ((3, 53, 0), "ok"),
    ],
)  # fmt: skip
def test_versions_of_sqlite_with_its_bug_are_known(
    version: tuple[int, int, int], state: str
) -> None:
    version_state, message = database_check.sqlite_version(version)
    assert version_state == state
    assert ("that taskservice avoids" in message) == (state == "warning")
    assert message.endswith(" installs a newer version") == (state == "warning")


def test_newer_sqlite_is_used_where_it_is_installed(data: Path, tmp_path: Path) -> None:
    """By a stand-in for the package, which has Python's own SQLite under another version."""
    (tmp_path / "pysqlite3.py").write_text(
        "from sqlite3 import *\nfrom sqlite3 import Binary, dbapi2\n"
        "sqlite_version, sqlite_version_info = '3.99.1', (3, 99, 1)\n"
    )
    result = subprocess.run(
        [*COMMAND, "db", "check"], env=environment(data) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "ok       sqlite      SQLite 3.99.1\n" in result.stdout


def change(data: Path, *statements: str) -> None:
    connection = sqlite3.connect(data / "taskservice.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# --- prune -------------------------------------------------------------------------------


def old_tasks(service: Service, url: str) -> RemoteClient:
    """Two tasks that ended long ago and one that ended just now, each with a log."""
    alice = service.add_user()
    for moment in ("2020-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z", None):
        task = alice.start()
        path = f"/task/{task['id']}"
        alice.request("PUT", f"{path}/logs", data=b"x" * 30_000).raise_for_status()
        alice.request("PATCH", path, json={"status": "complete"}).raise_for_status()
        if moment:
            engine = create_engine(url)
            moved = "UPDATE tasks SET finished_at = :moment WHERE id IN (:id, :short)"
            ids = {"id": task["id"], "short": task["id"].replace("-", "")}
            if engine.dialect.name == "postgresql":
                moved, ids = moved.replace("IN (:id, :short)", "= :id"), {"id": task["id"]}
            with engine.begin() as connection:
                connection.execute(text(moved), {"moment": moment, **ids})
            engine.dispose()
    return alice


def pruned(service: Service, *arguments: str, **settings: str) -> dict[str, Any]:
    names = {f"TASKSERVICE_{name}": value for name, value in settings.items()}
    result = run_forked(
        [*COMMAND, "prune", "--json", *arguments], env=service.environment | names,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    counts: dict[str, Any] = json.loads(result.stdout)
    return counts


def test_prune_does_what_its_dry_run_says_while_the_service_runs(
    service: Service, database_url: str
) -> None:
    url = database_url
    if url.startswith("postgresql:"):
        url = "postgresql+psycopg" + url.removeprefix("postgresql")
    alice = old_tasks(service, url)
    before = alice.request("GET", "/task").json()
    logs = {"LOG_RETENTION_DAYS": "7"}
    counts = pruned(service, "--dry-run", **logs)
    assert (counts["tasks"], counts["logs"]) == (0, 2)
    assert alice.request("GET", "/task").json() == before
    assert pruned(service, **logs) == counts
    lines = [len(task["logs"]) for task in alice.request("GET", "/task").json()]
    assert lines == [1, 0, 0]
    both = {"RETENTION_DAYS": "30", **logs}
    counts = pruned(service, "--dry-run", **both)
    assert (counts["tasks"], counts["logs"]) == (2, 0)
    assert pruned(service, **both) == counts
    assert alice.request("GET", "/task").json() == before[:1]
    assert pruned(service, **both) == {"tasks": 0, "logs": 0}


def test_prune_without_a_setting_removes_nothing_and_says_why(data: Path) -> None:
    result = run(data, "prune")
    assert result.returncode == 0
    assert "Retention is off: set " in result.stderr
    assert result.stdout == "Nothing deleted\n"


def test_prune_returns_the_space_immediately(data: Path) -> None:
    database = data / "taskservice.db"
    grow(database, megabytes=30)
    change(
        data,
        *A_TASK,
        "UPDATE tasks SET finished_at = '2020-01-01T00:00:00.000Z', log_count = 30, "
        "log_bytes = 31457280",
        "UPDATE logs SET task_id = (SELECT id FROM tasks)",
    )
    assert database.stat().st_size > 30_000_000
    printed = run(data, "prune", RETENTION_DAYS="30").stdout
    assert printed == "1 task deleted\n"
    assert database.stat().st_size < 5_000_000
