"""Makes files and folders that only their owner can read and that survive a power failure."""

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

# SQLite makes an index of this size beside a database.
FULL_DISK_BYTES = 32 * 1024
LOCK_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.02
# The bytes that each connection to a database in WAL mode keeps locked, by SQLite's file format.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510


def keep_owner_permissions() -> None:
    """Let the owner use all files that this process makes, whatever the umask was."""
    os.umask(os.umask(0) & 0o077)


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; raises OSError for a device, a folder and a pipe, which could block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return open(path, "rb")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock between processes on this folder; raises OSError after LOCK_SECONDS."""
    until = time.monotonic() + LOCK_SECONDS
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not _has_locked(descriptor):
            if time.monotonic() > until:
                raise TimeoutError(errno.ETIMEDOUT, f"another program keeps {folder} locked")
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, unless it exists."""
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder")
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(path.parent)


def full_disk(path: Path) -> str:
    """What to add to an error of SQLite, which calls a full disk an I/O error; else empty."""
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < FULL_DISK_BYTES:
            return "; its disk is full"
    return ""


def is_open_elsewhere(database: Path) -> bool:
    """Whether another process uses this SQLite database; also tells of a damaged one.

    This process must not have it open: closing the file drops its locks.
    """
    descriptor = os.open(database, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sqlite_uri(path: Path, options: str = "mode=rw") -> str:
    """SQLite's URI of a database; by default it must exist, while a plain path creates it."""
    return f"file:{quote(os.fsencode(path.absolute()))}?{options}"
