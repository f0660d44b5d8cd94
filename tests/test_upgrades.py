"""Upgrades of databases that older versions have filled, also when they are killed midway."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, pool, text

from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.engine import dispose
from taskservice.database.types import Base
from taskservice.webhooks.destinations import Destinations
from tests.support.all_tables import as_before, fill, seen
from tests.support.api_client import ApiClient, expect
from tests.support.apps import Apps
from tests.support.databases import DATABASES, Databases
from tests.support.internals import rows, run_sql
from tests.support.old_database import REVISIONS, Rows, make_old_database, not_kept_before
from tests.support.receiver import Receiver


@contextmanager
def new_app(apps: Apps, config: Config) -> Iterator[Flask]:
    app = apps.new(config)
    yield app
    dispose(app)


@dataclass
class Filled:
    """A database of today with data in all tables; its rows are those of `path`."""

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
            name: [dict(zip(Base.metadata.tables[name].columns.keys(), row, strict=True))
                   for row in found]
            for name, found in rows(app).items()
        }  # fmt: skip


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> str:
    return new_url(request.param, databases, tmp_path)


def new_url(kind: str, databases: Databases, folder: Path) -> str:
    if kind == "postgresql":
        return "postgresql+psycopg" + databases.new_postgresql().removeprefix("postgresql")
    return f"sqlite:///{folder / 'upgraded' / 'taskservice.db'}"


@pytest.mark.parametrize("older", REVISIONS)
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
        # It goes on as any other.
        alice = as_before(app, filled.people[0])
        parent = expect(alice.get("/task?limit=1"), 200)[0]
        task = alice.start(claim=True, parentId=parent["id"], labels={"env": "prod"})
        alice.append(task, "one")
        assert alice.report(task, status="complete")["logs"] == ["one"]
    kind = url.partition(":")[0].partition("+")[0]
    new = new_url(kind, databases, tmp_path / "new")
    migrations.upgrade(new)
    assert schema(url) ^ schema(new) == set()


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
        found = [row for query in queries for row in connection.execute(text(query))]
    return {tuple(_in_order(str(value)) for value in row) for row in found}


def _in_order(ddl: str) -> str:
    return "\n".join(sorted(line.strip().rstrip(",") for line in ddl.splitlines()))
