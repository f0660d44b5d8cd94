"""Creates files and directories that only their owner can read, and locks and syncs them."""

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

# SQLite creates a file of this size next to a database, the index of the write-ahead log.
FULL_DISK_BYTES = 32 * 1024
LOCK_SECONDS = 10.0
# The byte range that each connection to a database in WAL mode locks, as SQLite documents it.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


def keep_owner_permissions() -> None:
    """Give the owner access to all files that this process creates, whatever the umask."""
    os.umask(os.umask(0) & 0o077)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; raises OSError for a device, directory or pipe, which could block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return open(path, "rb")


def lock(path: Path | str, seconds: float, flags: int = os.O_RDONLY) -> int:
    """Lock a file between processes; returns a descriptor. Raises OSError and TimeoutError."""
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
    """Hold a lock between processes on this directory; raises OSError after LOCK_SECONDS."""
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
    """A text to append to an SQLite error if the disk is full; SQLite may report an I/O error."""
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < FULL_DISK_BYTES:
            return "; its disk is full"
    return ""


def is_open_elsewhere(database: Path) -> bool:
    """Whether another process uses this SQLite database, even if the database is damaged."""
    # This process must not have the database open, since closing the file drops the locks.
    descriptor = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# A file in DATA, which is touched after each backup.
LAST_BACKUP = "last_backup"


def last_backup(data: Path) -> os.stat_result | None:
    """The status of the file LAST_BACKUP, or None if no backup was attempted.

    Its `st_mtime` is the time of the last backup, or 0 if no backup has succeeded.
    """
    try:
        return (data / LAST_BACKUP).stat()
    except OSError:
        return None


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a directory, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sqlite_uri(path: Path, options: str = "mode=rw") -> str:
    """SQLite's URI of a database; by default, the file must exist, and is not created."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"


# How long reads rely on the last check. A check takes twice as long as reading a key.
RECENT_SECONDS = 0.02


class DatabaseFiles:
    """The database, its write-ahead log, and the index of the log, which this process has open.

    It detects that the files were replaced or removed. A connection would still write to the files
    that it has opened, and the next start would not find these writes.
    """

    # One connection remains open after the first use. Otherwise, SQLite would remove the log when
    # the last connection closes. While the files are open, their inode numbers are not reused.

    def __init__(self, path: str, connect: Callable[[], Any]) -> None:
        self._paths = (path, f"{path}-wal", f"{path}-shm")
        self._connect = connect
        self._lock = threading.Lock()
        self._kept: Any = None
        self._opened: list[tuple[int, int] | None] = []
        self._is_saved = False
        self._recent_until = 0.0

    def keep_open(self) -> None:
        """Open the files, before any connection opens the database. Raises like `check`."""
        with self._lock:
            if self._kept is None:
                self._kept = self._connect()
                # The first query opens or creates the other two files.
                self._kept.execute("SELECT count(*) FROM sqlite_master").fetchone()
                self._opened = self._named()
        self.check()

    def check(self, _connection: object = None) -> bool:
        """Return true, or raise OperationalError if a path no longer leads to the open file."""
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
        """Like `check`, but for reads, which need only a check in the last RECENT_SECONDS."""
        now = time.monotonic()
        if now >= self._recent_until:
            self.check()
            self._recent_until = now + RECENT_SECONDS
        return True

    def data_version(self) -> int:
        """A number that changes with each commit of any connection in any process."""
        with self._lock:
            try:
                version: int = self._kept.execute("PRAGMA data_version").fetchone()[0]
            except self._kept.Error as error:
                raise OperationalError("PRAGMA data_version", None, error) from error
            return version

    def close(self) -> None:
        """Close the files, after all other connections of this process are closed."""
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _named(self) -> list[tuple[int, int] | None]:
        return [_identity(path) for path in self._paths]

    def _save(self, named: list[tuple[int, int] | None]) -> None:
        """Save the writes in a removed log, unless another program may have started a new log."""
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
