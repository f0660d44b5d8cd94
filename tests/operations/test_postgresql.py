"""PostgreSQL with other settings: defaults, an encoding, no driver."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from flask import Flask
from sqlalchemy import update

from taskservice.background import removal
from taskservice.database.engine import dispose
from taskservice.database.migrations import upgrade
from taskservice.database.models import Log
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now
from tests.support.api_client import add_user, expect, problem
from tests.support.commands import one_line, run
from tests.support.databases import Databases
from tests.support.documents import table
from tests.support.maintenance import DAY
from tests.support.postgresql_settings import SETTINGS, app_at, driven, work_at_once
from tests.support.service import Service
from tests.support.waiting import until


@pytest.mark.parametrize("settings", SETTINGS, ids=("German", "SQL"))
def test_settings_of_the_database_spoil_no_request(
    databases: Databases, tmp_path: Path, settings: dict[str, str]
) -> None:
    url = databases.new_postgresql(**settings)
    with app_at(url, tmp_path) as app:
        work_at_once(add_user(app, "alice"))
        until(lambda: app.test_client().get("/readyz").status_code == 200)
    checked = run(tmp_path, "db", "check", DATABASE_URL=url)
    assert checked.returncode == 0, checked.stdout


def test_processes_that_start_concurrently_migrate_once_if_serializable(
    databases: Databases,
) -> None:
    url = databases.new_postgresql(default_transaction_isolation="serializable")
    with ThreadPoolExecutor(4) as pool:
        for migrated in [pool.submit(upgrade, driven(url)) for _ in range(4)]:
            migrated.result()


@pytest.mark.parametrize(
    ("chosen", "kept"), [("off", "on"), ("on", "on"), ("local", "local"), ("remote_apply",) * 2]
)
def test_stricter_commit_setting_of_the_operator_is_kept(
    databases: Databases, tmp_path: Path, chosen: str, kept: str
) -> None:
    url = databases.new_postgresql(synchronous_commit=chosen)
    with app_at(url, tmp_path) as app, app.app_context(), transaction() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == kept


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_database_that_is_not_utf_8_is_refused_in_one_line(
    databases: Databases, tmp_path: Path, encoding: str
) -> None:
    url = databases.new_postgresql(encoding)
    for command in (["serve"], ["background"], ["user", "add", "alice"], ["db", "upgrade"]):
        line = one_line(run(tmp_path, *command, DATABASE_URL=url), 1)
        assert f"its encoding is {encoding}" in line
    checked = run(tmp_path, "db", "check", DATABASE_URL=url)
    assert checked.returncode == 1
    assert f"its encoding is {encoding}" in checked.stdout.splitlines()[-1]
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchall() == []


COLLATIONS = {
    "C": "LOCALE 'C'",
    "C.utf8": "LOCALE 'C.utf8'",
    "PG_UNICODE_FAST": "LOCALE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'",
}
NAMES = ["ÉCOLE", "école", "a-b", "a_b", "a.b", "ab", "A B", "Z", "z", "10", "9", "Straße", "ä"]


def listed(app: Flask) -> list[Any]:
    """All that depends on how texts are ordered and compared, of a new user."""
    alice = add_user(app, "alice")
    for name in ("a-b", "a_b", "a.b", "ab", "a-c", "z9", "z10"):
        expect(alice.put(f"/agent/{name}", json={}), 201)
    for name in NAMES:
        alice.start(agent_id="ab", name=name, labels={"a-b": name, "a.b": name, "ab": name})
        expect(alice.post("/key", json={"name": name}), 201)
    queries = [
        *({"q": text} for text in ("É", "a-", "A_", "STRASSE", "z", "1", "_", "ä")),
        *({"label": f"a-b:{name}"} for name in NAMES),
        *({"sort": order} for order in ("createdAt", "-createdAt")),
        {"limit": "5"},
    ]
    tasks = [expect(alice.get("/task", query_string=query), 200) for query in queries]
    return [
        [[(task["name"], [*task["labels"]]) for task in page] for page in tasks],
        [agent["id"] for agent in expect(alice.get("/agent"), 200)],
        [key["name"] for key in expect(alice.get("/key"), 200)],
    ]


@pytest.mark.parametrize("collation", COLLATIONS)
def test_collation_of_the_database_changes_no_list(
    databases: Databases, tmp_path: Path, collation: str
) -> None:
    with app_at(databases.copy_sqlite(tmp_path / "sqlite"), tmp_path) as app:
        expected = listed(app)
    with app_at(databases.new_postgresql(collation=COLLATIONS[collation]), tmp_path) as app:
        assert listed(app) == expected


def test_service_is_not_ready_when_its_database_is_replaced_by_one_that_is_not_utf_8(
    databases: Databases, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, other = databases.new_postgresql(), databases.new_postgresql("LATIN1")
    name, other_name = (psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] for dsn in (url, other))
    with app_at(url, tmp_path) as app:
        alice = add_user(app, "alice")
        dispose(app)
        with psycopg.connect(databases.empty_postgresql(), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} RENAME TO {name}_kept")
            connection.execute(f"ALTER DATABASE {other_name} RENAME TO {name}")
        assert app.test_client().get("/readyz").status_code == 503
        assert "its encoding is LATIN1" in caplog.text
        problem(alice.get("/task"), 503)


def test_first_of_several_hosts_that_can_be_written_is_used_and_no_secret_is_shown(
    databases: Databases, tmp_path: Path
) -> None:
    """The first host is dead, and the second has a database that is read-only at first."""
    parts = psycopg.conninfo.conninfo_to_dict(databases.new_postgresql())
    hosts = f"127.0.0.1:1,{quote(str(parts['host']), safe='')}"
    url = f"postgresql://postgres@{hosts}/{parts['dbname']}?target_session_attrs=read-write"
    url += "&password=hidden-word"
    with psycopg.connect(databases.empty_postgresql(), autocommit=True) as connection:
        change = f"ALTER DATABASE {parts['dbname']} SET default_transaction_read_only = %s"
        connection.execute(change % "on")
        refused = one_line(run(tmp_path, "user", "list", DATABASE_URL=url), 1)
        connection.execute(change % "off")
    assert f"postgresql://{hosts}/{parts['dbname']}" in refused
    assert "session is read-only" in refused
    empty = one_line(run(tmp_path, "user", "list", DATABASE_URL=url), 1)
    assert "There is no database at postgresql://127.0.0.1:1," in empty
    assert "hidden-word" not in refused + empty
    assert run(tmp_path, "user", "add", "alice", DATABASE_URL=url).returncode == 0
    checked = run(tmp_path, "db", "check", DATABASE_URL=url)
    assert checked.returncode == 0, checked.stdout
    with Service(tmp_path / "data", DATABASE_URL=url) as service:
        bob = service.add_user("bob")
        task = bob.start()
        assert bob.request("GET", f"/task/{task['id']}").json() == task


# Two partitions of one log each, so that both are used.
PARTITIONS = """
ALTER TABLE log_chunks RENAME TO whole;
CREATE TABLE log_chunks (
    LIKE whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (log_id, last), FOREIGN KEY (log_id) REFERENCES logs (id)
) PARTITION BY RANGE (log_id);
CREATE TABLE log_chunks_1 PARTITION OF log_chunks FOR VALUES FROM (1) TO (2);
CREATE TABLE log_chunks_2 PARTITION OF log_chunks FOR VALUES FROM (2) TO (3);
DROP TABLE whole;
"""


def test_lines_may_be_in_partitions(databases: Databases, tmp_path: Path) -> None:
    url = databases.new_postgresql()
    upgrade(url)
    with psycopg.connect(url) as connection:
        connection.execute(PARTITIONS)
    with app_at(url, tmp_path) as app:
        alice = add_user(app, "alice")
        tasks = [alice.start(), alice.start()]
        for task in tasks:
            alice.append(task, "one", "two")
            alice.append(task, "three")
        listed = expect(alice.get("/task"), 200)
        assert [task["logs"] for task in listed] == [["one", "two", "three"]] * 2
        old, kept = tasks
        expect(alice.delete(f"/task/{old['id']}"), 200)
        with app.app_context(), transaction() as connection:
            dropped = update(Log).where(Log.task_id.is_(None))
            connection.execute(dropped.values(dropped_at=database_now(-DAY)))
        with app.app_context():
            removal.sweep()
        assert alice.task(kept)["logs"] == ["one", "two", "three"]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT * FROM log_chunks_1").fetchone() is None


def test_document_lists_the_columns_of_each_unique_key(databases: Databases) -> None:
    """Partitions and Citus need one."""
    with psycopg.connect(databases.empty_postgresql()) as connection:
        keys = {name: unique_keys(connection, name) for name in tables(connection)}
    assert {
        row[0].strip("`"): row[1:]
        for row in table("docs/contributing/scaling.md", "## Unique keys and partitioning")
    } == {
        name: ["yes" if has_user else "no", ", ".join(f"`{column}`" for column in common) or "none"]
        for name, (has_user, common) in keys.items()
    }


def tables(connection: psycopg.Connection[Any]) -> list[str]:
    query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    return [name for (name,) in connection.execute(query) if name != "alembic_version"]


def unique_keys(connection: psycopg.Connection[Any], name: str) -> tuple[bool, list[str]]:
    """Whether a table has a `user_id`, and the columns that all its unique keys have."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = ANY(%s)"
    indexes = "SELECT indkey::int2[] FROM pg_index WHERE indrelid = %s::regclass AND indisunique"
    keys = [
        {column for (column,) in connection.execute(query, [name, numbers])}
        for (numbers,) in connection.execute(indexes, [name]).fetchall()
    ]
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass"
    has_user = ("user_id",) in connection.execute(columns, [name]).fetchall()
    return has_user, sorted(set.intersection(*keys))


def test_command_names_a_database_that_is_not_the_default_one(
    databases: Databases, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    url = f"{databases.new_postgresql()}&password=hunter2"
    data = tmp_path / "data"
    assert run(data, "db", "upgrade").stderr == ""
    for command in ("user add alice", "prune", "user list", "db upgrade", "db check", "key list"):
        with subtests.test(command):
            default = run(data, *command.split())
            assert "taskservice: database " not in default.stderr
            named = run(data, *command.split(), DATABASE_URL=url)
            (line,) = [
                line for line in named.stderr.splitlines() if "taskservice: database " in line
            ]
            assert line.startswith("taskservice: database postgresql://")
            assert "hunter2" not in named.stderr
    other = run(data, "user", "list", DATABASE_URL=f"sqlite:///{data}/taskservice.db")
    assert other.stderr == ""
