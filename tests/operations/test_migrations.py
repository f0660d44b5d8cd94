"""Migrations: of an empty database, concurrent, with child rows, and refused when unsafe."""

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, pool, text

from taskservice.database import migrations
from taskservice.database.migrations import DatabaseError, upgrade
from taskservice.database.types import db
from taskservice.event_kinds import DEFAULT_EVENTS
from tests.support.databases import Databases

OPTIONS = {
    "compare_type": True,
    # The tables of the index of names have no models.
    "include_name": lambda name, kind, _parents: kind != "table" or "task_names" not in name,
}


@pytest.fixture(params=("sqlite", "postgresql"))
def empty_url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url = databases.new_postgresql()
        return "postgresql+psycopg" + url.removeprefix("postgresql")
    return f"sqlite:///{tmp_path / 'new' / 'taskservice.db'}"


def test_migrated_database_is_what_the_models_say(empty_url: str) -> None:
    upgrade(empty_url)
    engine = create_engine(empty_url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=OPTIONS)
        assert compare_metadata(context, db.metadata) == []


def test_every_constraint_of_the_models_is_in_the_database(empty_url: str) -> None:
    """Alembic does not compare CHECK constraints, so their names are looked for in the DDL."""
    upgrade(empty_url)
    engine = create_engine(empty_url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            tables = text("SELECT sql FROM sqlite_master WHERE type = 'table'")
            ddl = " ".join(connection.scalars(tables).all())
        else:
            names = connection.scalars(text("SELECT conname FROM pg_constraint")).all()
            ddl = " ".join(names)
    for table in db.metadata.tables.values():
        for constraint in table.constraints:
            assert str(constraint.name) in ddl


PARTIAL_INDEXES = {
    "sqlite": "SELECT name, substr(sql, instr(sql, ' WHERE ')) FROM sqlite_master "
    "WHERE type = 'index' AND sql LIKE '% WHERE %'",
    "postgresql": "SELECT relname, pg_get_expr(indpred, indrelid) FROM pg_index "
    "JOIN pg_class ON pg_class.oid = indexrelid WHERE indpred IS NOT NULL",
}


def test_partial_indexes_have_the_rows_that_the_models_say(empty_url: str) -> None:
    """Alembic does not compare their conditions."""
    upgrade(empty_url)
    engine = create_engine(empty_url, poolclass=pool.NullPool)
    query = text(PARTIAL_INDEXES[engine.dialect.name])
    indexes = [index for table in db.metadata.sorted_tables for index in table.indexes]
    conditions = {index: index.dialect_options["sqlite"]["where"] for index in indexes}
    partial = {index: where for index, where in conditions.items() if where is not None}
    with engine.connect() as connection:
        migrated = set(connection.execute(query).all())
        assert {name for name, _ in migrated} == {index.name for index in partial}
        # PostgreSQL spells a condition in its own way: so it reads the models' conditions too.
        for index, where in partial.items():
            connection.execute(text(f"DROP INDEX {index.name}"))
            table, column = index.table, index.columns[0].name
            connection.execute(
                text(f"CREATE INDEX {index.name} ON {table} ({column}) WHERE {where}")
            )
        assert set(connection.execute(query).all()) == migrated


def test_processes_that_start_concurrently_migrate_once(empty_url: str) -> None:
    failures = []

    def migrate() -> None:
        try:
            upgrade(empty_url)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    "lock", ["SELECT pg_advisory_xact_lock(1952543595)", "LOCK TABLE users IN EXCLUSIVE MODE"]
)
def test_migration_waits_for_a_limited_time(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """For another migration, or for a lock that another program holds."""
    url = "postgresql+psycopg" + databases.new_postgresql().removeprefix("postgresql")
    upgrade(url, "0001")
    monkeypatch.setattr(migrations, "MIGRATION_SECONDS", 1)
    monkeypatch.setattr(migrations, "_run", lock_users)
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.begin() as other:
        other.execute(text(lock))
        with pytest.raises(DatabaseError, match="another program has locked it for 1 s"):
            upgrade(url)


def lock_users(connection: Connection, *_: Any) -> None:
    """As a migration of that table does."""
    connection.execute(text("LOCK TABLE users"))


def test_subscriptions_are_removed_and_hooks_keep_what_is_pending(empty_url: str) -> None:
    upgrade(empty_url, "0018")
    engine = create_engine(empty_url, poolclass=pool.NullPool)
    ids = [f"01a20e6392c47f10b3a59e1d6c2f4b8{number}" for number in range(4)]
    user_id, phone, program, client = ids
    columns = "id, user_id, name, target, format, events, answer_links, created_at, state"
    made = f"'{user_id}', 'it', 'http://x/', '{{}}', '[]', false, '2026-01-01', 'active'"
    statements = (
        f"INSERT INTO users VALUES ('{user_id}', 'alice', '2026-01-01')",
        f"INSERT INTO hooks ({columns}, failures, attempt_count, next_attempt_at) "
        f"VALUES ('{phone}', {made.format('ntfy')}, 1, 2, '2026-01-02')",
        f"INSERT INTO hooks ({columns}) VALUES ('{program}', {made.format('standard')})",
        f"INSERT INTO hooks ({columns}, subscription, key_id, secret, expires_at) "
        f"VALUES ('{client}', {made.format('mcp')}, 'sub_1', '{user_id}', 'whsec_x', '2027-01-01')",
        f"INSERT INTO event_streams VALUES ('{user_id}', 3, '2027-01-01')",
        "INSERT INTO events (id, user_id, position, name, at, agent_id) "
        f"VALUES ('{user_id}', '{user_id}', 3, 'agent.late', '2026-01-01', 'nightly')",
        *(
            "INSERT INTO deliveries (id, hook_id, event_id, user_id, callback_url, host, state, "
            "created_at, attempt_count, next_attempt_at) SELECT id, id, user_id, user_id, target, "
            f"'x', 'pending', created_at, 1, '2026-01-02' FROM hooks WHERE id = '{hook_id}'"
            for hook_id in (phone, program, client)
        ),
        "INSERT INTO attempts (delivery_id, at, duration_ms, message) "
        "SELECT id, created_at, 1, 'It failed.' FROM deliveries",
    )
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
        before = kept_of_hooks(connection)
    upgrade(empty_url)
    with engine.connect() as connection:
        assert kept_of_hooks(connection) == [rows[:2] for rows in before]
        position = connection.execute(text("SELECT user_id, position FROM event_streams"))
        assert position.all() == [(connection.scalar(text("SELECT id FROM users")), 3)]


def test_hooks_with_the_former_default_events_are_told_which_tasks_hang(empty_url: str) -> None:
    upgrade(empty_url, "0020")
    engine = create_engine(empty_url, poolclass=pool.NullPool)
    default = ["agent.back", "task.asks", "agent.broken", "agent.late", "agent.fixed"]
    chosen = ["task.asks", "agent.broken"]
    user_id, *hook_ids = [f"01a20e6392c47f10b3a59e1d6c2f4b8{number}" for number in range(3)]
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO users VALUES ('{user_id}', 'alice', '2026-01-01')"))
        for hook_id, events in zip(hook_ids, (default, chosen), strict=True):
            row = {"id": hook_id, "user_id": user_id, "events": json.dumps(events)}
            hook = (
                "INSERT INTO hooks (id, user_id, name, target, format, events, answer_links, "
                "created_at, state) VALUES (:id, :user_id, 'it', 'http://x/', 'ntfy', :events, "
                "false, '2026-01-01', 'active')"
            )
            connection.execute(text(hook), row)
    upgrade(empty_url)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT events FROM hooks ORDER BY id")).scalars()
        first, second = (json.loads(events) for events in rows)
    assert set(first) == {*default, "task.hangs", "task.recovered"} == set(DEFAULT_EVENTS)
    assert second == chosen


def kept_of_hooks(connection: Connection) -> list[Any]:
    """The hooks, their deliveries and the attempts of these, in the same order."""
    queries = (
        "SELECT id, user_id, name, target, format, events, answer_links, created_at, state, "
        "failures, attempt_count, next_attempt_at FROM hooks ORDER BY id",
        "SELECT * FROM deliveries ORDER BY id",
        "SELECT delivery_id, message FROM attempts ORDER BY delivery_id",
    )
    return [connection.execute(text(query)).all() for query in queries]


def test_sqlite_file_has_the_pragmas_that_the_promises_need(tmp_path: Path) -> None:
    path = tmp_path / "taskservice.db"
    upgrade(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"this is no database at all", b"SQLite format 3\0broken"])
def test_file_that_is_not_a_database_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "taskservice.db"
    path.write_bytes(content * 100)
    with pytest.raises(DatabaseError, match=r"database"):
        upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == content * 100


def test_database_of_another_program_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "taskservice.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match="another program"):
        upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////dev/null/taskservice.db",
        "sqlite:////proc/taskservice/taskservice.db",
        "postgresql+psycopg://nobody:secret@127.0.0.1:1/nowhere",
    ],
)
def test_database_that_cannot_be_opened_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        upgrade(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_migrations_are_numbered_in_a_row() -> None:
    files = sorted(path.name for path in (migrations.FOLDER / "versions").glob("*.py"))
    assert [name[:4] for name in files] == [f"{number:04}" for number in range(1, len(files) + 1)]
    # The service reads the files' names, since it loads Alembic only to migrate.
    assert migrations.head() == ScriptDirectory(str(migrations.FOLDER)).get_current_head()
