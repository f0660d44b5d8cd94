"""Connections that remain checked out of the pool between uses, and precompiled statements."""

from collections import deque, namedtuple
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler


class KeptConnections:
    """Connections of an engine; up to `max_kept` unused connections stay checked out of its pool.

    Checking a connection out of the pool and back in takes 40 µs, which is longer than a read of a
    task. `is_usable` checks the driver's connection before each use; its exceptions are not caught.
    """

    def __init__(self, engine: Engine, is_usable: Callable[[Any], bool], max_kept: int) -> None:
        self.engine = engine
        self.is_usable = is_usable
        self._max_kept = max_kept
        # The most recently used connection is used next.
        self._kept: deque[Connection] = deque()

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """A connection for a `with` block; it is closed after an error."""
        connection = self.acquire()
        try:
            yield connection
        except BaseException:
            self.discard(connection)
            raise
        self.release(connection)

    def acquire(self) -> Connection:
        """Check out a connection for one thread; raises OperationalError and TimeoutError."""
        while connection := self._pop():
            is_usable = False
            try:
                is_usable = self.is_usable(connection.connection.dbapi_connection)
            finally:
                if not is_usable:
                    connection.invalidate()
                    connection.close()
            if is_usable:
                return connection
        return self.engine.connect()

    def release(self, connection: Connection) -> None:
        """Retain a connection for the next use, or close it if it is broken or not needed."""
        if connection.in_transaction():
            connection.rollback()
        if connection.invalidated or len(self._kept) >= self._max_kept:
            self.discard(connection)
        else:
            self._kept.append(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection; if it was lost, close all unused connections too."""
        if connection.invalidated:
            self.forget()
        connection.close()

    def forget(self) -> None:
        """Close all unused connections, for example after another connection was lost."""
        while connection := self._pop():
            connection.invalidate()
            connection.close()

    def _pop(self) -> Connection | None:
        try:
            return self._kept.pop()
        except IndexError:
            return None


R = TypeVar("R")


class Statement(Generic[R]):
    """An SQLAlchemy statement that is compiled once; `values` are its bind parameters.

    `Connection.execute` takes 25 µs longer, since each call computes the cache key of the
    statement, and creates a context, a result and its rows. This class returns rows as named
    tuples. Like `Connection.execute`, it raises SQLAlchemy's errors and calls the listeners of the
    event `before_cursor_execute`. `columns` names further columns that an INSERT sets, from
    parameters with the same names.
    """

    def __init__(self, clause: Any, columns: Collection[str] | None = None) -> None:
        self._clause, self._columns = clause, columns
        self._plans: dict[str, _Plan] = {}

    def all(self, connection: Connection, **values: Any) -> list[R]:
        plan = self._plan(connection)
        return plan.rows(execute(connection, plan.sql, plan.arguments(values)))

    def one_or_none(self, connection: Connection, **values: Any) -> R | None:
        """The first row, or None if the statement returns no rows."""
        return next(iter(self.all(connection, **values)), None)

    def scalar(self, connection: Connection, **values: Any) -> Any:
        """The first column of the first row, or None if the statement returns no rows."""
        row: Any = self.one_or_none(connection, **values)
        return None if row is None else row[0]

    def run(self, connection: Connection, **values: Any) -> None:
        """Execute the statement without reading rows."""
        plan = self._plan(connection)
        execute(connection, plan.sql, plan.arguments(values), has_rows=False)

    def _plan(self, connection: Connection) -> "_Plan":
        dialect = connection.dialect
        plan = self._plans.get(dialect.name)
        if plan is None:
            plan = self._plans[dialect.name] = _Plan(self._clause, self._columns, dialect)
        return plan


class _Plan:
    """A statement compiled for one kind of database, with conversions of parameters and rows."""

    def __init__(self, clause: Any, inserted: Collection[str] | None, dialect: Dialect) -> None:
        compiled: SQLCompiler = clause.compile(dialect=dialect, column_keys=inserted)
        self.sql = str(compiled)
        self._names = compiled.positiontup if compiled.positional else None
        binds = compiled.binds.items()
        self._constants = {name: bind.value for name, bind in binds if not bind.required}
        self._to_database = _converters(
            (name, bind.type.dialect_impl(dialect).bind_processor(dialect)) for name, bind in binds
        )
        columns = clause.exported_columns
        row_type: Any = namedtuple("Row", columns.keys(), rename=True)  # type: ignore[misc]
        # This does the same as the named tuple's `_make`, but calls no Python function for each
        # row.
        self._make = partial(tuple.__new__, row_type)
        self._from_database = _converters(
            (place, column.type.dialect_impl(dialect).result_processor(dialect, None))
            for place, column in enumerate(columns)
        )

    def arguments(self, values: dict[str, Any]) -> Mapping[str, Any] | Sequence[Any]:
        if self._constants:
            values = self._constants | values
        for name, convert in self._to_database:
            values[name] = convert(values[name])
        return values if self._names is None else tuple([values[name] for name in self._names])

    def rows(self, fetched: list[tuple[Any, ...]]) -> list[Any]:
        if not self._from_database:
            return list(map(self._make, fetched))
        converted = [list(row) for row in fetched]
        for values in converted:
            for place, convert in self._from_database:
                values[place] = convert(values[place])
        return list(map(self._make, converted))


def _converters(processors: Any) -> list[tuple[Any, Callable[[Any], Any]]]:
    """The columns whose values SQLAlchemy converts, each with its conversion function."""
    return [(column, convert) for column, convert in processors if convert is not None]


def execute(
    connection: Connection, sql: str, arguments: Any = (), *, has_rows: bool = True
) -> list[tuple[Any, ...]]:
    """Execute SQL with the driver's placeholders; returns all rows."""
    driver_connection: Any = connection.connection.dbapi_connection
    for listener in connection.engine.dispatch.before_cursor_execute:
        listener(connection, None, sql, arguments, None, False)
    try:
        cursor = driver_connection.execute(sql, arguments)
        return cursor.fetchall() if has_rows else []
    except connection.dialect.loaded_dbapi.Error as error:
        raise _failure(connection, sql, error) from error


def _failure(connection: Connection, sql: str, error: Any) -> BaseException:
    """The SQLAlchemy error for a driver's error; a lost connection is invalidated."""
    dialect = connection.dialect
    is_lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    failure: BaseException = DBAPIError.instance(
        sql,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=is_lost,
        dialect=dialect,
    )
    redact_details(error, failure)
    if is_lost:
        connection.invalidate(error)
    return failure


def redact_details(error: BaseException, failure: BaseException) -> None:
    """Reduce a PostgreSQL error to its primary message, since its details can quote whole rows."""
    diagnosis = getattr(error, "diag", None)
    if diagnosis is not None and diagnosis.message_primary:
        text = f"{diagnosis.sqlstate} {diagnosis.message_primary}"
        error.args = failure.args = (text,)
