"""Makes a verified copy of the SQLite database while the service writes to it."""

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, pool
from sqlalchemy.exc import DBAPIError

from taskservice.database import migrations, read_only
from taskservice.database.engine import sqlite3
from taskservice.database.files import full_disk, sync
from taskservice.database.migrations import DatabaseError
from taskservice.operations import database_check

# The size of the steps between which a backup can be interrupted.
STEP_PAGES = 1_000
STEP_INSTRUCTIONS = 100_000


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
        read_only.check_readable(database)
        with _draft(target) as draft:
            _copy(database, draft)
            revision = _verified(draft)
            sync(draft)
            draft.replace(target)
            sync(target.parent)
    except (OSError, sqlite3.Error, DBAPIError) as error:
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


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """An empty file beside the target, removed at the end unless it was renamed."""
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
    """Create and lock the file; while its descriptor is open, the draft is not stale."""
    while True:
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        # Another backup removed it as stale before it was locked.
        os.close(descriptor)


def _remove_stale_drafts(target: Path) -> None:
    """Remove what killed backups left: it contains the same secrets as the database."""
    for draft in target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError):  # it is in use, or belongs to another user
            descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def _copy(database: Path, draft: Path) -> None:
    with (
        closing(sqlite3.connect(read_only.uri(database), uri=True)) as source,
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


def _verified(draft: Path) -> str:
    """Check a copy and return its revision; raises BackupError if it is not sound."""

    def connect() -> Any:
        # Immutable, so that SQLite creates no files beside it.
        connection = sqlite3.connect(read_only.uri(draft, read_only.IMMUTABLE), uri=True)
        # Lets Python handle signals during the check.
        connection.set_progress_handler(lambda: 0, STEP_INSTRUCTIONS)
        return connection

    engine = create_engine("sqlite://", module=sqlite3, creator=connect, poolclass=pool.NullPool)
    with engine.connect() as connection:
        problems = database_check.integrity_problems(connection)
        if problems:
            raise BackupError(f"The backup failed: {problems[0]}")
        try:
            revision = migrations.revision(connection)
        except DatabaseError as error:
            raise BackupError(str(error)) from None
    if revision is None:
        raise BackupError("The database is empty")
    return revision
