"""Migrates the database with Alembic, one process at a time; on SQLite, copies it first."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from taskservice import __version__
from taskservice.database import name_index
from taskservice.database.address import shown, sqlite_file
from taskservice.database.engine import command_engine, prepare_sqlite_connection, sqlite3
from taskservice.database.files import (
    FULL_DISK_BYTES,
    full_disk,
    make_folder,
    open_regular,
    sync,
)
from taskservice.database.sqlite_copy import copy_sqlite
from taskservice.database.writer_queue import WriterQueue

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).with_name("alembic")
MIGRATION_SECONDS = 60
# The key of the PostgreSQL advisory lock for migrations: the ASCII codes of `task`.
_ADVISORY_LOCK = 0x7461736B
_LOCK_NOT_AVAILABLE = "55P03"
# A table that exists in the target of `taskservice db copy` until all rows are copied.
COPY_PROGRESS = "copy_progress"
# The copy that an upgrade makes next to the database, with the version of the program that the old
# schema belongs to, or `revision-` and the revision.
COPY_NAME = "before-{}.sqlite3"
REVISION_NAME = "revision-"
# A file next to the database: the last version of the program that used it, and its revision.
VERSION_SUFFIX = "-version"


class DatabaseError(Exception):
    """The database cannot be used; the message is one line for the operator."""


class UnfinishedCopy(DatabaseError):
    """`taskservice db copy` was interrupted, so rows are missing."""

    def __init__(self) -> None:
        super().__init__(
            "The database is an unfinished copy: run the same `taskservice db copy` again, or "
            "remove it"
        )


class NoDatabase(DatabaseError):
    """There is no database, and this command must not create it."""

    def __init__(self, where: Path | str) -> None:
        super().__init__(f"There is no database at {where}; `taskservice serve` creates one")


def upgrade(
    url: str | URL,
    target: str = "head",
    may_create: bool = True,
    may_change: bool = True,
    makes_copy: bool = True,
) -> None:
    """Migrate the database to the revision `target`; with `may_create`, create it if it is missing.

    With `makes_copy`, an SQLite database is copied before its schema changes.

    Raises DatabaseError, without any change, if the database cannot be opened, belongs to another
    program or is newer than this code. It is also raised if the database is missing and
    `may_create` is false, if it is older than this code and `may_change` is false, or if the disk
    has no space for the copy.
    """
    address = make_url(url)
    file = sqlite_file(address)
    if file:
        _check_file(file, may_create)
        # Other files belong next to the database, not next to a symbolic link to it.
        file = Path(os.path.realpath(file))
    # On SQLite, wait until no other process writes: the switch to WAL would fail immediately if
    # another process held a write lock.
    turn = WriterQueue(address.database).turn(MIGRATION_SECONDS) if file else nullcontext()
    with _one_line_errors(address), turn, command_engine(address).connect() as connection:
        if not file:
            # `lock_timeout` limits the wait for the advisory lock and for table locks.
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {MIGRATION_SECONDS * 1000}")
        # The revision is read first, since the database may belong to another program.
        current = revision(connection)
        if current is None and not may_create:
            raise NoDatabase(shown(address))
        if current not in (None, head()) and not may_change:
            raise DatabaseError(
                f"{shown(address)} has a database of revision {current}; upgrade or remove it"
            )
        if current != (head() if target == "head" else target):
            if file:
                if current and makes_copy:
                    _copy_before_upgrade(file, current)
                _begin_sqlite(connection)
            else:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            _run(connection, target, _StepLog(is_new=current is None))
            connection.commit()
        if file and target == "head":
            _record_version(file)


def is_older(url: str | URL) -> bool:
    """Whether the schema of an existing PostgreSQL database is older than this code."""
    address = make_url(url)
    with _one_line_errors(address), command_engine(address).connect() as connection:
        return revision(connection) not in (None, head())


@contextmanager
def _one_line_errors(address: URL) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, OSError) as error:
        why = reason(error, sqlite_file(address))
        raise DatabaseError(f"The database {shown(address)} cannot be used: {why}") from None


def reason(error: Exception, file: Path | None = None) -> str:
    """The reason for a database error in one line; mentions a full disk of SQLite's `file`."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return f"another program has locked it for {MIGRATION_SECONDS} s"
    text = str(cause).strip().partition("\n")[0]
    return text + full_disk(file) if file else text


def head() -> str:
    """The newest revision that this code knows."""
    return _revisions()[-1]


