"""PgBouncer in front of PostgreSQL, with other clients of it."""

from pathlib import Path
from typing import Any

import psycopg

from tests.support.api_client import add_user
from tests.support.databases import Databases
from tests.support.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.postgresql_settings import SETTINGS, app_at, work_at_once
from tests.support.requirements import needs


def test_all_works_behind_pgbouncer_and_other_clients_of_it_keep_their_settings(
    databases: Databases, tmp_path: Path
) -> None:
    if PGBOUNCER is None:
        needs("PgBouncer", "install the package pgbouncer")
    url = databases.new_postgresql(**SETTINGS[0], synchronous_commit="off")
    with (
        pgbouncer(tmp_path / "pgbouncer", url, connections=3) as pooled,
        app_at(pooled.url, tmp_path) as app,
        psycopg.connect(pooled.url, autocommit=True) as other,
    ):
        before = settings_of(other)
        work_at_once(add_user(app, "alice"), threads=8)
        # PgBouncer passes the statements in turn to the connections that the service has used.
        assert [settings_of(other) for _ in range(6)] == [before] * 6
    assert before["default_transaction_isolation"] == "serializable"
    assert before["DateStyle"] == "German, DMY"


def settings_of(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """What the service sets otherwise for itself, as this client has it."""
    changed = (
        "DateStyle", "TimeZone", "client_encoding", "default_transaction_isolation",
        "synchronous_commit", "lock_timeout",
    )  # fmt: skip
    query = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
    return dict(connection.execute(query, [list(changed)]).fetchall())
