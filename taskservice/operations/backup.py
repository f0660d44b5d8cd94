"""Makes a verified copy of the SQLite database while the service writes to it."""

import os
from contextlib import closing
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from taskservice.database import connections
from taskservice.database.engine import sqlite3
from taskservice.database.files import full_disk, sync
from taskservice.database.migrations import DatabaseError
from taskservice.operations import database_check
from taskservice.operations.verified_file import draft_of, verified

# The size of the steps between which a backup can be interrupted.
STEP_PAGES = 1_000

# The database, what SQLite and the writers' queue have beside it, and what SQLite had before.
OWN_SUFFIXES = ("", "-wal", "-shm", "-journal", "-writers")


class BackupError(Exception):
    """The backup failed; the message is one line for the operator."""


def backup(database: Path, secret_key: Path, target: Path, replace: bool = False) -> str:
    """Copy an SQLite database to `target`, readable by its owner only; returns its revision.

    The copy contains all that was committed before the call, and no writer waits for it. The
    file gets its name only when it is complete, checked, and synced to the disk. Raises
    BackupError, with nothing changed.
    """
    try:
        # Where a symbolic link leads, the file is written, and the link stays.
        target = Path(os.path.realpath(target))
        _check(database, secret_key, target, replace)
        connections.check_readable(database)
        with draft_of(target) as draft:
            _copy(database, draft)
            revision = verified(draft).revision
            sync(draft)
            draft.replace(target)
            sync(target.parent)
    except (OSError, sqlite3.Error, DBAPIError, DatabaseError) as error:
        reason = database_check.reason(error) + full_disk(database)
        raise BackupError(f"The backup failed: {reason}") from None
    return revision


def _check(database: Path, secret_key: Path, target: Path, replace: bool) -> None:
    if not database.exists():
        raise BackupError(f"There is no database at {database}")
    if target.is_dir():
        raise BackupError(f"{target} is a folder; give the path of a file")
    own = [secret_key, *(Path(f"{database}{suffix}") for suffix in OWN_SUFFIXES)]
    if any(_is_same(target, file) for file in own):
        raise BackupError(f"{target} belongs to the database itself")
    for file in (database, target):
        if file.exists() and not file.is_file():
            raise BackupError(f"{file} is not a regular file")
    if target.exists() and not replace:
        raise BackupError(f"{target} exists; --force replaces it")


def _is_same(target: Path, file: Path) -> bool:
    """Whether both are one file, also one that is not there yet."""
    if target.exists() and file.exists():
        return target.samefile(file)
    return os.fspath(target) == os.path.realpath(file)


def _copy(database: Path, draft: Path) -> None:
    with (
        closing(sqlite3.connect(connections.uri(database), uri=True)) as source,
        closing(sqlite3.connect(draft)) as copy,
    ):
        source.isolation_level = None
        # Copy one snapshot: otherwise each write would restart the copy. Writers do not wait for
        # readers.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # The file is not used before it is complete.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=STEP_PAGES, progress=_after_step)


def _after_step(status: int, remaining: int, total: int) -> None:
    """Called between two steps, because Python handles signals then."""
