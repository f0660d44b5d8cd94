"""Opens the files and folders of a run; refuses links, devices and other special files."""

import errno
import os
import stat
from pathlib import Path


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a regular file, created with mode 0600 if `flags` contain O_CREAT.

    Raises OSError, also for a symbolic link, a FIFO, a device or a folder, without waiting.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "It is not a regular file", str(path))
    return file


def read_file(path: Path, max_bytes: int) -> bytes:
    """The first `max_bytes` bytes of a regular file. Raises OSError."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(max_bytes)


def make_private(folder: Path) -> None:
    """Create a folder with its parents, or use an existing one, and close it to other users.

    Raises OSError if it belongs to another user or is not a folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = _open_folder(folder)
    try:
        if os.fstat(opened).st_mode & 0o077:
            os.fchmod(opened, 0o700)
    finally:
        os.close(opened)


def check_private(folder: Path) -> None:
    """Raise OSError unless the folder belongs to this user and is closed to other users."""
    opened = _open_folder(folder)
    mode = os.fstat(opened).st_mode
    os.close(opened)
    if mode & 0o077:
        raise PermissionError(
            errno.EPERM, "Other users may enter it; its mode must be 0700", str(folder)
        )


def _open_folder(folder: Path) -> int:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(opened).st_uid == os.geteuid():
        return opened
    os.close(opened)
    raise PermissionError(errno.EPERM, "It belongs to another user", str(folder))
