"""Copies a database into an empty one, SQLite or PostgreSQL, while no process serves it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from taskservice.database import migrations
from taskservice.database.address import shown, sqlite_file
from taskservice.database.engine import command_engine, prepare_sqlite_connection, sqlite3
from taskservice.database.files import is_open_elsewhere
from taskservice.database.migrations import COPY_PROGRESS, DatabaseError, UnfinishedCopy
from taskservice.database.models import ServiceHeartbeat
from taskservice.database.types import db
from taskservice.operations.health import MAX_AGE_SECONDS, is_served

# The number of rows that one read loads into memory; the row of a task can take up to 2 MiB.
READ_ROWS = 8
# The number of reads whose rows are written in one transaction.
BATCH_READS = 125
# The maximum time to wait for transactions that write to the copied tables.
LOCK_SECONDS = 60

TABLES: list[sa.Table] = db.metadata.sorted_tables
# The progress of the copy. The table is dropped at the end, so only unfinished copies have it.
_PROGRESS = sa.Table(
    COPY_PROGRESS,
    sa.MetaData(),
    sa.Column("source", sa.Text, nullable=False),
    # The index in TABLES of the table that is being copied.
    sa.Column("table_index", sa.Integer, nullable=False),
    # The primary key of the last copied row of this table, as a JSON array.
    sa.Column("last_key", sa.Text, nullable=False),
)


def copy(source: URL, target: URL) -> list[dict[str, Any]]:
    """Copy all rows, compare both databases, and return `table`, `rows` and `sha256` of each table.

    Each transaction writes a batch of rows and the progress, so that another call with the same
    arguments resumes an interrupted copy. Raises DatabaseError.
    """
    _check_addresses(source, target)
    try:
        with _reading(source) as reads:
            engine = _engine(target)
            index, last_key = _begin(engine, target, shown(source))
            while index < len(TABLES):
                _copy_table(reads, engine, index, last_key)
                index, last_key = index + 1, []
            copied = [_compared(reads, engine, table) for table in TABLES]
            _finish(engine)
    except (DBAPIError, sqlite3.Error, OSError) as error:
        why = migrations.reason(error, sqlite_file(target))
        raise DatabaseError(
            f"The copy stopped: {why}; run the same command again to resume"
        ) from None
    return copied


def _check_addresses(source: URL, target: URL) -> None:
    file, other = sqlite_file(source), sqlite_file(target)
    if source == target or (file and other and file.resolve() == other.resolve()):
        raise DatabaseError("FROM and TO are the same database")
    if file:
        if not file.is_file():
            raise DatabaseError(f"There is no database at {source.database}")
        if is_open_elsewhere(file):
            raise _in_use(source)


def _in_use(address: URL) -> DatabaseError:
    # Whether a process serves a PostgreSQL database is known only from the last heartbeat.
    wait = "" if sqlite_file(address) else f", and wait for {MAX_AGE_SECONDS:.0f} s"
    return DatabaseError(
        f"{shown(address)} is in use: stop the service, and every other command, first{wait}"
    )


@contextmanager
def _reading(address: URL) -> Iterator[sa.Connection]:
    """A transaction that reads a snapshot of the database and prevents writes to it."""
    with _engine(address).connect() as connection:
        current, head = migrations.revision(connection), migrations.head()
        if current is None:
            raise DatabaseError(f"There is no database at {shown(address)}")
        if current != head:
            raise DatabaseError(
                f"{shown(address)} is at revision {current}; `taskservice db upgrade` with its "
                f"TASKSERVICE_DATABASE_URL upgrades it to {head}"
            )
        if not sqlite_file(address):
            if is_served(connection):
                raise _in_use(address)
            connection.rollback()
            connection.execution_options(isolation_level="REPEATABLE READ")
            names = ", ".join(table.name for table in TABLES)
            # Lock out writers before the transaction's first read, which takes the snapshot.
            for statement in (
                f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}",
                "SET LOCAL statement_timeout = 0",
                "SET LOCAL idle_in_transaction_session_timeout = 0",
                f"LOCK TABLE {names} IN SHARE MODE",
            ):
                connection.exec_driver_sql(statement)
        yield connection


def _engine(address: URL) -> sa.Engine:
    """An engine whose transactions, on SQLite, lock out other writers from the start."""
    engine = command_engine(address)
    if sqlite_file(address):
        sa.event.listen(engine, "connect", prepare_sqlite_connection)
        sa.event.listen(
            engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
    return engine


def _begin(engine: sa.Engine, address: URL, source: str) -> tuple[int, Sequence[Any]]:
    """Create the target, unless an earlier copy created it; returns the progress of the copy.

    Raises DatabaseError without changing the target if the target has an older revision, is served,
    has any rows except the heartbeat of a stopped service, or contains another copy.
    """
    try:
        migrations.upgrade(address, may_change=False)
    except UnfinishedCopy:
        with engine.connect() as connection:
            return _progress(connection, address, source)
    file = sqlite_file(address)
    if file and is_open_elsewhere(file):
        raise _in_use(address)
    with engine.begin() as connection:
        if not file and is_served(connection):
            raise _in_use(address)
        connection.execute(sa.delete(ServiceHeartbeat))
        for table in TABLES:
            if connection.scalar(sa.select(sa.exists().select_from(table))):
                rows = f"its table {table.name} has rows"
                raise DatabaseError(f"{shown(address)} is not empty: {rows}")
        _PROGRESS.create(connection)
        connection.execute(_PROGRESS.insert().values(source=source, table_index=0, last_key="[]"))
    return 0, []


def _progress(connection: sa.Connection, address: URL, source: str) -> tuple[int, Sequence[Any]]:
    if connection.scalar(sa.text("SELECT version_num FROM alembic_version")) != migrations.head():
        raise DatabaseError(
            f"{shown(address)} has a copy from another version of taskservice; remove it first"
        )
    progress = connection.execute(sa.select(_PROGRESS)).one()
    if progress.source != source:
        raise DatabaseError(
            f"{shown(address)} has an unfinished copy of {progress.source}; finish or remove it"
        )
    return progress.table_index, orjson.loads(progress.last_key)


def _copy_table(
    reads: sa.Connection, engine: sa.Engine, index: int, last_key: Sequence[Any]
) -> None:
    """Copy the rows after `last_key`, which is empty if no row has been copied yet."""
    table, key = TABLES[index], [*TABLES[index].primary_key]
    rows = sa.select(table).order_by(*key).execution_options(yield_per=READ_ROWS)
    if last_key:
        types = [column.type for column in key]
        rows = rows.where(sa.tuple_(*key) > sa.tuple_(*last_key, types=types))
    with engine.connect() as connection, reads.execute(rows) as result:
        for number, read in enumerate(result.mappings().partitions(), 1):
            connection.execute(sa.insert(table), [dict(row) for row in read])
            if number % BATCH_READS == 0:
                _advance(connection, index, [read[-1][column] for column in key])
        _advance(connection, index + 1, [])


def _advance(connection: sa.Connection, index: int, last_key: Sequence[Any]) -> None:
    progress = {"table_index": index, "last_key": orjson.dumps(last_key).decode()}
    connection.execute(sa.update(_PROGRESS), progress)
    connection.commit()


def _compared(reads: sa.Connection, engine: sa.Engine, table: sa.Table) -> dict[str, Any]:
    """Compare a table in the two databases; raises DatabaseError if it differs."""
    with engine.connect() as connection:
        copied = _checksum(connection, table)
    if _checksum(reads, table) != copied:
        raise DatabaseError(
            f"{table.name} has changed in FROM or TO during the copy; remove TO and copy again"
        )
    return copied


def _checksum(connection: sa.Connection, table: sa.Table) -> dict[str, Any]:
    """The number of rows, and a checksum that does not depend on the order of the rows.

    The checksum is the sum of the SHA-256 hashes of the rows, each as JSON, modulo 2^256.
    """
    count = total = 0
    for row in connection.execute(sa.select(table).execution_options(yield_per=READ_ROWS)):
        digest = hashlib.sha256(orjson.dumps(tuple(row))).digest()
        count, total = count + 1, total + int.from_bytes(digest, "big")
    return {"table": table.name, "rows": count, "sha256": f"{total % 2**256:064x}"}


def _finish(engine: sa.Engine) -> None:
    """Turn the copy into a database that can be served."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            for table in TABLES:
                for column in table.columns:
                    if column.identity is not None:
                        # New rows get numbers after the highest copied number.
                        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
                        highest = sa.select(sa.func.max(column)).scalar_subquery()
                        connection.execute(sa.select(sa.func.setval(sequence, highest)))
                connection.exec_driver_sql(f"ANALYZE {table.name}")
        _PROGRESS.drop(connection)
