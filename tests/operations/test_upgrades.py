"""Upgrades of databases that older versions have filled, even if they are killed midway."""

import itertools
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from flask import Flask
from sqlalchemy import create_engine, inspect, make_url, pool, text

from taskservice.cli import main
from taskservice.cli.commands import SERVER_COMMANDS
from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.address import parse
from taskservice.database.engine import dispose
from taskservice.database.types import db
from taskservice.webhooks.destinations import Destinations
from tests.support.all_tables import as_before, fill, seen
from tests.support.api_client import ApiClient, expect, problem
from tests.support.apps import Apps
from tests.support.commands import one_line, run
from tests.support.databases import DATABASES, Databases
from tests.support.fork_server import run_forked
from tests.support.internals import rows, run_sql
from tests.support.old_database import REVISIONS, Rows, make_old_database, not_kept_before
from tests.support.receiver import Receiver
from tests.support.service import Service, environment


@contextmanager
def new_app(apps: Apps, config: Config) -> Iterator[Flask]:
    app = apps.new(config)
    yield app
    dispose(app)


@dataclass
class Filled:
    """A database of today with data in all tables: the rows of `path`."""

    path: Path
    people: list[ApiClient]
    config: Config
    apps: Apps

    def at(self, revision: str, folder: Path) -> "Contents":
        """What a database of this revision, with the same data, has after its upgrade."""
        path = shutil.copy(self.path, folder / "filled.db")
        with new_app(self.apps, replace(self.config, DATABASE_URL=f"sqlite:///{path}")) as app:
            for statement in not_kept_before(revision):
                run_sql(app, statement)
            return contents(app, self.people)


@dataclass
class Contents:
    """All rows, and all that the API says."""

    rows: dict[str, list[tuple[Any, ...]]]
    seen: list[dict[str, Any]]


def contents(app: Flask, people: list[ApiClient]) -> Contents:
    return Contents(rows(app), [seen(as_before(app, person)) for person in people])


