"""Creates private files and directories, locks and syncs them, and checks the database's files."""

import errno
import fcntl
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from sqlalchemy.exc import OperationalError

# The size of the index of the write-ahead log, which SQLite creates next to a database. A disk
# counts as full if its free space is below this size.
FULL_DISK_BYTES = 32 * 1024
LOCK_SECONDS = 10.0
# The byte range of the database file that each connection in WAL mode locks, see "The Lock-Byte
# Page" in https://www.sqlite.org/fileformat2.html.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


def keep_owner_permissions() -> None:
    """Clear the owner's bits of the umask, so that the owner can access all new files."""
    os.umask(os.umask(0) & 0o077)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises OSError for a pipe or device, which could block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return open(path, "rb")


def lock(path: Path | str, seconds: float, flags: int = os.O_RDONLY) -> int:
    """Lock a file against other processes; returns the open descriptor that holds the lock.

    Raises OSError, and TimeoutError after `seconds`.
    """
    until = time.monotonic() + seconds
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > until:
                    message = f"another program has locked {path}"
                    raise TimeoutError(errno.ETIMEDOUT, message) from None
                # flock itself has no timeout.
                time.sleep(0.001)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes; raises OSError after LOCK_SECONDS."""
    descriptor = lock(directory, LOCK_SECONDS, os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a directory that only its owner may enter, unless it exists."""
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory")
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(path.parent)


def full_disk(path: Path) -> str:
    """A suffix for an error message if the disk is full; SQLite may report this as an I/O error."""
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < FULL_DISK_BYTES:
            has_reserve = Path(f"{path}{RESERVE_SUFFIX}").exists()
            return "; its disk is full" + ("; run `taskservice prune`" if has_reserve else "")
    return ""


# A file next to an SQLite database, which the commands that delete data remove first: even to
# delete rows, SQLite needs space for its log.
RESERVE_SUFFIX = "-reserve"
RESERVE_BYTES = 8 * 1024 * 1024


def make_reserve(database: Path) -> None:
    """Create the reserve if it is missing and the disk has several times its size."""
    path = Path(f"{database}{RESERVE_SUFFIX}")
    if path.exists() or shutil.disk_usage(database.parent).free < 4 * RESERVE_BYTES:
        return
    path.touch(0o600)
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
    except OSError:
        path.unlink(missing_ok=True)


def free_reserve(database: Path) -> None:
    Path(f"{database}{RESERVE_SUFFIX}").unlink(missing_ok=True)


def is_open_elsewhere(database: Path) -> bool:
    """Whether another process has this SQLite database open; the database can be damaged."""
    # This process must not have the database open: closing the descriptor would release all locks
    # that the process holds on the file.
    descriptor = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# A file in the data directory; each backup sets its modification time.
LAST_BACKUP = "last_backup"


def last_backup(data: Path) -> os.stat_result | None:
    """The `stat` result of the file LAST_BACKUP, or None if no backup was attempted.

    `st_mtime` is the time of the last backup, or 0 if no backup has succeeded.
    """
    try:
        return (data / LAST_BACKUP).stat()
    except OSError:
        return None


def sync(path: Path) -> None:
    """Wait until a file, or the list of a directory's entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sqlite_uri(path: Path, options: str = "mode=rw") -> str:
    """The SQLite URI of a database; by default, SQLite does not create the file."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


# For this long after a check, reads do not check again, since a check takes twice as long as
# reading an API key.
RECENT_SECONDS = 0.02


class DatabaseFiles:
    """The files of an SQLite database: the database, its write-ahead log, and the log's index.

    This class detects that another program has replaced or removed a file. An open connection would
    still write to the old file, and these writes would be lost at the next start.
    """

    # `_kept` is a connection that remains open after the first use. Otherwise, SQLite would remove
    # the write-ahead log when the last connection closes. While the files are open, the file system
    # cannot reuse their inode numbers, which a check compares.

    def __init__(self, path: str, connect: Callable[[], Any]) -> None:
        self._paths = (path, f"{path}-wal", f"{path}-shm")
        self._connect = connect
        self._lock = threading.Lock()
        self._kept: Any = None
        self._opened: list[tuple[int, int] | None] = []
        self._is_saved = False
        self._recent_until = 0.0

    def keep_open(self) -> None:
        """Open the files, before any connection opens the database; raises OperationalError."""
        with self._lock:
            if self._kept is None:
                self._kept = self._connect()
                # The first query opens or creates the log and its index.
                self._kept.execute("SELECT count(*) FROM sqlite_master").fetchone()
                self._opened = self._named()
        self.check()

    def check(self, _connection: object = None) -> bool:
        """Return true, or raise OperationalError if a file was replaced or removed."""
        if self._kept is None:
            return True
        named = self._named()
        if named == self._opened:
            return True
        self._recent_until = 0.0
        self._save(named)
        wrong = [
            f"{path} was {'replaced' if now else 'removed'}"
            for path, now, opened in zip(self._paths, named, self._opened, strict=True)
            if now != opened
        ]
        error = RuntimeError(f"{', '.join(wrong)}; restart the service")
        raise OperationalError("stat", None, error)

    def check_recently(self, _connection: object) -> bool:
        """Call `check`, unless the last check was less than RECENT_SECONDS ago."""
        now = time.monotonic()
        if now >= self._recent_until:
            self.check()
            self._recent_until = now + RECENT_SECONDS
        return True

    def close(self) -> None:
        """Close the files, after all other connections of this process are closed."""
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _named(self) -> list[tuple[int, int] | None]:
        return [_identity(path) for path in self._paths]

    def _save(self, named: list[tuple[int, int] | None]) -> None:
        """Copy the writes of a removed log to the database, unless a new log may exist."""
        with self._lock:
            if self._is_saved or named != [self._opened[0], None, None] or self._kept is None:
                return
            self._is_saved = True
            with suppress(Exception):
                self._kept.execute("PRAGMA wal_checkpoint(FULL)").fetchone()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
