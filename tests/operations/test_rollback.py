"""`db rollback`: the way back after an upgrade, even after many nightly backups."""

import os
import subprocess
from pathlib import Path

import pytest

from taskservice import __version__
from taskservice.database import migrations
from tests.support.commands import one_line, run
from tests.support.databases import Databases
from tests.support.documents import ROOT, install_commands
from tests.support.next_version import REVISION, install_next_version
from tests.support.pseudo_terminal import on_terminal
from tests.support.service import COMMAND, Service, environment

COPY = f"before-{__version__}.sqlite3"


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return install_next_version(tmp_path_factory.mktemp("next"))


def back_up_every_night(service: Service, folder: Path, nights: int) -> list[str]:
    """Run the script of the nightly timer, which retains two backups; returns their names."""
    backups = folder / "backups"
    backups.mkdir()
    settings = {
        "BACKUP_FOLDER": str(backups), "BACKUP_KEEP": "2",
        "PATH": f"{install_commands(folder / 'bin')}:{os.environ['PATH']}",
    }  # fmt: skip
    for night in range(nights):
        command = ["sh", str(ROOT / "deploy" / "taskservice-backup")]
        subprocess.run(command, env=service.environment | settings, check=True)
        # The script names a backup after the second.
        newest = max(backups.glob("*.db"), key=lambda path: path.stat().st_mtime_ns)
        newest.rename(backups / f"taskservice-2026-01-{night + 1:02}T000000Z.db")
    return sorted(path.name for path in backups.glob("*.db"))


def test_upgrade_is_undone_after_a_week_of_nightly_backups(
    next_version: dict[str, str], databases: Databases, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    databases.copy_sqlite(data)
    with Service(data) as service:
        alice = service.add_user("alice")
        task = alice.start(claim=True, name="before", labels={"env": "prod"})
        alice.request("PUT", f"/task/{task['id']}/logs", data=b"one\ntwo\n").raise_for_status()
        before = alice.read(f"/task/{task['id']}")
        assert service.stop() == 0
        assert "no copy from before an upgrade" in one_line(
            service.run("db", "rollback", "--yes"), 1
        )

        old = dict(service.environment)
        service.environment |= next_version
        service.start()
        assert f"Copied the database to {data / COPY}" in service.log.read_text()
        after = alice.start(name="after")
        in_use = one_line(service.run("db", "rollback", "--yes"), 1)
        assert in_use.endswith("stop the service and every other command first")
        assert len(back_up_every_night(service, tmp_path, 7)) == 2
        assert service.stop() == 0
        assert (data / COPY).stat().st_mode & 0o777 == 0o600

        unconfirmed = service.run("db", "rollback")
        assert unconfirmed.returncode == 2
        assert "--yes is needed without a terminal" in unconfirmed.stderr
        declined = on_terminal([*COMMAND, "db", "rollback"], service.environment, {"[y/N]: ": "n"})
        assert f"Replace the database with {data / COPY}, made at 20" in declined
        assert declined.endswith("[y/N]: n\nAborted!\n")
        assert (data / COPY).exists()
        undone = on_terminal([*COMMAND, "db", "rollback"], service.environment, {"[y/N]: ": "y"})
        assert f"install taskservice {__version__} before" in undone
        (saved,) = data.glob("taskservice.db.replaced-*Z")
        assert f"the previous database was saved as {saved}" in undone
        assert "no copy from before" in one_line(service.run("db", "rollback", "--yes"), 1)

        service.environment = old
        service.start()
        assert alice.read(f"/task/{task['id']}") == before
        assert alice.request("GET", f"/task/{after['id']}").status_code == 404
        assert alice.start(name="continues")["name"] == "continues"


def test_processes_that_start_at_once_make_one_copy(
    next_version: dict[str, str], databases: Databases, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    databases.copy_sqlite(data)
    # Not recorded by a version before this one: the name has the revision.
    copy = data / f"before-revision-{migrations.head()}.sqlite3"
    command = [*COMMAND, "db", "upgrade"]
    env = environment(data) | next_version
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate()[0] for process in started] == [f"{REVISION}\n"] * 3
    assert list(data.glob("before-*")) == [copy]
    made = subprocess.run(
        [*COMMAND, "db", "rollback", "--yes"], env=env, capture_output=True, text=True, check=True
    )
    assert f"with database revision-{migrations.head()}" in made.stderr
    assert run(data, "user", "list").returncode == 0


def test_upgrade_of_postgresql_names_the_backup_and_asks(
    next_version: dict[str, str], databases: Databases, tmp_path: Path
) -> None:
    url = databases.new_postgresql()
    settings = environment(tmp_path / "data", DATABASE_URL=url)
    # It creates a database, and has nothing to do the second time.
    for _ in range(2):
        assert run(tmp_path / "data", "db", "upgrade", DATABASE_URL=url).returncode == 0

    def upgrade(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "db", *arguments], env=settings | next_version, capture_output=True,
            text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    refused = upgrade("upgrade")
    assert refused.returncode == 2
    assert "pg_dump --format=custom --file=before-upgrade.dump" in refused.stderr
    assert "--yes is needed without a terminal" in refused.stderr
    assert run(tmp_path / "data", "user", "list", DATABASE_URL=url).returncode == 0
    command, revision = [*COMMAND, "db", "upgrade"], f"{REVISION}\n"
    declined = on_terminal(command, settings | next_version, {"[y/N]: ": "n"})
    assert declined.startswith("taskservice: database postgresql://")
    assert declined.endswith("Is there a backup? Upgrade the database? [y/N]: n\nAborted!\n")
    assert run(tmp_path / "data", "user", "list", DATABASE_URL=url).returncode == 0
    accepted = on_terminal(command, settings | next_version, {"[y/N]: ": "y"})
    assert accepted.endswith(revision)
    # Nothing is left to ask about.
    assert on_terminal(command, settings | next_version).endswith(revision)
    assert upgrade("upgrade", "--yes").stdout == revision
    back = one_line(upgrade("rollback"), 2)
    assert 'pg_restore --dbname="$TASKSERVICE_DATABASE_URL" before-upgrade.dump' in back