@pytest.fixture(scope="module")
def filled(databases: Databases, apps: Apps, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("filled")
    config = Config(
        DATA=folder,
        DATABASE_URL=databases.copy_sqlite(folder / "data"),
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("loopback"),
        THREADS=4,
    ).completed()
    with new_app(apps, config) as app, Receiver() as receiver:
        people = fill(app, receiver, ("alice",))
        # The time of the last use must not depend on when a test uses the key.
        run_sql(app, "UPDATE api_keys SET last_used_at = '2100-01-01T00:00:00.000Z'")
        assert all(rows(app).values())
    return Filled(folder / "data" / "taskservice.db", people, config, apps)


@pytest.fixture
def rows_of_today(filled: Filled) -> Rows:
    with new_app(filled.apps, filled.config) as app:
        return {
            name: [dict(zip(db.metadata.tables[name].columns.keys(), row, strict=True))
                   for row in table_rows]
            for name, table_rows in rows(app).items()
        }  # fmt: skip


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> str:
    return new_url(request.param, databases, tmp_path)


def new_url(kind: str, databases: Databases, folder: Path) -> str:
    if kind == "postgresql":
        return "postgresql+psycopg" + databases.new_postgresql().removeprefix("postgresql")
    return f"sqlite:///{folder / 'upgraded' / 'taskservice.db'}"


# From the newest backwards; CI leaves some out.
@pytest.mark.parametrize("older", REVISIONS[:: -int(os.environ.get("UPGRADE_REVISIONS", "1"))])
def test_upgraded_database_has_its_data_and_the_schema_of_a_new_one(
    url: str,
    older: str,
    filled: Filled,
    rows_of_today: Rows,
    apps: Apps,
    databases: Databases,
    tmp_path: Path,
) -> None:
    make_old_database(url, older, rows_of_today)
    expected = filled.at(older, tmp_path)
    migrations.upgrade(url)
    with new_app(apps, replace(filled.config, DATABASE_URL=url)) as app:
        assert contents(app, filled.people) == expected
        # It continues as any other.
        alice = as_before(app, filled.people[0])
        parent = expect(alice.get("/task?limit=1"), 200)[0]
        task = alice.start(claim=True, parentId=parent["id"], labels={"env": "prod"})
        alice.append(task, "one")
        assert alice.report(task, status="complete")["logs"] == ["one"]
    kind = url.partition(":")[0].partition("+")[0]
    new = new_url(kind, databases, tmp_path / "new")
    migrations.upgrade(new)
    assert schema(url) ^ schema(new) == set()


MIGRATED = re.compile(r"INFO +Migrated the database to revision (\d{4}) in \d+\.\d s")


def test_each_migration_at_a_start_is_a_line_in_the_log(
    url: str, rows_of_today: Rows, tmp_path: Path
) -> None:
    make_old_database(url, REVISIONS[-3], rows_of_today)
    settings = {
        "DATABASE_URL": url.replace("+psycopg", ""),
        "SECRET_KEY": "a secret key for tests, long enough",
    }
    for expected in (REVISIONS[-2:], []):
        with Service(tmp_path / "data", **settings) as service:
            assert MIGRATED.findall(service.log.read_text()) == expected
            service.log.unlink()


def test_new_database_is_one_line_in_the_log(tmp_path: Path) -> None:
    with NewService(tmp_path / "data") as service:
        (line,) = [line for line in service.log.read_text().splitlines() if "revision" in line]
        assert f"Created the database at revision {migrations.head()}" in line


class NewService(Service):
    has_database = False


SCHEMAS = {
    "sqlite": ("SELECT type, name, tbl_name, sql FROM sqlite_master",),
    "postgresql": (
        "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity "
        "FROM information_schema.columns WHERE table_schema = 'public'",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    ),
}


def schema(url: str) -> set[Any]:
    """Each table, column, constraint, index and trigger, with its definition.

    The constraints of SQLite's tables have no order: where a migration rebuilds one, it varies.
    """
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        queries = SCHEMAS[engine.dialect.name]
        rows = [row for query in queries for row in connection.execute(text(query))]
    return {tuple(_in_order(str(value)) for value in row) for row in rows}


def _in_order(ddl: str) -> str:
    return "\n".join(sorted(line.strip().rstrip(",") for line in ddl.splitlines()))


# --- killed ------------------------------------------------------------------------------

KILLED = -signal.SIGKILL
# The steps from one kill to the next.
STEP = int(os.environ.get("UPGRADE_STEP", "61"))


def kill_upgrades(url: str, folder: Path, step: int) -> int:
    """Kill upgrades later and later, until one is not killed; returns the kills.

    After each the database is whole, and as it was before.
    """
    before = everything(url)
    settings = environment(folder, DATABASE_URL=url.replace("+psycopg", ""))
    for kills, moment in enumerate(itertools.count(1, step)):
        done = run_forked(
            [sys.executable, "-m", "tests.support.killed_upgrade", "db", "upgrade", "--yes"],
            env=settings | {"KILL_AT": str(moment)}, capture_output=True, timeout=60,
        )  # fmt: skip
        if done.returncode == 0:
            return kills
        assert done.returncode == KILLED, done
        state = everything(url)
        if state != before:
            # Killed after the commit: the next upgrade finds nothing to do.
            assert state.revision == REVISIONS[-1]
    raise AssertionError


class Everything(NamedTuple):
    """All of a database of any revision: its schema, and how many of each row it has."""

    revision: str | None
    schema: set[Any]
    rows: dict[str, Counter[Any]]


def everything(url: str) -> Everything:
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        tables = {
            name: Counter(map(tuple, connection.execute(text(f'SELECT * FROM "{name}"'))))
            for name in inspect(connection).get_table_names()
            # The index's own, which is made by the statements that make its rows.
            if not name.startswith("task_names")
        }
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").all() == [("ok",)]
        return Everything(migrations.revision(connection), schema(url), tables)


def check_killed_upgrades(
    url: str, older: str, filled: Filled, rows_of_today: Rows, apps: Apps, folder: Path, step: int
) -> None:
    make_old_database(url, older, rows_of_today)
    before, expected = everything(url), filled.at(older, folder)
    kills = kill_upgrades(url, folder, step)
    print(f"\n{kills} kills")
    assert kills >= 100 // step
    if url.startswith("sqlite"):
        (copy,) = Path(make_url(url).database or "").parent.glob("before-*")
        assert everything(f"sqlite:///{copy}") == before
    with new_app(apps, replace(filled.config, DATABASE_URL=url)) as app:
        assert contents(app, filled.people) == expected


@pytest.mark.timeout(1_800)
def test_upgrade_that_is_killed_changes_nothing_and_works_again(
    url: str, filled: Filled, rows_of_today: Rows, apps: Apps, tmp_path: Path
) -> None:
    check_killed_upgrades(url, "0001", filled, rows_of_today, apps, tmp_path, STEP)


@pytest.mark.timeout(1_800)
def test_first_start_that_is_killed_works_again(
    url: str, databases: Databases, tmp_path: Path
) -> None:
    if url.startswith("sqlite"):
        Path(make_url(url).database or "").parent.mkdir()
    kills = kill_upgrades(url, tmp_path, STEP)
    print(f"\n{kills} kills")
    assert kills >= 100 // STEP
    new = new_url(url.partition(":")[0].partition("+")[0], databases, tmp_path / "new")
    migrations.upgrade(new)
    assert schema(url) ^ schema(new) == set()
    if url.startswith("sqlite"):
        pragmas = ("auto_vacuum", "journal_mode")
        with create_engine(url).connect() as connection:
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
        assert values == [2, "wal"]


def test_running_process_is_unavailable_where_a_newer_version_renamed_a_column(
    app: Flask, alice: ApiClient
) -> None:
    """It stores nothing half, and works again with the column."""
    task = alice.start()
    path, rename = f"/task/{task['id']}", "ALTER TABLE tasks RENAME COLUMN note TO remark"
    run_sql(app, rename)
    try:
        answers = [
            alice.get(path),
            alice.patch(path, json={"note": "half"}),
            alice.post("/task", json={"agentId": "summarizer"}),
        ]
    finally:
        run_sql(app, "ALTER TABLE tasks RENAME COLUMN remark TO note")
    for response in answers:
        problem(response, 503)
        assert int(response.headers["Retry-After"]) > 0
    assert expect(alice.get("/task"), 200) == [task]


# --- newer than the code -----------------------------------------------------------------

UNKNOWN = "01a216a7-c830-724c-bcad-01ab0fc06783"
# Each command on the server, with arguments, but for the ones of `db` that need a file.
COMMANDS: dict[str, tuple[str, ...]] = {
    "serve": (), "background": (), "user add": ("carol",), "user list": (),
    "user delete": ("alice", "--yes", "--now"),
    "key add": ("alice", "--name", "n"), "key list": (), "key revoke": (UNKNOWN,), "callback test": ("http://127.0.0.1:1/",),
    "delivery list": (), "delivery show": (UNKNOWN,), "delivery redeliver": (UNKNOWN,),
    "db upgrade": (), "prune": (), "export": (), "sign-in-link": ("alice",),
}  # fmt: skip
WITH_FILES = {"db copy", "db backup", "db restore"}


def commands_on_the_server() -> Iterator[str]:
    for name in SERVER_COMMANDS:
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):
            yield from (f"{name} {command_name}" for command_name in command.commands)
        else:
            yield name


