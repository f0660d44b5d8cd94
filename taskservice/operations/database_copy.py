"""Copies all of a database into an empty one, SQLite or PostgreSQL, while nobody serves it."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    event,
    func,
    insert,
    literal,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from taskservice.database import migrations
from taskservice.database.address import shown
from taskservice.database.engine import (
    BUSY_SECONDS,
    command_engine,
    prepare_sqlite_connection,
    sqlite3,
)
from taskservice.database.files import full_disk, is_frozen, is_open_elsewhere, readable_uri
from taskservice.database.migrations import COPY_PROGRESS, UnfinishedCopy
from taskservice.database.models import ServiceHeartbeat
from taskservice.database.types import AnyRow, db
from taskservice.operations import database_check
from taskservice.operations.health import is_served

# A checksum of a table that does not depend on the order of its rows or on the database.

_MODULUS = 2**256


@dataclass(frozen=True)
class Checksum:
    """The number of rows, and the sum modulo 2^256 of the SHA-256 of each in canonical form.

    A sum can be stored and continued, and two databases may sort their rows differently.
    """

    rows: int = 0
    total: int = 0

    @property
    def hex(self) -> str:
        return f"{self.total:064x}"

    def plus(self, rows: Sequence[AnyRow]) -> "Checksum":
        """With these rows added."""
        digests = [hashlib.sha256(canonical(row)).digest() for row in rows]
        total = sum(int.from_bytes(digest, "big") for digest in digests)
        return Checksum(self.rows + len(rows), (self.total + total) % _MODULUS)


def canonical(values: Sequence[Any]) -> bytes:
    """A row's values as JSON, in the order of the model's columns."""
    return orjson.dumps(tuple(values))


# Remarks on how far a long command is.

REMARK_SECONDS = 10.0


class Remarks:
    """Calls `remark` at most every REMARK_SECONDS."""

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._next = time.monotonic() + REMARK_SECONDS

    def reached(self, done: str, table: str, rows: int) -> None:
        """Say how many rows of a table are done; `done` is a word such as `copied`."""
        if time.monotonic() >= self._next:
            self._remark(f"{table}: {rows:,} {done}")
            self._next = time.monotonic() + REMARK_SECONDS


# Copies all of a database into an empty one, SQLite or PostgreSQL, while nobody serves it.

# What one transaction copies, whichever comes first.
BATCH_ROWS = 1_000
BATCH_BYTES = 4 * 1024 * 1024
# Rows that one read takes into memory: a task's row may have 2 MiB.
READ_ROWS = 8
# Limits the wait for those that write to the copied tables.
LOCK_SECONDS = 60

TABLES: list[Table] = db.metadata.sorted_tables
# One row for each table, and this table only, is what tells an unfinished copy from a database.
_PROGRESS = Table(
    COPY_PROGRESS,
    MetaData(),
    Column("table_name", String, primary_key=True),
    Column("source", Text, nullable=False),
    # The primary key of the last row that was copied, as a JSON array.
    Column("last_key", Text, nullable=False),
    Column("row_count", BigInteger, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("is_done", Boolean, nullable=False),
)
_ADVANCE = (
    update(_PROGRESS)
    .where(
        _PROGRESS.c.table_name == bindparam("of_table"),
        _PROGRESS.c.last_key == bindparam("before"),
    )
    .values(
        last_key=bindparam("after"),
        row_count=bindparam("rows"),
        checksum=bindparam("total"),
        is_done=bindparam("done"),
    )
)
_NO_KEY = "[]"


class CopyError(Exception):
    """The copy cannot go on; the message is one line for the operator."""


@dataclass(frozen=True)
class CopiedTable:
    """A table that is the same in both databases."""

    table: str
    rows: int
    sha256: str


def copy(source: URL, target: URL, remark: Callable[[str], None]) -> list[CopiedTable]:
    """Copy all rows, compare both databases, and return what they have, table by table.

    Each batch of rows is one transaction with the progress, so that the same call goes on where
    another was broken off. Raises CopyError, and DatabaseError for a database that cannot be used.
    """
    _check_addresses(source, target)
    with _one_line_errors(target), _reading(source, remark) as reads:
        writer = _writer(target)
        _begin(writer, target, shown(source), remark)
        remarks = Remarks(remark)
        for table in TABLES:
            _copy_table(reads, writer, table, remarks)
        copied = [_compared(reads, writer, table, remarks) for table in TABLES]
        _finish(writer)
    return copied


# --- the source --------------------------------------------------------------------------


def _check_addresses(source: URL, target: URL) -> None:
    files = [Path(each.database or "") for each in (source, target) if _is_sqlite(each)]
    are_both_there = len(files) == 2 and all(file.exists() for file in files)
    if source == target or (are_both_there and files[0].samefile(files[1])):
        raise CopyError("FROM and TO are the same database")
    if _is_sqlite(source):
        path = Path(source.database or "")
        if not path.is_file():
            raise CopyError(f"There is no database at {path}")
        if not is_frozen(path) and is_open_elsewhere(path):
            raise _in_use(source)


def _in_use(address: URL) -> CopyError:
    name = address.database if _is_sqlite(address) else shown(address)
    return CopyError(f"{name} is in use: stop the service, and every other command, first")


def _is_sqlite(address: URL) -> bool:
    return address.get_backend_name() == "sqlite"


@contextmanager
def _one_line_errors(target: URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, OSError) as error:
        reason = database_check.reason(error)
        if _is_sqlite(target):
            reason += full_disk(Path(target.database or ""))
        raise CopyError(f"The copy stopped: {reason}; the same command goes on") from None


@contextmanager
def _reading(address: URL, remark: Callable[[str], None]) -> Iterator[Connection]:
    """A transaction that reads one state of the database, and lets no one write to it."""
    engine = _reader(address)
    with engine.connect() as connection:
        _check_revision(connection, address)
        if not _is_sqlite(address) and is_served(connection, address, remark):
            raise _in_use(address)
    with engine.connect() as connection:
        if not _is_sqlite(address):
            _lock_tables(connection.execution_options(isolation_level="REPEATABLE READ"))
        yield connection


def _reader(address: URL) -> Engine:
    if not _is_sqlite(address):
        return command_engine(address)
    path = Path(address.database or "")
    # Without transactions of pysqlite's own.
    connect = partial(
        sqlite3.connect, readable_uri(path), uri=True, timeout=BUSY_SECONDS, isolation_level=None
    )
    engine = command_engine(address, creator=connect)
    # A read-only disk lets no one write.
    begin = "BEGIN" if is_frozen(path) else "BEGIN IMMEDIATE"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _check_revision(connection: Connection, address: URL) -> None:
    found = migrations.revision(connection)
    if found is None:
        raise CopyError(f"There is no database at {shown(address)}")
    if found != migrations.head():
        raise CopyError(
            f"{shown(address)} is at revision {found}; `taskservice db upgrade` with its "
            f"TASKSERVICE_DATABASE_URL upgrades it to {migrations.head()}"
        )


def _lock_tables(connection: Connection) -> None:
    """Let no one write, before the transaction's first read decides what it sees."""
    names = ", ".join(table.name for table in TABLES)
    for statement in (
        f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}",
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL idle_in_transaction_session_timeout = 0",
        f"LOCK TABLE {names} IN SHARE MODE",
    ):
        connection.exec_driver_sql(statement)


