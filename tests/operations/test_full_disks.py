"""Commands on the server whose disk is full: one line, nothing half-written, and then they work."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskservice.database import migrations
from tests.support.commands import one_line, run
from tests.support.databases import Databases
from tests.support.fork_server import run_forked
from tests.support.mounts import empty_log, fill, small_disk
from tests.support.old_database import REVISIONS
from tests.support.service import COMMAND, Service

KIB = 1024


@pytest.fixture
def source(tmp_path: Path, databases: Databases) -> Path:
    """A directory with the database of alice, on a disk with space."""
    databases.copy_sqlite(tmp_path / "source")
    assert run(tmp_path / "source", "user", "add", "alice").returncode == 0
    return tmp_path / "source"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def names(data: Path) -> list[str]:
    """The users of a database, which is whole."""
    log = data / "taskservice.db-wal"
    assert not (log.exists() and log.stat().st_size)
    # On a full disk SQLite has no space for the index of a log.
    uri = f"file:{data / 'taskservice.db'}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY name")]


def one_line_of(failed: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failure, whose words depend on how much space is left."""
    assert (failed.returncode, failed.stdout) == (1, ""), failed
    (line,) = failed.stderr.splitlines()
    return line


def test_new_database_on_a_full_disk_is_one_line(
    source: Path, disk: Path, subtests: pytest.Subtests
) -> None:
    filler = fill(disk)
    for command in ("serve", "user add bob", "db upgrade"):
        with subtests.test(command):
            assert "disk is full" in one_line(run(disk, *command.split()), 1)
    with subtests.test("user add"):
        line = one_line(run(disk, "user", "add", "bob", SECRET_KEY=""), 2)
        assert "secret_key cannot be used: No space left on device" in line
        assert not (disk / "secret_key").exists()
    filler.unlink()
    assert run(disk, "user", "add", "bob", SECRET_KEY="").returncode == 0
    assert names(disk) == ["bob"]


def test_command_on_a_full_disk_changes_nothing(
    source: Path, disk: Path, subtests: pytest.Subtests
) -> None:
    shutil.copy(source / "taskservice.db", disk)
    filler = fill(disk)
    for command in (
        "serve", "background", "user add bob", "user list", "key add alice --name laptop", "prune",
        "delivery list", "export", "db upgrade",
    ):  # fmt: skip
        with subtests.test(command):
            line = one_line(run(disk, *command.split(), RETENTION_DAYS="1"), 1)
            assert line.endswith("; its disk is full")
    filler.unlink()
    assert names(disk) == ["alice"]
    assert run(disk, "user", "add", "bob").returncode == 0


def test_command_next_to_a_service_on_a_full_disk_changes_nothing(
    source: Path, disk: Path, subtests: pytest.Subtests
) -> None:
    shutil.copy(source / "taskservice.db", disk)
    with Service(disk) as service:
        carol = service.add_user("carol")
        carol.start()
        key = carol.request("GET", "/key").json()[0]["id"]
        before = run(disk, "export").stdout, run(disk, "key", "list", "--json").stdout
        empty_log(disk)
        filler = fill(disk)
        for command in ("user add dave", "key add alice --name laptop", "key revoke"):
            with subtests.test(command):
                arguments = [*command.split(), *([key] if command == "key revoke" else [])]
                refused = run_forked(
                    [*COMMAND, *arguments], env=service.environment, capture_output=True,
                    text=True, timeout=60,
                )  # fmt: skip
                assert "database or disk is full" in one_line(refused, 1)
        # Commands that only read work.
        after = run(disk, "export").stdout, run(disk, "key", "list", "--json").stdout
        assert after == before
        filler.unlink()
        assert run(disk, "key", "revoke", key).returncode == 0


