"""Files of SQLite that get their name only when they are complete, checked, and on the disk."""

import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, pool, text

from taskservice.database import connections, migrations
from taskservice.database.engine import sqlite3
from taskservice.database.migrations import DatabaseError
from taskservice.operations import database_check

# The size of the steps between which a check can be interrupted.
STEP_INSTRUCTIONS = 100_000


@dataclass(frozen=True)
class Contents:
    """What a sound database has."""

    revision: str
    tasks: int


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
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
        # Another command removed it as stale before it was locked.
        os.close(descriptor)


def _remove_stale_drafts(target: Path) -> None:
    """Remove what killed commands left: it contains the same secrets as the database."""
    for draft in target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError):  # it is in use, or belongs to another user
            descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink()
            finally:
                os.close(descriptor)


def verified(file: Path) -> Contents:
    """Check a file that nobody changes; raises DatabaseError if it is not sound."""

    def connect() -> Any:
        # Immutable, so that SQLite creates no files beside it.
        connection = sqlite3.connect(connections.uri(file, connections.IMMUTABLE), uri=True)
        # Lets Python handle signals during the check.
        connection.set_progress_handler(lambda: 0, STEP_INSTRUCTIONS)
        return connection

    engine = create_engine("sqlite://", module=sqlite3, creator=connect, poolclass=pool.NullPool)
    with engine.connect() as connection:
        problems = database_check.integrity_problems(connection)
        if problems:
            raise DatabaseError(problems[0])
        revision = migrations.revision(connection)
        if revision is None:
            raise DatabaseError("The database is empty")
        return Contents(revision, connection.scalar(text("SELECT count(*) FROM tasks")) or 0)
