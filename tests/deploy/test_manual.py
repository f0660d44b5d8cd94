"""The life of an installation, by the commands of docs/operate as they are printed."""

import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import requests
from psycopg.conninfo import conninfo_to_dict

from tests.support.api_client import RemoteClient
from tests.support.databases import Databases
from tests.support.deployed_nginx import DeployedNginx
from tests.support.documents import ROOT, Terminal, block_in
from tests.support.packages import wheel
from tests.support.service import free_port
from tests.support.systemd import Machine

SERVICE = "taskservice.service"
# What only root may do, or systemd does, in a directory.
PROGRAMS = {
    "useradd": "exit 0",
    "runuser": 'test "$1 $2 $3" = "-u taskservice --" && shift 3 && exec "$@"',
    # nginx is started by the test.
    "systemctl": '[ "$2" = nginx ] || '
    f'PYTHONPATH={ROOT} exec {sys.executable} -m tests.support.systemd "$ROOT" "$@"',
    "nginx": "exit 0",
    # What a pull would bring is not published yet.
    "git": "exit 0",
}


def new_machine(root: Path) -> Machine:
    for folder in ("opt", "var/lib", "etc/systemd/system", "etc/nginx/conf.d", "bin"):
        (root / folder).mkdir(parents=True)
    for name, script in PROGRAMS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (root / "bin" / name).chmod(0o755)
    return Machine(root)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = new_machine(tmp_path)
    yield machine
    machine.stop(SERVICE)


@pytest.fixture
def second_machine(machine: Machine, tmp_path: Path) -> Iterator[Machine]:
    """It has the programs of the first one, which need not be installed twice."""
    second = new_machine(tmp_path / "second")
    yield second
    second.stop(SERVICE)


class RootShell:
    """The shell of the manual's reader; each line of a block must succeed."""

    def __init__(self, machine: Machine, terminal: Terminal) -> None:
        self.machine, self.terminal = machine, terminal
        package = wheel(machine.root)
        self.replaced = {"'.[": f"'{package}["}
        # The script of the clone, for this machine and with the package as it will be published.
        script = (ROOT / "deploy/taskservice-upgrade").read_text().replace("-.[", f"-{package}[")
        path = machine.root / "taskservice-upgrade"
        path.write_text(machine.below_root(script))
        self.replaced["deploy/taskservice-upgrade"] = str(path)
        # Python's own variables would lead the virtual environment back to the tests.
        self.terminal.run("unset PYTHONPATH PYTHONHOME")
        self.move_to(machine)

    def move_to(self, machine: Machine) -> None:
        """What is typed from here on is typed at this machine."""
        self.machine = machine
        self.terminal.run(
            f"export ROOT={machine.root}; "
            f"PATH={machine.root}/bin:{Path(sys.executable).parent}:$PATH; cd {ROOT}"
        )

    def types(self, mark: str, **replaced: str) -> str:
        """Type a block, with a test's names instead of those in it; returns what it printed."""
        block = block_in("operate", mark)
        for old, new in self.replaced.items():
            block = block.replace(old, new)
        for name, new in replaced.items():
            assert EXAMPLES[name] in block
            block = block.replace(EXAMPLES[name], new)
        lines = self.machine.below_root(block).replace("&&\n", "&& ").splitlines()
        # pip may have much to download.
        return self.terminal.run("\n".join(f"{line} || echo FAILED" for line in lines), 250)


EXAMPLES = {
    "port": "8000",
    # It asks.
    "rollback": "taskservice db rollback",
    "database": "postgresql://taskservice@db.example.org/taskservice",
    "node": "10.0.0.11:8000",
    "other": "10.0.0.12:8000",
    "hosts": "db1.example.org,db2.example.org",
    "role": "//taskservice@",
    "name": "/taskservice?",
}


@pytest.mark.timeout(900)
def test_installation_lives_as_the_manual_says(
    machine: Machine, second_machine: Machine, terminal: Terminal, databases: Databases
) -> None:
    root, port = RootShell(machine, terminal), free_port()
    assert "FAILED" not in root.types("install")
    settings = machine.root / "etc/taskservice.env"
    with open(settings, "a") as file:
        file.write(f"TASKSERVICE_BIND=127.0.0.1:{port}\n")
    assert "FAILED" not in root.types("start")
    key = root.types("first user").split()[-1]
    alice = RemoteClient(f"http://127.0.0.1:{port}", key)
    task = alice.start(claim=True)
    line = {"logs": ["before"]}
    alice.request("POST", f"/task/{task['id']}/logs", json=line).raise_for_status()
    watched = root.types("watch", port=str(port))
    assert "FAILED" not in watched
    assert "ok       integrity" in watched
    sizes = root.types("sizes", port=str(port))
    assert 'taskservice_database_size_bytes{part="database"}' in sizes
    assert 'taskservice_tasks{status="running"} 1' in sizes

    secret_key = machine.root / "var/lib/taskservice/secret_key"
    before = secret_key.read_text()
    assert "FAILED" not in root.types("rotation: secret key")
    assert secret_key.read_text() != before

    installed = [machine.units / SERVICE, machine.root / "opt/taskservice/bin/taskservice-backup"]
    for path in installed:
        path.write_text(f"{path.read_text()}# of the old version\n")
    assert "FAILED" not in root.types("upgrade")
    assert [path.read_text() for path in installed] == [
        (ROOT / "deploy" / path.name).read_text() for path in installed
    ]
    backups = [path.suffix for path in (machine.root / "var/lib/taskservice-backups").iterdir()]
    assert sorted(backups) == ["", ".db"]
    assert log_of(alice, task) == ["before"]

    upgrade_to_unknown_revision(machine.root / "var/lib/taskservice/taskservice.db")
    later = alice.start()
    restored = root.types("roll back", rollback="taskservice db rollback --yes")
    assert "FAILED" not in restored
    assert "install taskservice 1.2.3 before" in restored
    assert "FAILED" not in root.types("go back")
    assert alice.request("GET", f"/task/{later['id']}").status_code == 404
    assert log_of(alice, task) == ["before"]

    with new_database(root, databases) as url:
        before = settings.read_text()
        # A copy that fails leaves all as it was.
        failed = root.types("grow", database=url.replace("/taskservice?", "/missing?"))
        assert failed.count("FAILED") == 1
        assert settings.read_text() == before
        assert log_of(alice, task) == ["before"]
        move_to_postgresql(root, settings, url, alice, task)
        become_two_nodes(root, second_machine, url, alice, task)