def revision(connection: Connection) -> str | None:
    """The revision of the database, or None if it is empty; raises DatabaseError."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return None
    if COPY_PROGRESS in tables:
        raise UnfinishedCopy
    if "alembic_version" not in tables:
        raise DatabaseError("The database contains tables of another program")
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if revision is not None and revision not in _revisions():
        raise DatabaseError(
            f"The database is at revision {revision}, which this version of taskservice "
            "does not know: it is newer than the code"
        )
    return revision


def _copy_before_upgrade(file: Path, current: str) -> None:
    """Copy a database of the revision `current`; raises DatabaseError if there is no space."""
    size = sum(path.stat().st_size for path in (file, Path(f"{file}-wal")) if path.exists())
    free = shutil.disk_usage(file.parent).free
    if free < size + FULL_DISK_BYTES:
        raise DatabaseError(
            f"The disk is full: the upgrade first copies the database, which needs {size:,} bytes, "
            f"but {file.parent} has {free:,}; nothing was changed"
        )
    version, of_revision = _recorded_version(file)
    name = version if of_revision == current else REVISION_NAME + current
    copy = file.with_name(COPY_NAME.format(name))
    # This name is the same each time, so that a process that was killed leaves at most one draft.
    draft = copy.with_suffix(".part")
    try:
        draft.unlink(missing_ok=True)
        draft.touch(0o600)
        copy_sqlite(file, draft)
        sync(draft)
        draft.replace(copy)
        sync(copy.parent)
    finally:
        draft.unlink(missing_ok=True)
    logger.info("Copied the database to %s before its upgrade", copy)


def _recorded_version(file: Path) -> list[str]:
    with suppress(OSError, ValueError):
        words = Path(f"{file}{VERSION_SUFFIX}").read_text().split()
        if len(words) == 2:
            return words
    return ["", ""]


def _record_version(file: Path) -> None:
    """Record which version fits the schema; on a full disk, nothing is recorded."""
    version = [__version__, head()]
    if _recorded_version(file) != version:
        path = Path(f"{file}{VERSION_SUFFIX}")
        with suppress(OSError):
            path.touch(0o600)
            path.write_text(f"{' '.join(version)}\n")


def _begin_sqlite(connection: Connection) -> None:
    connection.rollback()
    driver: Any = connection.connection.dbapi_connection
    prepare_sqlite_connection(driver)
    driver.execute(f"PRAGMA busy_timeout = {MIGRATION_SECONDS * 1000}")
    # A migration may rebuild a table. With foreign keys on, dropping the old table would delete the
    # rows that refer to it.
    driver.execute("PRAGMA foreign_keys = OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class _StepLog:
    """Logs each migration after it has run; for a new database, only the last migration."""

    def __init__(self, is_new: bool) -> None:
        self._is_new = is_new
        self._began = time.monotonic()

    def __call__(self, step: Any, **_: Any) -> None:
        revision, now = step.up_revision_id, time.monotonic()
        if not self._is_new:
            seconds = now - self._began
            logger.info("Migrated the database to revision %s in %.1f s", revision, seconds)
        elif revision == head():
            logger.info("Created the database at revision %s", revision)
        self._began = now


def _run(connection: Connection, target: str, step_log: _StepLog) -> None:
    # Imported only for a migration, since the import of Alembic takes a fifth of the service's
    # start time.
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Alembic treats a single % as a reference to another option.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    # All migrations run in one transaction, so that either all of them take effect or none.
    config.attributes["connection"] = connection
    config.attributes["step_log"] = step_log
    command.upgrade(config, target)
    if target == "head":
        name_index.ensure(connection)
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise DatabaseError(f"A migration left invalid foreign keys in table {broken[0][0]}")


@cache
def _revisions() -> list[str]:
    """The revisions that this code knows, oldest first: the numbers of the migration files."""
    return sorted(path.name[:4] for path in (FOLDER / "versions").glob("[0-9]*.py"))


def _check_file(path: Path, may_create: bool) -> None:
    """Create a missing SQLite file; raises DatabaseError if a file is not an SQLite database."""
    try:
        if not may_create and not path.exists():
            raise NoDatabase(path)
        make_folder(path.parent)
        # The file contains secrets, so only its owner may read it. SQLite creates the write-ahead
        # log and its index with the same mode.
        path.touch(mode=0o600)
        with open_regular(path) as file:
            magic = file.read(16)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from None
    if magic and magic != b"SQLite format 3\0":
        raise DatabaseError(f"{path} is not an SQLite database")
