"""The database is brought up to date, by one process at a time, with Alembic."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, inspect, pool, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from taskservice.database.engine import (
    EncodingError,
    engine_arguments,
    prepare_postgresql_connection,
    prepare_sqlite_connection,
    sqlite3,
)
from taskservice.database.files import make_folder
from taskservice.database.writer_queue import WriterQueue

FOLDER = Path(__file__).parent
MIGRATION_SECONDS = 60
# PostgreSQL: two processes may not migrate at once. Any fixed number will do.
_ADVISORY_LOCK = 0x7461736B
_LOCK_NOT_AVAILABLE = "55P03"


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the operator."""

    exit_code = 1


class UnfitDatabase(DatabaseError):
    """The settings name a database that will never do."""

    exit_code = 2


class NoDatabase(DatabaseError):
    """There is none yet, and whoever asks may not make it."""

    def __init__(self, where: Path | str) -> None:
        super().__init__(f"There is no database at {where}; `taskservice serve` makes one")


def upgrade(url: str | URL, target: str = "head", may_create: bool = True) -> None:
    """Bring the database to `target`, making it where there is none, if it may.

    Raises DatabaseError, with the database untouched, when it cannot be opened, is no
    database of ours, is newer than this code, or is not there and may not be made.
    """
    address = make_url(url)
    is_sqlite = address.get_backend_name() == "sqlite"
    if is_sqlite:
        _check_file(Path(address.database or ""), may_create)
    engine = create_engine(address, poolclass=pool.NullPool, **engine_arguments(address))
    if not is_sqlite:
        event.listen(engine, "connect", prepare_postgresql_connection, insert=True)
    begin = _begin_sqlite if is_sqlite else _begin_postgresql
    try:
        with _turn(address), engine.connect() as connection:
            if not is_sqlite:
                _limit_wait(connection)
            # Before anything is written: this file may be somebody else's.
            found = revision(connection)
            if found is None and not may_create:
                raise NoDatabase(_where(address))
            if found != (head() if target == "head" else target):
                begin(connection)
                _run(connection, target)
                connection.commit()
    except (DBAPIError, sqlite3.Error, OSError) as error:
        kind = UnfitDatabase if _is_unfit(error) else DatabaseError
        raise kind(f"The database {_where(address)} cannot be used: {_reason(error)}") from None


@contextmanager
def _turn(address: URL) -> Iterator[None]:
    """On SQLite one process at a time: the switch to WAL does not wait, but fails as locked."""
    if address.get_backend_name() == "sqlite":
        with WriterQueue.of(address).turn(MIGRATION_SECONDS):
            yield
    else:
        yield


def _limit_wait(connection: Connection) -> None:
    """Wait for no lock of PostgreSQL for ever, be it for the turn to migrate or for a table."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {MIGRATION_SECONDS * 1000}")


def _where(address: URL) -> str:
    if address.get_backend_name() == "sqlite":
        return address.database or ""
    return address.render_as_string(hide_password=True)


def _is_unfit(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, EncodingError)


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return f"somebody else has kept it locked for {MIGRATION_SECONDS} s"
    return str(cause).strip().partition("\n")[0]


def head() -> str:
    """The newest revision that this code knows."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


def revision(connection: Connection) -> str | None:
    """The revision the database is at, None for an empty one; raises DatabaseError."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if "alembic_version" not in tables:
        raise DatabaseError("The database holds the tables of another program")
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseError(
            f"The database is at revision {revision}, which this version of taskservice "
            "does not know: it is newer than the code"
        )
    return revision


def _begin_sqlite(connection: Connection) -> None:
    connection.rollback()
    driver: Any = connection.connection.dbapi_connection
    prepare_sqlite_connection(driver)
    driver.execute(f"PRAGMA busy_timeout = {MIGRATION_SECONDS * 1000}")
    # Rebuilding a table, as SQLite's migrations do, would cascade its children away.
    driver.execute("PRAGMA foreign_keys = OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_postgresql(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def _run(connection: Connection, target: str) -> None:
    # In the transaction that is open already: all migrations happen, or none.
    config = AlembicConfig()
    # In what Alembic reads a single % refers to another option.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, target)
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise DatabaseError(f"A migration broke references of table {broken[0][0]}")


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(FOLDER))


def _check_file(path: Path, may_create: bool) -> None:
    """Look at an SQLite file before anything is written to it."""
    try:
        if not may_create and not path.exists():
            raise NoDatabase(path)
        make_folder(path.parent)
        # It holds secrets; SQLite's other files take their mode from it.
        path.touch(mode=0o600)
        if path.stat().st_size == 0:
            return
        with open(path, "rb") as file:
            magic = file.read(16)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from None
    if magic != b"SQLite format 3\0":
        raise DatabaseError(f"{path} is no SQLite database")
