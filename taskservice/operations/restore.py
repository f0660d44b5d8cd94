"""Puts a verified backup in the place of the SQLite database, while nothing uses it."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from taskservice.database import clock, migrations
from taskservice.database.engine import BUSY_SECONDS, sqlite3
from taskservice.database.files import full_disk, is_open_elsewhere, make_folder, open_regular, sync
from taskservice.database.migrations import DatabaseError
from taskservice.database.writer_queue import WriterQueue
from taskservice.operations import database_check
from taskservice.operations.verified_file import Contents, draft_of, verified

# What SQLite may need beside a database to read it, unlike its index of the log.
_LOGS = ("-wal", "-journal")
# The bytes of a journal's header that are zero when its transaction has ended.
_JOURNAL_HEADER = 28
_IN_USE = "is open in another process; stop the service and every other command first"


class RestoreError(Exception):
    """The restore failed; the message is one line for the operator."""


@dataclass(frozen=True)
class Restored:
    """What the restored database has, and where the replaced one is now."""

    contents: Contents
    replaced: Path | None


def restore(address: URL, backup: Path, replace: bool = False) -> Restored:
    """Put a backup of any released revision in the place of the database, and migrate it.

    At each moment the old or the new database is there, whole. Raises RestoreError, with nothing
    changed, if the backup is not sound, the database is in use, or it exists and `replace` is
    false.
    """
    # Where a symbolic link leads, the database is, and the link stays.
    database = Path(os.path.realpath(address.database or ""))
    try:
        make_folder(database.parent)
        _check(database, backup, replace)
        with draft_of(database) as draft:
            contents = _verified_copy(backup, draft)
            # Whoever starts waits for this turn before it opens the database.
            with WriterQueue.of(address).turn(BUSY_SECONDS), _closed(database):
                replaced = _keep_aside(database)
                draft.replace(database)
                sync(database.parent)
        migrations.upgrade(address)
    except (OSError, sqlite3.Error, DBAPIError, DatabaseError) as error:
        reason = database_check.reason(error) + full_disk(database)
        raise RestoreError(f"The restore failed: {reason}") from None
    return Restored(Contents(migrations.head(), contents.tasks), replaced)


def _check(database: Path, backup: Path, replace: bool) -> None:
    if not backup.exists():
        raise RestoreError(f"There is no backup at {backup}")
    for file in _there(database):
        if file.exists() and backup.samefile(file):
            raise RestoreError(f"{backup} belongs to the database itself")
        if not file.is_file():
            raise RestoreError(f"{file} is not a regular file")
        # On a full disk a command leaves an empty file.
        if not replace and file.stat().st_size:
            raise RestoreError(f"{file} exists; --force replaces it and keeps it aside")


def _there(database: Path) -> list[Path]:
    """The files of the database that exist, with the logs that SQLite would read."""
    files = [Path(f"{database}{suffix}") for suffix in ("", *_LOGS)]
    return [file for file in files if os.path.lexists(file) and not _is_ended_journal(file)]


def _is_ended_journal(file: Path) -> bool:
    """Whether SQLite has ended this journal's transaction by zeros in its header, not by deletion.

    So it does while it keeps a lock.
    """
    if not (file.name.endswith("-journal") and file.is_file()):
        return False
    with file.open("rb") as journal:
        return not any(journal.read(_JOURNAL_HEADER))


def _verified_copy(backup: Path, draft: Path) -> Contents:
    for log in _there(backup)[1:]:
        if log.stat().st_size:
            raise RestoreError(
                f"{log} belongs to {backup}, which is no backup but a database; "
                "`taskservice db backup` makes a backup of it"
            )
    with open_regular(backup) as source, open(draft, "wb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)
    contents = verified(draft)
    sync(draft)
    return contents


@contextmanager
def _closed(database: Path) -> Iterator[None]:
    """Hold the lock that keeps others out of the database; raises RestoreError if it is in use."""
    if not database.exists():
        yield
        return
    # Also of a damaged file, which SQLite cannot lock.
    if is_open_elsewhere(database):
        raise RestoreError(f"{database} {_IN_USE}")
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
        connection.isolation_level = None
        _fold_log(connection, database)
        yield


def _fold_log(connection: sqlite3.Connection, database: Path) -> None:
    """Write the log into the database, so that it is one file, and keep the lock on it."""
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise RestoreError(f"{database} {_IN_USE}") from None
        raise
    except sqlite3.DatabaseError:
        # It is damaged: it is kept as it is, with its log.
        return


def _keep_aside(database: Path) -> Path | None:
    """Give the files of the old database a second name, and take the log's own names away.

    The database itself keeps its name until the new one takes it. A log beside the new database
    would be taken for its own.
    """
    _remove_second_names(database)
    aside = Path(f"{database}.replaced-{clock.now().replace(':', '')}")
    there = _there(database)
    for file in there:
        os.link(file, f"{aside}{str(file).removeprefix(str(database))}")
    sync(database.parent)
    for suffix in (*_LOGS, "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    sync(database.parent)
    return aside if there else None


def _remove_second_names(database: Path) -> None:
    """Remove what a killed restore left: second names of the database that is still in use."""
    for file in database.parent.glob(f"{glob.escape(database.name)}.replaced-*"):
        with suppress(OSError):
            if file.samefile(database):
                file.unlink()
