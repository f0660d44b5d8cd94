"""A database of a service, seen from outside: its sizes, its rows, and a copy of it."""

import math
import re
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import create_engine, pool, text
from sqlalchemy.exc import OperationalError

from taskservice.background.removal import SPARE_BYTES, STEP_PAGES
from taskservice.database import migrations
from taskservice.database.address import parse
from taskservice.database.engine import engine_arguments
from taskservice.database.types import db
from tests.support.databases import Databases

SQLITE, POSTGRESQL = "sqlite", "postgresql"
LINE = "a line that was sent alone, of a long log"
# The same statement for both databases; over HTTP each of these lines would be a request.
ADD_LINES = f"""
INSERT INTO log_chunks (log_id, last, count, text, at)
WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
SELECT logs.id, i, 1, '{LINE}', 1700000000000 + i FROM n CROSS JOIN logs WHERE task_id = :task_id
"""
COUNT_LINES = f"""
UPDATE tasks SET log_count = :count, log_bytes = {len(LINE) + 1} * :count WHERE id = :task_id
"""


class Store:
    """The database at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        address = parse(url)
        self.kind = address.get_backend_name()
        options = engine_arguments(address) | {"isolation_level": "AUTOCOMMIT"}
        self._engine = create_engine(address, poolclass=pool.NullPool, **options)

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text(statement), values))

    def number(self, statement: str, **values: Any) -> int:
        """The number that this statement selects, or 0."""
        rows = self.rows(statement, **values)
        return int(rows[0][0] or 0) if rows else 0

    def execute(self, statement: str, **values: Any) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement), values)

    def add_lines(self, task_id: str, count: int) -> None:
        """Fill the log of this task, which has one line, with lines that were each sent alone."""
        values = {"task_id": self._stored(task_id), "count": count}
        for statement in (ADD_LINES, COUNT_LINES):
            self.execute(statement, **values)

    def log_id(self, task_id: str) -> int:
        of_task = "SELECT id FROM logs WHERE task_id = :task_id"
        return self.number(of_task, task_id=self._stored(task_id))

    def is_gone(self, log_id: int) -> bool:
        """Whether a log is off the disk, and SQLite's file as short as maintenance leaves it."""
        # The sweep removes the last line last.
        last = "SELECT last FROM log_chunks WHERE log_id = :log_id ORDER BY last DESC LIMIT 1"
        if self.number(last, log_id=log_id):
            return False
        spare = SPARE_BYTES // 4_096 + STEP_PAGES
        return self.kind == POSTGRESQL or self.number("PRAGMA freelist_count") <= spare

    def set_back_drops(self) -> None:
        """Let the sweep begin with the dropped logs at once."""
        moment = "'2020-01-01T00:00:00.000Z'"
        self.execute(f"UPDATE logs SET dropped_at = {moment} WHERE dropped_at IS NOT NULL")

    def bytes(self) -> int:
        """The bytes that the database uses on disk."""
        if self.kind == POSTGRESQL:
            return self.number("SELECT pg_database_size(current_database())")
        used = self.number("PRAGMA page_count") - self.number("PRAGMA freelist_count")
        return used * self.number("PRAGMA page_size")

    def sizes(self) -> dict[str, int]:
        """The bytes of each table and index; of none if this SQLite can't tell."""
        if self.kind == POSTGRESQL:
            return dict(
                self.rows(
                    "SELECT relname, pg_table_size(oid) FROM pg_class WHERE relkind IN ('r', 'i') "
                    "AND relnamespace = 'public'::regnamespace"
                )
            )
        try:
            return dict(self.rows("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
        except OperationalError:
            return {}

    def settle(self) -> None:
        """Let PostgreSQL do at once what autovacuum does in the minutes after a bulk load."""
        if self.kind == POSTGRESQL:
            self.execute("VACUUM ANALYZE")

    def wal_of_appends(self, count: int) -> tuple[float, float]:
        """The bytes that an append adds to PostgreSQL's write-ahead log.

        First where it changes pages for the first time since a checkpoint, then otherwise.
        """
        self.execute("CHECKPOINT")
        first = self._wal_of_appends(count)
        # Another checkpoint can begin during it.
        return first, min(self._wal_of_appends(count) for _ in range(3))

    def _wal_of_appends(self, count: int) -> float:
        explained = text(f"EXPLAIN (ANALYZE, WAL, FORMAT JSON) {APPEND_ALONE}")
        with self._engine.connect() as connection:
            logs = range(1, count + 1)
            plans = [connection.scalar(explained, {"log": number}) for number in logs]
        return float(sum(plan[0]["Plan"]["WAL Bytes"] for plan in plans) / count)

    def _stored(self, task_id: str) -> str:
        return task_id if self.kind == POSTGRESQL else UUID(task_id).hex


# What an append does in the database, in one statement.
APPEND_ALONE = """
WITH grown AS (
    UPDATE tasks SET log_count = log_count + 1, log_bytes = log_bytes + 28,
        default_writer_seq = default_writer_seq + 1, version = version + 1, updated_at = now(),
        last_heartbeat_at = now()
    FROM logs WHERE logs.id = CAST(:log AS bigint) AND tasks.id = logs.task_id
    RETURNING logs.id, log_count
)
INSERT INTO log_chunks (log_id, last, count, text, at)
SELECT id, log_count, 1, 'a line of a task that grows', 1700000000000 FROM grown;
"""


def appends_alone(pgbench: Path, url: str, agents: int, clients: int, count: int) -> float:
    """The rate of `count` appends, by this number of connections and without a service."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        # For the task of one of these agents.
        script.write(f"\\set log random(1, :agents)\n{APPEND_ALONE}")
        script.flush()
        result = subprocess.run(
            [pgbench, "-n", "-M", "prepared", "-f", script.name, "-D", f"agents={agents}",
             "-c", str(clients), "-t", str(math.ceil(count / clients)), url],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return float(re.findall(r"tps = ([0-9.]+)", result.stdout)[-1])


def durable_postgresql(databases: Databases) -> str:
    """The URL of a database whose server syncs, which the tests' server does not."""
    url = databases.new_postgresql()
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = on")
        connection.execute("SELECT pg_reload_conf()")
    return url


def copy_to_postgresql(database: Path, url: str) -> None:
    """Copy all rows of this SQLite file into a PostgreSQL database without tables.

    `taskservice db copy` does this with all its checks, and takes several times as long.
    """
    migrations.upgrade(url)
    source = sqlite3.connect(database)
    with psycopg.connect(url) as target:
        # Without the checks of foreign keys, which take longer than the rest.
        target.execute("SET session_replication_role = replica")
        for table in db.metadata.sorted_tables:
            names = ", ".join(column.name for column in table.columns)
            with target.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
                for row in source.execute(f"SELECT {names} FROM {table.name}"):
                    copy.write_row(row)
        for name in ("logs", "attempts"):
            last = f"SELECT max(id) FROM {name}"
            target.execute(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), ({last}))")
    source.close()
