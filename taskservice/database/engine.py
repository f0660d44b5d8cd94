"""The engines for reads and for writes, and the setup of their connections and transactions."""

import select
from pathlib import Path
from typing import Any, NamedTuple

from flask import Flask
from sqlalchemy import Engine, create_engine, event, pool
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import OperationalError

from taskservice import resources
from taskservice.database import connections as statements
from taskservice.database.connections import KeptConnections
from taskservice.database.files import DatabaseFiles, sqlite_uri
from taskservice.database.types import db
from taskservice.database.writer_queue import WriterQueue

try:
    # The extra `sqlite` installs a newer SQLite than the one in Python. A process must not open a
    # database with both libraries: when one closes the file, the locks of the other are released.
    import pysqlite3 as _sqlite3
except ModuleNotFoundError:
    import sqlite3 as _sqlite3

# All other modules import the driver from here.
sqlite3 = _sqlite3

# A request that waits longer than this for the write lock fails with 503.
BUSY_SECONDS = 5.0
# The time limit of a statement on PostgreSQL, as a multiple of BUSY_SECONDS.
STATEMENT_FACTOR = 2
# The isolation level is explicit: if the database's default is SERIALIZABLE, most concurrent writes
# would otherwise fail. A commit waits for the disk, even if the default of the database is
# `synchronous_commit = off`. The settings apply only to this transaction: behind a connection
# pooler, the next transaction on the connection can belong to another client.
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; "
    "SELECT set_config('lock_timeout', '{}', true), "
    "set_config('synchronous_commit', "
    "replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
)


class Database(NamedTuple):
    """Connections for reads and for writes; on SQLite also the queue of writers and the files."""

    reads: KeptConnections
    writes: KeptConnections
    writer_queue: WriterQueue | None = None
    files: DatabaseFiles | None = None


def init_app(app: Flask, url: str | URL, threads: int) -> None:
    """Set up the `Database` of `app`, for up to `threads` threads that use it at once."""
    address = make_url(url)
    is_sqlite = address.get_backend_name() == "sqlite"
    options: dict[str, Any] = {
        **engine_arguments(address),
        # Log messages about a failed statement must not contain its values.
        "hide_parameters": True,
        "pool_size": threads + 8,
        "max_overflow": 8,
        "pool_timeout": BUSY_SECONDS,
        # Pings are rare, since most operations use a connection that remains checked out of the
        # pool.
        "pool_pre_ping": not is_sqlite,
    }
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    app.config["SQLALCHEMY_DATABASE_URI"] = address
    # With AUTOCOMMIT, psycopg sends no BEGIN itself: on PostgreSQL, `_BEGIN` begins a transaction
    # and sets its options in one round trip.
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options if is_sqlite else options | autocommit
    # Reads use a separate engine, since the `begin` listener of the write engine would take the
    # write lock even with AUTOCOMMIT.
    reads = {"url": address, **options, **autocommit, "pool_reset_on_return": None}
    app.config["SQLALCHEMY_BINDS"] = {"reads": reads}
    db.init_app(app)
    with app.app_context():
        writer, reader = db.engine, db.engines["reads"]
    connect = _sqlite if is_sqlite else _postgresql
    resources.provide(app, connect(writer, reader, threads))


def _sqlite(writer: Engine, reader: Engine, threads: int) -> Database:
    path = writer.url.database or ""

    def connect() -> Any:
        # With this URI, SQLite does not create a missing file, since the operator may restore the
        # old file.
        try:
            connection = sqlite3.connect(sqlite_uri(Path(path)), uri=True, check_same_thread=False)
            prepare_sqlite_connection(connection)
        except sqlite3.Error as error:
            # SQLAlchemy raises the same error if it can't open a connection.
            raise OperationalError("connect", None, error) from error
        return connection

    files = DatabaseFiles(path, connect)
    for engine in (writer, reader):
        event.listen(engine, "do_connect", lambda *_: files.keep_open())
        event.listen(engine, "connect", prepare_sqlite_connection)
        event.listen(engine, "checkout", lambda *_: files.check())
    event.listen(
        reader, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON")
    )
    # After a plain BEGIN, a transaction that reads and then writes would fail with SQLITE_BUSY,
    # without waiting, if another transaction has written in between.
    event.listen(
        writer, "begin", lambda connection: statements.execute(connection, "BEGIN IMMEDIATE")
    )
    return Database(
        reads=KeptConnections(reader, files.check_recently, threads),
        writes=KeptConnections(writer, files.check, 1),
        writer_queue=WriterQueue(path, threads),
        files=files,
    )


