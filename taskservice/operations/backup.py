"""Makes verified backups of the SQLite database, and restores them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from sqlalchemy import create_engine, pool
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from taskservice.database import clock, files, migrations
from taskservice.database.engine import BUSY_SECONDS, sqlite3
from taskservice.database.migrations import DatabaseError
from taskservice.database.sqlite_copy import copy_sqlite
from taskservice.database.writer_queue import WriterQueue
from taskservice.operations import database_check

# The number of SQLite instructions in a step of a check. A signal, such as Ctrl+C, is handled after
# the current step.
STEP_INSTRUCTIONS = 100_000


class BackupError(DatabaseError):
    """A backup or restore failed; the message is one line for the operator."""


@contextmanager
def _one_line_errors(deed: str, database: Path) -> Iterator[None]:
    try:
        yield
    except BackupError:
        raise
    except (OSError, sqlite3.Error, DBAPIError, DatabaseError) as error:
        raise BackupError(f"The {deed} failed: {migrations.reason(error, database)}") from None


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """Create an empty file, readable by its owner only, next to the target.

    The file is removed at the end unless it was renamed.
    """
    descriptor, name = mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _verified(file: Path) -> str:
    """Check a database file that no program is changing, and return its revision.

    Raises DatabaseError if the file is damaged.
    """

    def connect() -> Any:
        # With `immutable=1`, SQLite creates no files next to the database.
        connection = sqlite3.connect(files.sqlite_uri(file, "mode=ro&immutable=1"), uri=True)
        # Python handles signals when SQLite calls this function after each step.
        connection.set_progress_handler(lambda: 0, STEP_INSTRUCTIONS)
        return connection

    engine = create_engine("sqlite://", module=sqlite3, creator=connect, poolclass=pool.NullPool)
    with engine.connect() as connection:
        if problems := database_check.integrity_problems(connection):
            raise DatabaseError(problems[0])
        revision = migrations.revision(connection)
        if revision is None:
            raise DatabaseError("The database is empty")
        return revision


# The suffixes of the database file, of the files that SQLite adds, and of those that we add.
OWN_SUFFIXES = ("", "-wal", "-shm", "-journal", "-writers", "-version", "-reserve")


def backup(database: Path, secret_key: Path, target: Path, replace: bool = False) -> str:
    """Copy an SQLite database to `target`, readable by its owner only; returns the revision.

    The copy contains everything that was committed before the call, and does not block writers. The
    file is renamed to `target` only when it is complete, checked, and synced to the disk. If
    BackupError is raised, `target` is unchanged.
    """
    with _one_line_errors("backup", database):
        # If the target is a symbolic link, the file that it points to is replaced.
        target = Path(os.path.realpath(target))
        _check(database, secret_key, target, replace)
        with _draft_of(target) as draft:
            copy_sqlite(database, draft)
            revision = _verified(draft)
            files.sync(draft)
            draft.replace(target)
            files.sync(target.parent)
    return revision


def _check(database: Path, secret_key: Path, target: Path, replace: bool) -> None:
    if not database.exists():
        raise BackupError(f"There is no database at {database}")
    if target.is_dir():
        raise BackupError(f"{target} is a directory; give the path of a file")
    own_files = [secret_key, *(Path(f"{database}{suffix}") for suffix in OWN_SUFFIXES)]
    if target in [Path(os.path.realpath(file)) for file in own_files]:
        raise BackupError(f"{target} belongs to the database itself")
    for file in (database, target):
        if file.exists() and not file.is_file():
            raise BackupError(f"{file} is not a regular file")
    if target.exists() and not replace:
        raise BackupError(f"{target} exists; --force replaces it")


# The suffixes of the logs that SQLite applies when it opens a database.
_LOGS = ("-wal", "-journal")


def restore(
    address: URL, backup: Path, replace: bool = False, migrates: bool = True
) -> Path | None:
    """Replace the database with a backup of any released revision; with `migrates`, migrate it.

    After an interruption, the database is either the complete old one or the complete new one.
    Returns the path at which the old database is saved, or None if there was none. Raises
    BackupError, and changes nothing, if the backup is damaged, if the database is in use, or if the
    database exists and `replace` is false.
    """
    # If the database is a symbolic link, the file that it points to is replaced.
    database = Path(os.path.realpath(address.database or ""))
    with _one_line_errors("restore", database):
        files.make_folder(database.parent)
        _check_restore(database, backup, replace)
        with _draft_of(database) as draft:
            _copy_verified(backup, draft)
            # A new process waits for this lock before it opens the database.
            with WriterQueue(address.database).turn(BUSY_SECONDS), _closed(database):
                replaced = _keep_aside(database)
                draft.replace(database)
                files.sync(database.parent)
        if migrates:
            # The backup is the copy before the upgrade.
            migrations.upgrade(address, makes_copy=False)
    return replaced


def _check_restore(database: Path, backup: Path, replace: bool) -> None:
    if not backup.exists():
        raise BackupError(f"There is no backup at {backup}")
    for file in _existing_files(database):
        if file.exists() and backup.samefile(file):
            raise BackupError(f"{backup} belongs to the database itself")
        if not file.is_file():
            raise BackupError(f"{file} is not a regular file")
        # An empty file is always replaced: a command that failed on a full disk may have created
        # it.
        if not replace and file.stat().st_size:
            raise BackupError(f"{file} exists; --force replaces it and saves the old one")


def _existing_files(database: Path) -> list[Path]:
    """The database file and its logs, if they exist."""
    named = [Path(f"{database}{suffix}") for suffix in ("", *_LOGS)]
    return [file for file in named if os.path.lexists(file)]


def _copy_verified(backup: Path, draft: Path) -> None:
    for log in _existing_files(backup)[1:]:
        if log.stat().st_size:
            raise BackupError(
                f"{log} belongs to {backup}, which is a live database, not a backup; "
                "`taskservice db backup` makes a backup of it"
            )
    with files.open_regular(backup) as source, open(draft, "wb") as copy:
        shutil.copyfileobj(source, copy, 1024 * 1024)
    _verified(draft)
    files.sync(draft)


def copy_before_upgrade(database: Path) -> Path:
    """The copy that the last upgrade of the schema made; raises BackupError if there is none."""
    folder = Path(os.path.realpath(database)).parent
    copies = list(folder.glob(migrations.COPY_NAME.format("*")))
    if not copies:
        raise BackupError(f"There is no copy from before an upgrade in {folder}")
    return max(copies, key=lambda copy: copy.stat().st_mtime)


_IN_USE = "is open in another process; stop the service and every other command first"


@contextmanager
def _closed(database: Path) -> Iterator[None]:
    """Lock out all other processes; raises BackupError if the database is in use."""
    if not database.exists():
        yield
        return
    # Unlike a lock of SQLite, this check also works for a damaged file.
    if files.is_open_elsewhere(database):
        raise BackupError(f"{database} {_IN_USE}")
    with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
        connection.isolation_level = None
        try:
            # Move the contents of the write-ahead log into the database file, and lock the file.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise BackupError(f"{database} {_IN_USE}") from None
        except sqlite3.DatabaseError:
            pass  # A damaged database is saved unchanged, together with its log.
        yield


def _keep_aside(database: Path) -> Path | None:
    """Save the old database and its logs under other names, with hard links; returns its new path.

    The original names of the logs are removed, since SQLite would apply an old log to the new
    database. The database file has both names until it is replaced.
    """
    aside = Path(f"{database}.replaced-{clock.now().replace(':', '')}")
    existing = _existing_files(database)
    for file in existing:
        os.link(file, f"{aside}{str(file).removeprefix(str(database))}")
    files.sync(database.parent)
    for suffix in (*_LOGS, "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    files.sync(database.parent)
    return aside if existing else None