# --- the target --------------------------------------------------------------------------


def _writer(address: URL) -> Engine:
    engine = command_engine(address)
    if _is_sqlite(address):
        event.listen(engine, "connect", prepare_sqlite_connection)
        event.listen(engine, "begin", lambda one: one.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _begin(engine: Engine, address: URL, source: str, remark: Callable[[str], None]) -> None:
    """Make the target with an empty progress of each table, unless it was begun before.

    Raises DatabaseError for a database of an older revision, which stays as it is, and
    CopyError for one that is served, has any row but the heartbeat of a service
    that was stopped, or was begun by another copy.
    """
    try:
        migrations.upgrade(address, may_change=False)
    except UnfinishedCopy:
        with engine.begin() as connection:
            _check_begun(connection, address, source)
        return
    if _is_sqlite(address):
        in_use = is_open_elsewhere(Path(address.database or ""))
    else:
        with engine.connect() as connection:
            in_use = is_served(connection, address, remark)
    if in_use:
        raise _in_use(address)
    with engine.begin() as connection:
        _check_empty(connection, address)
        connection.execute(delete(ServiceHeartbeat))
        _PROGRESS.create(connection)
        begun = {"source": source, "last_key": _NO_KEY, "row_count": 0, "is_done": False}
        zero = Checksum().hex
        rows = [{**begun, "table_name": table.name, "checksum": zero} for table in TABLES]
        connection.execute(insert(_PROGRESS), rows)


def _check_begun(connection: Connection, address: URL, source: str) -> None:
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    sources = set(connection.scalars(select(_PROGRESS.c.source)))
    if sources != {source}:
        other = ", ".join(sorted(sources))
        raise CopyError(f"{shown(address)} has a part of {other}; copy from there, or remove it")
    if found != migrations.head():
        raise CopyError(
            f"{shown(address)} was begun by another version of taskservice; remove it first"
        )


def _check_empty(connection: Connection, address: URL) -> None:
    for table in TABLES:
        if table is ServiceHeartbeat.__table__:
            continue
        if connection.execute(select(literal(1)).select_from(table).limit(1)).one_or_none():
            raise CopyError(f"{shown(address)} is not empty: its table {table.name} has rows")


def _progress_of(connection: Connection, table: Table) -> tuple[AnyRow, Checksum]:
    row = connection.execute(select(_PROGRESS).where(_PROGRESS.c.table_name == table.name)).one()
    return row, Checksum(row.row_count, int(row.checksum, 16))


def _copy_table(reads: Connection, writer: Engine, table: Table, remarks: Remarks) -> None:
    with writer.begin() as connection:
        progress, checksum = _progress_of(connection, table)
    if progress.is_done:
        return
    last = progress.last_key
    for rows, is_last in _batches(reads, table, orjson.loads(last)):
        checksum = checksum.plus(rows)
        after = _key(table, rows[-1]) if rows else last
        advance = {"of_table": table.name, "before": last, "after": after, "rows": checksum.rows,
                   "total": checksum.hex, "done": is_last}  # fmt: skip
        _store(writer, table, rows, advance)
        remarks.reached("copied", table.name, checksum.rows)
        last = after


def _key(table: Table, row: AnyRow) -> str:
    values = row._mapping
    return orjson.dumps([values[column] for column in table.primary_key]).decode()


def _batches(
    reads: Connection, table: Table, after: Sequence[Any]
) -> Iterator[tuple[list[AnyRow], bool]]:
    """The rows after this key, as many as one transaction copies; and whether they are the last."""
    columns = [*table.primary_key]
    rows = select(table).order_by(*columns)
    if after:
        values = [literal(each, column.type) for each, column in zip(after, columns, strict=True)]
        rows = rows.where(tuple_(*columns) > tuple_(*values))
    batch: list[AnyRow] = []
    size = 0
    for row in reads.execute(rows.execution_options(yield_per=READ_ROWS)):
        batch.append(row)
        size += len(canonical(row))
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch, False
            batch, size = [], 0
    yield batch, True


def _store(writer: Engine, table: Table, rows: Sequence[AnyRow], advance: dict[str, Any]) -> None:
    values = [dict(row._mapping) for row in rows]
    try:
        with writer.begin() as connection:
            if connection.execute(_ADVANCE, advance).rowcount != 1:
                raise CopyError("Another `taskservice db copy` writes to the same database")
            if values:
                connection.execute(insert(table), values)
    except (DataError, IntegrityError):
        _raise_for_row(writer, table, rows)
        raise


def _raise_for_row(writer: Engine, table: Table, rows: Sequence[AnyRow]) -> None:
    """Raises CopyError that names the row that the target cannot hold."""
    for row in rows:
        with writer.connect() as connection, connection.begin() as transaction:
            try:
                connection.execute(insert(table), dict(row._mapping))
            except (DataError, IntegrityError) as error:
                raise CopyError(
                    f"TO cannot hold the row {_key(table, row)} of {table.name}: "
                    f"{database_check.reason(error)}"
                ) from None
            transaction.rollback()


# --- the end -----------------------------------------------------------------------------


def _compared(reads: Connection, writer: Engine, table: Table, remarks: Remarks) -> CopiedTable:
    """Read the table again on both sides; raises CopyError if it is not what was copied."""
    with writer.begin() as connection:
        _, copied = _progress_of(connection, table)
        there = _checksum(connection, table, remarks)
    if there != copied:
        raise CopyError(f"{table.name} was changed or damaged in TO; remove TO and copy again")
    if _checksum(reads, table, remarks) != copied:
        raise CopyError(
            f"{table.name} has changed in FROM since the copy was begun; remove TO and copy again"
        )
    return CopiedTable(table.name, copied.rows, copied.hex)


def _checksum(connection: Connection, table: Table, remarks: Remarks) -> Checksum:
    checksum = Checksum()
    rows = connection.execute(select(table).execution_options(yield_per=READ_ROWS))
    for some in rows.partitions():
        checksum = checksum.plus(some)
        remarks.reached("read again", table.name, checksum.rows)
    return checksum


def _finish(writer: Engine) -> None:
    """Make a database of the copy: from here on it can be served."""
    with writer.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
            for table in TABLES:
                _set_sequence(connection, table)
                connection.exec_driver_sql(f"ANALYZE {table.name}")
        _PROGRESS.drop(connection)


def _set_sequence(connection: Connection, table: Table) -> None:
    """Let the next row get a number above those that were copied."""
    for column in table.columns:
        if column.identity is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            highest = select(func.max(column)).scalar_subquery()
            connection.execute(select(func.setval(sequence, highest)))