@pytest.mark.parametrize("kind", DATABASES)
def test_no_command_uses_a_database_of_a_newer_version(
    kind: str, databases: Databases, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    data_folder = tmp_path / "data"
    # Not the one that tests share: it stays at this revision.
    database_url = (
        databases.copy_sqlite(data_folder) if kind == "sqlite" else databases.new_postgresql()
    )
    migrations.upgrade(parse(database_url))
    # `db check` says it too, among other findings.
    # `demo` makes a separate database, and `db rollback` replaces a newer one.
    others = WITH_FILES | {"db check", "db rollback", "demo"}
    assert set(commands_on_the_server()) == COMMANDS.keys() | others
    engine = create_engine(parse(database_url), poolclass=pool.NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    commands = COMMANDS | {"db copy": (database_url, str(tmp_path / "to.db"))}
    if database_url.startswith("sqlite"):
        newer = shutil.copy(data_folder / "taskservice.db", tmp_path / "newer.db")
        commands |= {"db backup": (f"{tmp_path}/backup.db",), "db restore": (str(newer), "--force")}
    for name, arguments in commands.items():
        with subtests.test(name):
            done = run(data_folder, *name.split(), *arguments, DATABASE_URL=database_url)
            line = one_line(done, 1)
            assert "9999, which this version of taskservice does not know" in line
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM users")) == 0
