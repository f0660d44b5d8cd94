"""Connections to read and to write with, and how writers take turns."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from taskservice import resources
from taskservice.database.engine import BUSY_SECONDS, Database
from taskservice.database.types import database_now, db

P = ParamSpec("P")
T = TypeVar("T")
# How often others may get in before us, each time in the moment between look and insert.
CONFLICTS = 10


@contextmanager
def transaction() -> Iterator[Connection]:
    """A connection in a write transaction: committed at the end, rolled back on an error."""
    with writer_turn(), db.engine.begin() as connection:
        yield connection
    # What was just committed counts only if it is where the next start looks for it.
    files = resources.find(Database).files
    if files:
        files.check()


def has_writer_queue() -> bool:
    """Whether writers come one at a time, as on SQLite."""
    return resources.find(Database).writer_queue is not None


def writer_turn() -> AbstractContextManager[None]:
    """The right to write to SQLite; on PostgreSQL everybody has it.

    Raises OperationalError when it does not come in time.
    """
    queue = resources.find(Database).writer_queue
    return queue.turn(BUSY_SECONDS) if queue else nullcontext()


def reading() -> Connection:
    """A connection for reads, each statement on its own; use it in a `with`."""
    return resources.find(Database).reader.connect()


def database_moment() -> str:
    """This moment by the database's clock."""
    with reading() as connection:
        return connection.execute(select(database_now())).scalar_one()


def retry_on_conflict(function: Callable[P, T]) -> Callable[P, T]:
    """Run a transaction again when a constraint stopped it, a few times at most.

    On PostgreSQL another transaction may add or remove, between our look and our insert,
    the very row we looked for. The next look sees what it did.
    """

    @wraps(function)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(CONFLICTS):
            try:
                return function(*args, **kwargs)
            except IntegrityError:
                continue
        return function(*args, **kwargs)

    return again
