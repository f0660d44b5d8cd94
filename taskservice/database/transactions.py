"""Provides connections for reads, and write transactions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from flask import g
from sqlalchemy import Connection, select, tuple_
from sqlalchemy.exc import IntegrityError

from taskservice import resources
from taskservice.database.connections import KeptConnections, Statement
from taskservice.database.engine import BUSY_SECONDS, Database
from taskservice.database.types import AnySelect, database_now

P = ParamSpec("P")
T = TypeVar("T")
# The maximum number of retries of a transaction that conflicts with another transaction.
MAX_RETRIES = 10
_NOW = Statement[Any](select(database_now()))


@contextmanager
def transaction() -> Iterator[Connection]:
    """A connection in a write transaction, which is committed, or rolled back after an error."""
    end_shared_reading()
    database = resources.find(Database)
    if database.writer_queue is None:
        with database.writes.use() as connection, connection.begin():
            yield connection
        return
    with database.writer_queue.transaction(database.writes, BUSY_SECONDS) as connection:
        yield connection


def write_lock() -> AbstractContextManager[None]:
    """Hold the lock for writes to SQLite; raises OperationalError after waiting BUSY_SECONDS.

    On PostgreSQL, this does nothing.
    """
    queue = resources.find(Database).writer_queue
    return queue.turn(BUSY_SECONDS) if queue else nullcontext()


@contextmanager
def read_snapshot() -> Iterator[Connection]:
    """A connection for several short reads that all see the same state of the database."""
    with reading() as connection:
        level = "ISOLATION LEVEL REPEATABLE READ" if connection.dialect.name == "postgresql" else ""
        connection.exec_driver_sql(f"BEGIN {level}")
        yield connection
        connection.exec_driver_sql("COMMIT")


class SharedReading:
    """A connection that all reads of a request share; the first read acquires it."""

    def __init__(self, connections: KeptConnections) -> None:
        self._connections = connections
        self._connection: Connection | None = None

    def __enter__(self) -> Connection:
        if self._connection is None:
            self._connection = self._connections.acquire()
        return self._connection

    def __exit__(self, *_error: object) -> None:
        """Retain the connection for the next read."""

    def end(self, error: BaseException | None) -> None:
        """Release the connection; close it after an error, since it may be unusable."""
        if self._connection is None:
            return
        if error is None:
            self._connections.release(self._connection)
        else:
            self._connections.discard(self._connection)


def reading() -> AbstractContextManager[Connection]:
    """A connection for reads, without a transaction.

    All reads of an API request between `share_reading` and `end_shared_reading` share a connection,
    which is released at the latest when the response is sent. Each read for a dashboard page uses a
    separate connection.
    """
    return g.get("reading") or resources.find(Database).reads.use()


def read_all(statement: Any, /, **values: Any) -> Sequence[Any]:
    """The rows of a SELECT, which can be a `Statement`."""
    with reading() as connection:
        if isinstance(statement, Statement):
            return statement.all(connection, **values)
        return connection.execute(statement, values).all()


def read_one(statement: Any, /, **values: Any) -> Any | None:
    """The first row, or None if the statement returns no rows."""
    return next(iter(read_all(statement, **values)), None)


def in_pages(
    rows: AnySelect, order: Sequence[Any], count: int, values: Mapping[str, Any] | None = None
) -> Iterator[Sequence[Any]]:
    """All rows in pages of `count`, sorted by the columns in `order`; each page is one read."""
    page = rows.order_by(None).order_by(*order).limit(count)
    after = page
    while page_rows := read_all(after, **(values or {})):
        yield page_rows
        if len(page_rows) < count:
            return
        last = [getattr(page_rows[-1], column.key) for column in order]
        after = page.where(tuple_(*order) > tuple_(*last, types=[column.type for column in order]))


def share_reading() -> None:
    """Let the reads of this request share a connection."""
    g.reading = SharedReading(resources.find(Database).reads)


def end_shared_reading(error: BaseException | None = None) -> None:
    """Release the shared connection, before an operation that may take long."""
    shared: SharedReading | None = g.pop("reading", None)
    if shared is not None:
        shared.end(error)


def database_time() -> str:
    with reading() as connection:
        return current_time(connection)


def current_time(connection: Connection) -> str:
    """The current time by the clock of this connection's database, read inside its transaction."""
    # All nodes use the database's clock for `finishedAt`. Therefore `sort=finishedAt` is correct
    # across nodes, and a node with a wrong clock cannot make a task look old enough to be removed.
    now: str = _NOW.scalar(connection)
    return now


def retry_on_conflict(function: Callable[P, T]) -> Callable[P, T]:
    """Retry a transaction that violated a constraint because rows changed after its SELECT."""

    @wraps(function)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(MAX_RETRIES):
            with suppress(IntegrityError):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return again