def _postgresql(writer: Engine, reader: Engine, threads: int) -> Database:
    # Imported here, since psycopg is optional.
    from taskservice.database.postgresql import TimedConnection

    def connect(_dialect: object, _record: object, arguments: Any, options: Any) -> Any:
        return TimedConnection.connect(*arguments, **options)

    def begin(connection: Any) -> None:
        begins = _BEGIN.format(int(BUSY_SECONDS * 1000))
        statements.execute(connection, begins, None, has_rows=False)

    def prepare(connection: Any, _record: object) -> None:
        connection.statement_seconds = STATEMENT_FACTOR * BUSY_SECONDS
        _prepare_postgresql_connection(connection)

    def handle_error(context: ExceptionContext) -> None:
        if context.sqlalchemy_exception is not None:
            statements.redact_details(context.original_exception, context.sqlalchemy_exception)
        if context.is_disconnect:
            # Close the unused connections too; otherwise, the next request to use one of them would
            # wait for the unresponsive server again.
            reads.forget()
            writes.forget()

    reads = KeptConnections(reader, _has_server, threads)
    writes = KeptConnections(writer, _has_server, threads)
    event.listen(writer, "begin", begin)
    for engine in (writer, reader):
        event.listen(engine, "do_connect", connect)
        # `insert` puts this listener first, since SQLAlchemy's own listener runs queries.
        event.listen(engine, "connect", prepare, insert=True)
        event.listen(engine, "handle_error", handle_error)
    return Database(reads, writes)


def engine_arguments(address: URL) -> dict[str, Any]:
    """The arguments of `create_engine` for every engine of this database."""
    if address.get_backend_name() == "sqlite":
        return {"module": sqlite3, "connect_args": {"timeout": BUSY_SECONDS}}
    # Prepared statements do not work behind a pooler in transaction mode. The encoding is a
    # connection parameter, so that it also applies to the server's first messages.
    return {
        "connect_args": {
            "prepare_threshold": None,
            "client_encoding": "UTF8",
            # Limits for a server that does not respond: `tcp_user_timeout` is in milliseconds, the
            # other times are in seconds.
            "connect_timeout": int(BUSY_SECONDS),
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        },
        # The isolation level is explicit for the same reason as in `_BEGIN`. The engines of an app
        # use AUTOCOMMIT instead.
        "isolation_level": "READ COMMITTED",
    }


def command_engine(address: URL) -> Engine:
    """An engine without a connection pool; it does not set the pragmas of SQLite connections."""
    engine = create_engine(address, poolclass=pool.NullPool, **engine_arguments(address))
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _prepare_postgresql_connection, insert=True)
    return engine


def prepare_sqlite_connection(connection: Any, _record: Any = None) -> None:
    """Set the pragmas of a connection, in an order that matters."""
    # Prevents the driver from beginning transactions itself.
    connection.isolation_level = None
    # The timeout is set before the switch to WAL, which can then wait for a lock.
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    # This pragma has an effect only in an empty database, before the switch to WAL. In any other
    # database, it would only cause a write.
    if connection.execute("PRAGMA page_count").fetchone() == (0,):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # An acknowledged write must survive a power failure, so a commit waits for the disk.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _prepare_postgresql_connection(connection: Any, _record: Any = None) -> None:
    """Set up a session; raises OperationalError if the database's encoding is not UTF-8."""
    from psycopg.types.string import TextLoader

    from taskservice.database.postgresql import TimestampLoader

    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):
        connection.close()
        error = ValueError(
            f"its encoding is {encoding}, but only UTF8 stores every text; create a database with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
        raise OperationalError("connect", None, error)
    # PgBouncer tracks `DateStyle` and `TimeZone`, and restores them for each client. Times and IDs
    # are read as text in the format of the API, which is faster than converting them.
    connection.execute("SET DateStyle = 'ISO'; SET TIME ZONE 'UTC'")
    connection.commit()
    connection.adapters.register_loader("timestamptz", TimestampLoader)
    connection.adapters.register_loader("uuid", TextLoader)


def _has_server(connection: Any) -> bool:
    """Whether an idle connection is still open; a restart of the server closes it."""
    # Check the socket, since a query (as with `pool_pre_ping`) would take as long as a read. The
    # socket of an idle connection is readable only if the server has ended the connection, or if
    # keepalive probes have failed.
    if connection.closed:
        return False
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return not waiting.poll(0)


def dispose(app: Flask) -> None:
    """Close all connections of `app`; none may be open when the process forks."""
    database = resources.find(Database, app)
    for connections in (database.writes, database.reads):
        connections.forget()
        connections.engine.dispose()
    if database.files:
        database.files.close()
