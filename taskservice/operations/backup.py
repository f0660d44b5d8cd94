"""A verified copy of the SQLite database, made while others write."""

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, pool
from sqlalchemy.exc import DBAPIError

from taskservice.database import migrations
from taskservice.database.engine import sqlite3
from taskservice.database.files import sync
from taskservice.database.migrations import DatabaseError
from taskservice.operations import database_check

# Between two steps the copying and the checking can be interrupted.
STEP_PAGES = 1_000
STEP_INSTRUCTIONS = 100_000


class BackupError(Exception):
    """There is no backup; the message is one line for the operator."""


def backup(database: Path, target: Path, replace: bool = False) -> str:
    """Copy an SQLite database to `target`, which nobody but its owner may read.

    All that was committed before the call is in it. Nobody waits for it, and the file has
    its name only once it is whole, found sound, and on the disk. Returns its revision.
    Raises BackupError, with nothing changed.
    """
    _check(database, target, replace)
    try:
        with _draft(target) as draft:
            _copy(database, draft)
            revision = _verified(draft)
            sync(draft)
            draft.replace(target)
            sync(target.parent)
    except (OSError, sqlite3.Error, DBAPIError) as error:
        raise BackupError(f"There is no backup: {database_check.reason(error)}") from None
    return revision


def _check(database: Path, target: Path, replace: bool) -> None:
    if not database.exists():
        raise BackupError(f"There is no database at {database}")
    if target.is_dir():
        raise BackupError(f"{target} is a folder; name the file")
    if not target.exists():
        return
    if target.samefile(database):
        raise BackupError(f"{target} is the database itself")
    if not replace:
        raise BackupError(f"{target} exists; --force replaces it")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """An empty file beside the target, which is gone at the end unless it was renamed."""
    _remove_stale_drafts(target)
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = _create_locked(draft)
        try:
            yield draft
        finally:
            os.close(descriptor)
    finally:
        draft.unlink(missing_ok=True)


def _create_locked(draft: Path) -> int:
    """Make the file; its lock, held as long as this descriptor is open, says that we live."""
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system that knows no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        # Somebody took it for stale, before it was locked.
        os.close(descriptor)


def _remove_stale_drafts(target: Path) -> None:
    """What a killed backup left, which holds secrets as the database does."""
    for draft in target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError):  # somebody is at it, or it is another's
            descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def _copy(database: Path, draft: Path) -> None:
    with (
        closing(sqlite3.connect(_uri(database, "mode=rw"), uri=True)) as source,
        closing(sqlite3.connect(draft)) as copy,
    ):
        source.isolation_level = None
        # One state from the first page to the last; otherwise each write by anybody would
        # have the copying begin anew. Who writes does not wait for who reads.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # Nobody knows of this file before it is whole.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        # Between two steps Python looks whether a signal has come.
        source.backup(copy, pages=STEP_PAGES, progress=lambda *_: None)


def _verified(draft: Path) -> str:
    """The revision of a copy that is sound; raises BackupError otherwise."""

    def connect() -> Any:
        # Nobody else has it open, so nothing is made beside it.
        connection = sqlite3.connect(_uri(draft, "mode=ro&immutable=1"), uri=True)
        # So that a signal is noticed here too.
        connection.set_progress_handler(lambda: 0, STEP_INSTRUCTIONS)
        return connection

    engine = create_engine("sqlite://", module=sqlite3, creator=connect, poolclass=pool.NullPool)
    with engine.connect() as connection:
        problems = database_check.integrity_problems(connection)
        if problems:
            raise BackupError(f"There is no backup: {problems[0]}")
        try:
            revision = migrations.revision(connection)
        except DatabaseError as error:
            raise BackupError(str(error)) from None
    if revision is None:
        raise BackupError("The database is empty")
    return revision


def _uri(path: Path, options: str) -> str:
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"
