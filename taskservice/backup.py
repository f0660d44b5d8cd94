"""A verified copy of the SQLite database, made while others write."""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, pool
from sqlalchemy.exc import DBAPIError

from taskservice import inspection, migrations
from taskservice.db import sqlite3
from taskservice.migrations import DatabaseError

# Between two steps the copying can be interrupted.
STEP_PAGES = 1_000


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
            _sync(draft)
            draft.replace(target)
            _sync(target.parent)
    except (OSError, sqlite3.Error, DBAPIError) as error:
        raise BackupError(f"There is no backup: {inspection.reason(error)}") from None
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
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


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
        source.backup(copy, pages=STEP_PAGES)


def _verified(draft: Path) -> str:
    """The revision of a copy that is sound; raises BackupError otherwise."""

    def connect() -> Any:
        # Nobody else has it open, so nothing is made beside it.
        return sqlite3.connect(_uri(draft, "mode=ro&immutable=1"), uri=True)

    engine = create_engine("sqlite://", module=sqlite3, creator=connect, poolclass=pool.NullPool)
    with engine.connect() as connection:
        problems = inspection.unsound(connection)
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
    return f"file:{quote(str(path.absolute()))}?{options}"


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
