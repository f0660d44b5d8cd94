"""`db restore`: a backup takes the place of the database, whole or not at all."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from taskservice.database import migrations
from tests.support.commands import check, one_line, run
from tests.support.databases import Databases
from tests.support.fork_server import run_forked
from tests.support.service import Service, environment

KILLED = -signal.SIGKILL
REVISIONS = sorted(path.name[:4] for path in (migrations.FOLDER / "versions").glob("*.py"))


@pytest.fixture
def data(tmp_path: Path, databases: Databases) -> Path:
    """A directory with the database of bob."""
    databases.copy_sqlite(tmp_path / "data")
    (tmp_path / "data").chmod(0o700)
    name_user(tmp_path / "data" / "taskservice.db", "bob")
    return tmp_path / "data"


@pytest.fixture
def backup(tmp_path: Path, databases: Databases) -> Path:
    """A backup of the database of alice."""
    databases.copy_sqlite(tmp_path / "other")
    name_user(tmp_path / "other" / "taskservice.db", "alice")
    made = run(tmp_path / "other", "db", "backup", str(tmp_path / "backup.db"))
    assert made.returncode == 0, made
    return tmp_path / "backup.db"


def name_user(database: Path, name: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO users VALUES (?, ?, '2026')", [name, name])
        connection.commit()


def users(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY name")]


def leave_log(database: Path, name: str) -> None:
    """Add a user only to the log, as a killed process leaves it."""
    program = (
        "import os, sqlite3, sys; connection = sqlite3.connect(sys.argv[1]); "
        "connection.execute(\"INSERT INTO users VALUES (?, ?, '2026')\", sys.argv[2:] * 2); "
        "connection.commit(); os._exit(0)"
    )
    run_forked([sys.executable, "-c", program, str(database), name], timeout=60, check=True)


def replaced(folder: Path) -> Path:
    # With or without its log.
    (replaced,) = folder.glob("taskservice.db.replaced-*Z")
    return replaced


def test_backup_is_restored_where_there_is_no_database(backup: Path, tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    restored = run(data, "db", "restore", str(backup))
    database = data / "taskservice.db"
    size = database.stat().st_size
    head = migrations.head()
    assert restored.stdout == f"{database}: {size} bytes, revision {head}\n"
    assert restored.stderr == ""
    assert users(database) == ["alice"]
    assert database.stat().st_mode & 0o777 == 0o600
    assert check(data)["revision"]["state"] == "ok"
    # A backup may be restored many times.
    assert users(backup) == ["alice"]


def test_restore_prints_what_to_do_about_the_secret_key(backup: Path, tmp_path: Path) -> None:
    restored = run(tmp_path / "new", "db", "restore", str(backup), SECRET_KEY="")
    assert str(tmp_path / "new" / "secret_key") in restored.stderr
    assert not (tmp_path / "new" / "secret_key").exists()


def test_restore_replaces_a_database_only_with_force_and_keeps_it_aside(
    data: Path, backup: Path
) -> None:
    leave_log(data / "taskservice.db", "carol")
    line = one_line(run(data, "db", "restore", str(backup)), 1)
    assert line.endswith("taskservice.db exists; --force replaces it and saves the old one")
    restored = run(data, "db", "restore", str(backup), "--force")
    assert restored.returncode == 0, restored
    assert users(data / "taskservice.db") == ["alice"]
    aside = replaced(data)
    assert f"the previous database was saved as {aside}" in restored.stderr
    assert users(aside) == ["bob", "carol"]
    assert check(data)["integrity"]["state"] == "ok"
    # Nothing else is left, and it can be restored in turn.
    assert set(data.glob("*.replaced-*")) == {aside}
    assert run(data, "db", "restore", str(aside), "--force").returncode == 0
    assert users(data / "taskservice.db") == ["bob", "carol"]


def test_restore_is_refused_while_the_service_runs(data: Path, backup: Path) -> None:
    with Service(data) as service:
        person = service.add_user("carol")
        line = one_line(service.run("db", "restore", str(backup), "--force"), 1)
        assert line.endswith("stop the service and every other command first")
        assert person.request("GET", "/user").json()["name"] == "carol"
        service.stop()
        assert service.run("db", "restore", str(backup), "--force").returncode == 0
    assert users(data / "taskservice.db") == ["alice"]
    assert users(replaced(data)) == ["bob", "carol"]


def test_database_with_damaged_pages_is_replaced(data: Path, backup: Path) -> None:
    leave_log(data / "taskservice.db", "carol")
    content = bytearray((data / "taskservice.db").read_bytes())
    content[100:40_000] = bytes(39_900)
    (data / "taskservice.db").write_bytes(content)
    restored = run(data, "db", "restore", str(backup), "--force")
    assert restored.returncode == 0, restored
    assert users(data / "taskservice.db") == ["alice"]
    assert replaced(data).stat().st_size >= len(content)


def test_damaged_database_is_replaced_and_kept_with_its_log(data: Path, backup: Path) -> None:
    leave_log(data / "taskservice.db", "carol")
    log = (data / "taskservice.db-wal").read_bytes()
    (data / "taskservice.db").write_bytes(b"damaged" * 10_000)
    restored = run(data, "db", "restore", str(backup), "--force")
    assert restored.returncode == 0, restored
    assert users(data / "taskservice.db") == ["alice"]
    assert replaced(data).read_bytes() == b"damaged" * 10_000
    assert Path(f"{replaced(data)}-wal").read_bytes() == log


def test_log_without_its_database_does_not_reach_the_restored_one(data: Path, backup: Path) -> None:
    leave_log(data / "taskservice.db", "carol")
    (data / "taskservice.db").unlink()
    assert "--force" in one_line(run(data, "db", "restore", str(backup)), 1)
    assert run(data, "db", "restore", str(backup), "--force").returncode == 0
    assert users(data / "taskservice.db") == ["alice"]


@pytest.mark.parametrize("older", REVISIONS)
def test_backup_of_any_released_revision_is_restored_and_migrated(
    older: str, tmp_path: Path
) -> None:
    file = tmp_path / "old" / "taskservice.db"
    migrations.upgrade(f"sqlite:///{file}", older)
    name_user(file, "alice")
    made = run(file.parent, "db", "backup", str(tmp_path / "backup.db"))
    assert f"revision {older}" in made.stdout
    restored = run(tmp_path / "new", "db", "restore", str(tmp_path / "backup.db"))
    assert f"revision {migrations.head()}" in restored.stdout
    assert users(tmp_path / "new" / "taskservice.db") == ["alice"]
    assert check(tmp_path / "new")["revision"]["state"] == "ok"


def test_unusable_backup_is_refused_and_changes_nothing(
    data: Path, backup: Path, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    before = {path.name for path in data.iterdir()}
    cut, text, newer, other = (tmp_path / f"{name}.db" for name in ("cut", "text", "newer", "own"))
    cut.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    text.write_text("precious " * 1_000)
    for file, statement in (
        (newer, "UPDATE alembic_version SET version_num = '9999'"),
        (other, "DROP TABLE alembic_version"),
    ):
        shutil.copy(backup, file)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(statement)
            connection.commit()
    os.mkfifo(tmp_path / "pipe.db")
    open_one = tmp_path / "open.db"
    shutil.copy(backup, open_one)
    leave_log(open_one, "carol")
    cases = [
        (cut, "malformed"), (text, "not a database"), (newer, "newer than the code"),
        (other, "of another program"), (tmp_path / "pipe.db", "not a regular file"),
        (tmp_path / "none.db", "There is no backup"), (open_one, "a live database, not a backup"),
        (tmp_path, "not a regular file"), (data / "taskservice.db", "belongs to the database"),
    ]  # fmt: skip
    for file, reason in cases:
        with subtests.test(file.name):
            assert reason in one_line(run(data, "db", "restore", str(file), "--force"), 1)
            assert {path.name for path in data.iterdir()} - {"taskservice.db-writers"} == before
            assert users(data / "taskservice.db") == ["bob"]


def test_restore_of_postgresql_is_refused_and_names_pg_restore(
    databases: Databases, backup: Path, tmp_path: Path
) -> None:
    url = databases.empty_postgresql()
    assert "pg_restore" in one_line(
        run(tmp_path, "db", "restore", str(backup), DATABASE_URL=url), 2
    )


# Killed before the n-th call that changes a file or waits for the disk.
KILLED_RESTORE = """
import itertools, os, signal, sys
from taskservice.cli import main

