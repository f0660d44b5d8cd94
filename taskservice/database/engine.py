"""The database: its engines, its types, its clock, and how a write transaction begins."""

from dataclasses import dataclass
from typing import Any

from flask import Flask
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import OperationalError

from taskservice import resources
from taskservice.database import statement_timeout
from taskservice.database.file_watch import DatabaseFiles
from taskservice.database.types import db
from taskservice.database.writer_queue import WriterQueue

try:
    # The extra `sqlite`, a newer SQLite than Python came with. One process may not have both
    # at one file: what closes the one drops the locks of the other.
    import pysqlite3 as _sqlite3
except ModuleNotFoundError:
    import sqlite3 as _sqlite3

# The driver that every other module takes from here.
sqlite3 = _sqlite3

# How long a writer waits for its turn before its request is told 503.
BUSY_SECONDS = 5.0
# PostgreSQL: so many times as long any statement may take. Ours take far less by themselves.
STATEMENT_FACTOR = 2
# How long a server that has vanished from the network is believed to be there.
POSTGRESQL_TIMEOUTS = {
    "connect_timeout": int(BUSY_SECONDS),
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class EncodingError(Exception):
    """A database of PostgreSQL has an encoding that can't hold every text."""

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"its encoding is {encoding}, and only UTF8 holds every text; make another with "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )


@dataclass(frozen=True)
class Database:
    """What an app reads with and, on SQLite, what its writers need; `db.engine` writes."""

    reader: Engine
    writer_queue: WriterQueue | None = None
    files: DatabaseFiles | None = None


def init_app(app: Flask, url: str | URL, threads: int) -> None:
    """Provide the `Database` of `app`, with up to `threads` connections in use at once."""
    address = make_url(url)
    options: dict[str, Any] = {
        **engine_arguments(address),
        # Whatever is logged of a failed statement, it is not what was to be written.
        "hide_parameters": True,
        "pool_size": threads + 8,
        "max_overflow": 8,
        "pool_timeout": BUSY_SECONDS,
        # A connection may have gone with a server that was restarted; a file has not.
        "pool_pre_ping": address.get_backend_name() != "sqlite",
    }
    app.config["SQLALCHEMY_DATABASE_URI"] = address
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    db.init_app(app)
    with app.app_context():
        _prepare_write_engine(db.engine)
    # An engine of its own: AUTOCOMMIT on the write engine would still fire its
    # begin hook, and so take the write lock for a read.
    alone = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
    reader = create_engine(address, **(options | alone))
    if address.get_backend_name() == "sqlite":
        event.listen(reader, "connect", _prepare_sqlite_reader)
        files = _watched_files(app, address, reader)
        database = Database(reader, WriterQueue.of(address), files)
    else:
        _prepare_postgresql(reader)
        database = Database(reader)
    resources.provide(app, database)


def _watched_files(app: Flask, address: URL, reader: Engine) -> DatabaseFiles:
    """Has each use of a connection look whether the files are the ones that are open."""

    def connect() -> Any:
        connection = sqlite3.connect(address.database, check_same_thread=False)
        prepare_sqlite_connection(connection)
        return connection

    files = DatabaseFiles(address.database or "", connect)
    with app.app_context():
        engines = (db.engine, reader)
    for engine in engines:
        event.listen(engine, "do_connect", lambda *_: files.keep_open())
        event.listen(engine, "checkout", lambda *_: files.check())
    return files


def engine_arguments(address: URL) -> dict[str, Any]:
    """What every engine of this database is made with: its driver, and how it connects."""
    if address.get_backend_name() == "sqlite":
        return {"module": sqlite3, "connect_args": {"timeout": BUSY_SECONDS}}
    # No prepared statements: behind a pooler in transaction mode they do not work. The encoding
    # comes before anything that the server says, whatever the user or the database is set to.
    return {
        "connect_args": {
            "prepare_threshold": None,
            "client_encoding": "UTF8",
            **POSTGRESQL_TIMEOUTS,
        },
        # Said with each BEGIN. As SERIALIZABLE, which a database may have for its default, most
        # writes would fail that meet another one.
        "isolation_level": "READ COMMITTED",
    }


def prepare_sqlite_connection(connection: Any, _record: Any = None) -> None:
    """The pragmas of every connection; their order matters (see the comments)."""
    # Otherwise pysqlite begins transactions by its own rules.
    connection.isolation_level = None
    cursor = connection.cursor()
    # First, so that even the switch to WAL waits for its turn.
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    # Before WAL and the first table, after which it is silently ignored: but still a write.
    if cursor.execute("PRAGMA page_count").fetchone() == (0,):
        cursor.execute("PRAGMA auto_vacuum = INCREMENTAL")
    cursor.execute("PRAGMA journal_mode = WAL")
    # An answer is a promise: a commit waits for the disk.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_size_limit = 67108864")
    cursor.close()


def prepare_postgresql_connection(connection: Any, _record: Any = None) -> None:
    """What every session needs; raises OperationalError where the database is not in UTF-8."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in ("UTF8", None):
        connection.close()
        raise OperationalError("connect", None, EncodingError(encoding))
    # Only what poolers keep apart for each of their clients. Dates are read as ISO 8601, and
    # east of UTC the last hours of the year 9999 are past what Python knows.
    connection.execute("SET DateStyle = 'ISO'; SET TIME ZONE 'UTC'")
    connection.commit()


def _prepare_sqlite_reader(connection: Any, record: Any) -> None:
    prepare_sqlite_connection(connection, record)
    connection.execute("PRAGMA query_only = ON")


def _prepare_write_engine(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", prepare_sqlite_connection)
        event.listen(engine, "begin", _begin_immediate)
    else:
        event.listen(engine, "begin", _begin_postgresql)
        _prepare_postgresql(engine)


def _begin_immediate(connection: Connection) -> None:
    # A transaction that starts by reading fails as busy, at once and whatever
    # the timeout, when it comes to write after somebody else has.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_postgresql(engine: Engine) -> None:
    seconds = STATEMENT_FACTOR * BUSY_SECONDS

    def prepare(connection: Any, _record: Any) -> None:
        statement_timeout.limit(connection, seconds, engine.dialect.dbapi)
        prepare_postgresql_connection(connection)

    # First of all: SQLAlchemy asks the server a few things of its own.
    event.listen(engine, "connect", prepare, insert=True)
    event.listen(engine, "handle_error", _forget_rows)


def _forget_rows(context: ExceptionContext) -> None:
    """Leave of PostgreSQL's error what it says first: its details quote whole rows."""
    diagnosis = getattr(context.original_exception, "diag", None)
    if diagnosis is None or context.sqlalchemy_exception is None:
        return
    if diagnosis.message_primary:
        text = f"{diagnosis.sqlstate} {diagnosis.message_primary}"
        context.original_exception.args = context.sqlalchemy_exception.args = (text,)


def _begin_postgresql(connection: Connection) -> None:
    # An answer is a promise: a commit waits for the disk, also where the database's default
    # is not to. Both hold for this transaction alone: behind a pooler the next one on this
    # connection is another's.
    connection.exec_driver_sql(
        f"SELECT set_config('lock_timeout', '{int(BUSY_SECONDS * 1000)}', true), "
        "set_config('synchronous_commit', "
        "replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
    ).close()


def dispose(app: Flask) -> None:
    """Close all connections of `app`; they may not be open when the process forks."""
    with app.app_context():
        db.engine.dispose()
    database = resources.find(Database, app)
    database.reader.dispose()
    if database.files:
        database.files.close()
