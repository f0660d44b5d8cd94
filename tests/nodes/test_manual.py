"""A standby by the commands of docs/operate, until the old primary comes back."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.databases import Databases
from tests.support.documents import Terminal, block_in
from tests.support.postgresql_server import PostgresqlServer, postgresql_server
from tests.support.service import Service
from tests.support.waiting import until

DATA = "/var/lib/postgresql/data"
IS_SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


@contextmanager
def shell_at(server: PostgresqlServer, folder: Path) -> Iterator[Terminal]:
    """A shell of the user `postgres` on the machine of this server."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("pg_basebackup", "pg_ctl", "pg_rewind", "psql"):
        command = shlex.join(server.command(name))
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    with Terminal(folder) as terminal:
        # PGPORT is also where a server listens that has no other port in its settings.
        terminal.run(
            f"cd {server.folder}; PATH={programs}:$PATH; export PGPORT={server.port} "
            f"PGHOST=127.0.0.1 PGUSER=postgres"
        )
        yield terminal


def typed(
    terminal: Terminal, server: PostgresqlServer, mark: str, **hosts: PostgresqlServer
) -> None:
    """Type a block with the test's directory and hosts; each line must succeed."""
    block = block_in("operate", mark)
    block = block.replace(DATA, str(server.data))
    for name, host in hosts.items():
        assert f"host={name}.example.org" in block
        block = block.replace(f"host={name}.example.org", f"host=127.0.0.1 port={host.port}")
    lines = [f"{line} || echo FAILED" for line in block.splitlines()]
    assert "FAILED" not in (printed := terminal.run("\n".join(lines))), printed


@pytest.fixture
def servers(databases: Databases) -> Iterator[list[PostgresqlServer]]:
    with (
        postgresql_server(databases.programs) as primary,
        postgresql_server(databases.programs) as standby,
    ):
        settings = block_in("operate", "postgresql")
        primary.create(**dict(line.split(" = ") for line in settings.splitlines()))
        primary.execute("CREATE DATABASE tasks")
        yield [primary, standby]


def test_standby_takes_over_and_the_old_primary_comes_back_as_printed(
    servers: list[PostgresqlServer], tmp_path: Path
) -> None:
    one, two = servers
    hosts = f"{one.host},{two.host}"
    url = f"postgresql://postgres@{hosts}/tasks?target_session_attrs=read-write"
    with (
        shell_at(one, tmp_path / "one") as at_one,
        shell_at(two, tmp_path / "two") as at_two,
        Service(tmp_path / "data", DATABASE_URL=url) as node,
    ):
        typed(at_two, two, "standby", db1=one)
        typed(at_one, one, "synchronous")
        until(lambda: one.ask(IS_SYNCHRONOUS) == 1)
        alice = node.add_user("alice")
        tasks = [alice.start(name="before")]
        one.kill()
        typed(at_two, two, "promote")
        until(lambda: alice.request("GET", "/task").ok)
        tasks.append(alice.start(name="after"))
        typed(at_one, one, "rejoin", db2=two)
        typed(at_two, two, "synchronous")
        until(lambda: two.ask(IS_SYNCHRONOUS) == 1)
        tasks.append(alice.start(name="both"))
        one.stop()
        typed(at_two, two, "without the standby")
        tasks.append(alice.start(name="alone"))
        assert alice.request("GET", "/task").json() == tasks[::-1]