@contextmanager
def new_database(root: RootShell, databases: Databases) -> Iterator[str]:
    """The database that the manual makes; its role is not a superuser."""
    parts = conninfo_to_dict(databases.new_postgresql())
    server = f"export PGHOST='{parts['host']}' PGUSER={parts['user']}"
    root.terminal.run(f"PATH={databases.programs}:$PATH; {server}")
    assert "FAILED" not in root.types("database")
    root.terminal.run("unset PGHOST PGUSER")
    yield f"postgresql://taskservice@/taskservice?host={quote(str(parts['host']), safe='')}"
    root.terminal.run(f"{server}; dropdb --force taskservice; dropuser taskservice")


def move_to_postgresql(
    root: RootShell, settings: Path, url: str, alice: RemoteClient, task: dict[str, Any]
) -> None:
    copied = root.types("grow", database=url)
    assert "FAILED" not in copied
    assert "tasks 1 rows, sha256" in copied
    assert f"TASKSERVICE_DATABASE_URL={url}" in settings.read_text()
    # The old database no longer counts.
    (root.machine.root / "var/lib/taskservice/taskservice.db").unlink()
    assert log_of(alice, task) == ["before"]
    assert requests.get(f"{alice.url}/readyz", timeout=60).ok
    assert "sqlite" not in root.terminal.run("taskservice db check")

    before = settings.read_text()
    assert "FAILED" not in root.types("rotation: secret key of nodes")
    assert settings.read_text() != before
    assert log_of(alice, task) == ["before"]

    root.terminal.run(f"echo PATH=$PATH >> {settings}; systemctl start taskservice-backup.service")
    later = alice.start()
    # As a newer version may have one, which the backup does not know.
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE newer AS SELECT id FROM users")
        connection.execute("ALTER TABLE newer ADD FOREIGN KEY (id) REFERENCES users")
    assert "FAILED" not in root.types("restore on postgresql")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_regclass('newer')").fetchone() == (None,)
    assert alice.request("GET", f"/task/{later['id']}").status_code == 404
    assert log_of(alice, task) == ["before"]


def become_two_nodes(
    root: RootShell, second: Machine, url: str, alice: RemoteClient, task: dict[str, Any]
) -> None:
    first, nodes = root.machine, [f"127.0.0.1:{free_port()}" for _ in range(2)]
    assert "FAILED" not in root.types("node", node=nodes[0])
    copy_installation(first, second)
    root.move_to(second)
    assert "FAILED" not in root.types("node", node=nodes[1])
    assert "FAILED" not in root.types("proxy", node=nodes[0], other=nodes[1])
    assert "FAILED" not in root.types("reload the proxy")
    conf = (second.root / "etc/nginx/conf.d/taskservice.conf").read_text()
    with DeployedNginx(second.root / "nginx", [], conf) as nginx:
        alice.url, alice.session.verify = f"{nginx.url}/tasks", str(nginx.authority)
        for _ in range(4):
            assert log_of(alice, task) == ["before"]
        assert "FAILED" not in root.types("hosts", **hosts_of(url))
        assert "FAILED" not in root.types("rolling restart", node=nodes[1])
        first.stop(SERVICE)
        for _ in range(4):
            assert log_of(alice, task) == ["before"]


def hosts_of(url: str) -> dict[str, str]:
    """The test's database at the second of two hosts, as the first one is lost."""
    parts = conninfo_to_dict(url)
    return {
        "hosts": f"127.0.0.1:1,{quote(str(parts['host']), safe='')}",
        "role": f"//{parts['user']}@",
        "name": f"/{parts['dbname']}?",
    }


def copy_installation(first: Machine, second: Machine) -> None:
    """What the first blocks did on the first machine, which take a while."""
    (second.root / "opt/taskservice").symlink_to(first.root / "opt/taskservice")
    for folder in ("etc/systemd/system", "etc"):
        for file in (first.root / folder).iterdir():
            if file.is_file():
                shutil.copy(file, second.root / folder)


def upgrade_to_unknown_revision(database: Path) -> None:
    """As a newer version does, which first copies the database."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("VACUUM INTO ?", [str(database.with_name("before-1.2.3.sqlite3"))])
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def log_of(person: RemoteClient, task: dict[str, Any]) -> list[str]:
    logs: list[str] = person.request("GET", f"/task/{task['id']}/logs").json()["logs"]
    return logs