def test_what_makes_space_works_on_a_full_disk(databases: Databases, tmp_path: Path) -> None:
    """With and without a service that runs."""
    with small_disk(tmp_path / "data", "48m") as disk:
        databases.copy_sqlite(disk)
        with Service(disk) as service:
            alice = service.add_user("alice")
            log = {"logs": ["x" * 60_000] * 10}
            tasks = [alice.start(claim=True) for _ in range(12)]
            for task in tasks:
                alice.request("POST", f"/task/{task['id']}/logs", json=log).raise_for_status()
                alice.report(task, status="complete")
            running = alice.start(claim=True)
            # The service makes the reserve in a round of maintenance; the last one is at its end.
            assert service.stop() == 0
            empty_log(disk)
            fill(disk)
            refused = one_line(run(disk, "key", "add", "alice", "--name", "laptop"), 1)
            assert refused.endswith("its disk is full; run `taskservice prune`")
            pruned = run(disk, "prune", RETENTION_DAYS="0.0000001")
            assert (pruned.returncode, pruned.stdout) == (0, "12 tasks deleted\n"), pruned
            assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 6_000_000

            # Its space goes to the reserve again.
            (disk / "filler").unlink()
            service.start()
            assert service.stop() == 0
            service.start()
            empty_log(disk)
            fill(disk)
            path = f"/task/{running['id']}"
            assert alice.request("DELETE", path).status_code == 503
            assert run(disk, "prune").returncode == 0
            assert alice.request("DELETE", path).status_code == 200
            (disk / "filler").unlink()
            assert service.stop() == 0
            empty_log(disk)
            fill(disk)
            assert run(disk, "user", "delete", "alice", "--yes", "--now").returncode == 0


def test_backup_to_a_full_disk_leaves_nothing(source: Path, disk: Path) -> None:
    filler = fill(disk)
    assert "disk is full" in one_line(run(source, "db", "backup", str(disk / "backup.db")), 1)
    assert list(disk.iterdir()) == [filler]
    filler.unlink()
    assert run(source, "db", "backup", str(disk / "backup.db")).returncode == 0


def test_restore_on_a_disk_that_fills_up_leaves_the_old_or_the_new_database(
    source: Path, disk: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    assert run(source, "db", "backup", str(backup)).returncode == 0
    assert run(disk, "user", "add", "bob").returncode == 0
    filler, failures = fill(disk), 0
    while (restored := run(disk, "db", "restore", str(backup), "--force")).returncode:
        # The last one is what SQLite says if the memory that it shares can't grow.
        reasons = ("full", "No space left", "disk I/O error")
        assert any(reason in one_line_of(restored) for reason in reasons)
        failures += 1
        # Whatever it has used is free again.
        assert not list(disk.glob("*.part"))
        assert names(disk) == ["bob"]
        os.truncate(filler, filler.stat().st_size - 64 * KIB)
    assert failures > 2
    assert names(disk) == ["alice"]


def test_copy_to_a_disk_that_fills_up_continues_with_space(source: Path, disk: Path) -> None:
    target = disk / "taskservice.db"
    copy = ("db", "copy", str(source / "taskservice.db"), str(target))
    filler, failures = fill(disk), 0
    while (copied := run(disk, *copy)).returncode:
        assert "full" in one_line_of(copied)
        failures += 1
        os.truncate(filler, filler.stat().st_size - 64 * KIB)
    assert failures > 2
    filler.unlink()
    assert names(disk) == ["alice"]
    assert run(disk, "user", "add", "bob").returncode == 0


def test_migration_on_a_disk_that_fills_up_changes_nothing(disk: Path) -> None:
    migrations.upgrade(f"sqlite:///{disk / 'taskservice.db'}", REVISIONS[0])
    with closing(sqlite3.connect(disk / "taskservice.db")) as connection:
        connection.execute("INSERT INTO users VALUES ('u', 'alice', '2026-11-24T13:36:00.123Z')")
        connection.commit()
    filler, failures = fill(disk), 0
    while (upgraded := run(disk, "db", "upgrade")).returncode:
        assert "full" in one_line_of(upgraded)
        failures += 1
        os.truncate(filler, filler.stat().st_size - 64 * KIB)
    assert failures > 1
    filler.unlink()
    # It also moves the log into the database, for which there was no space.
    assert run(disk, "user", "list").returncode == 0
    assert names(disk) == ["alice"]


def test_empty_file_is_replaced_by_a_restore(source: Path, disk: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    assert run(source, "db", "backup", str(backup)).returncode == 0
    filler = fill(disk)
    one_line(run(disk, "user", "add", "bob"), 1)
    filler.unlink()
    assert run(disk, "db", "restore", str(backup)).returncode == 0
    assert names(disk) == ["alice"]