moments, at = itertools.count(1), int(sys.argv.pop(1))


def before(function):
    def call(*args, **kwargs):
        if next(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

for name in ("link", "unlink", "replace", "rename", "fsync"):
    setattr(os, name, before(getattr(os, name)))
main(prog_name="taskservice")
"""


@pytest.mark.parametrize("has_log", [False, True])
def test_restore_killed_at_any_point_leaves_the_old_or_the_new_database_complete(
    data: Path, backup: Path, tmp_path: Path, has_log: bool
) -> None:
    outcomes = []
    for moment in range(1, 100):
        folder = tmp_path / f"killed {moment}"
        shutil.copytree(data, folder)
        if has_log:
            leave_log(folder / "taskservice.db", "carol")
        code = killed_at(moment, folder, backup)
        outcomes.append(users(folder / "taskservice.db"))
        # The next one does it all.
        again = run(folder, "db", "restore", str(backup), "--force")
        assert again.returncode == 0, again
        assert users(folder / "taskservice.db") == ["alice"]
        asides = folder.glob("taskservice.db.replaced-*Z")
        assert all(not path.samefile(folder / "taskservice.db") for path in asides)
        if code == 0:
            break
    else:
        raise AssertionError("It was never done")
    old = ["bob", "carol"] if has_log else ["bob"]
    assert moment > 5
    assert [users for users in outcomes if users not in (old, ["alice"])] == []
    assert outcomes == sorted(outcomes, key=lambda users: users == ["alice"])
    assert (outcomes[0], outcomes[-1]) == (old, ["alice"])


def killed_at(moment: int, folder: Path, backup: Path) -> int:
    restored = run_forked(
        [
            sys.executable, "-c", KILLED_RESTORE, str(moment),
            "db", "restore", str(backup), "--force",
        ],
        env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    assert restored.returncode in (0, KILLED), restored
    return int(restored.returncode)
