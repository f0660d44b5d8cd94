"""Opens the files and folders of a run; refuses links, devices and other special files."""

import contextlib
import errno
import os
import stat
import struct
from pathlib import Path

from taskservice.client import sender
from taskservice.client.sender import Times

# The errors of open for a symbolic link, and for a FIFO or socket without another end.
_NOT_REGULAR = (errno.ELOOP, errno.EMLINK, errno.ENXIO)


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a regular file, made with mode 0600 where `flags` have O_CREAT.

    Raises OSError, also for a symbolic link, a FIFO, a device or a folder, without waiting.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        raise _not_regular(path) if error.errno in _NOT_REGULAR else error from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_regular(path)
    return file


def read_file(path: Path, max_bytes: int) -> bytes:
    """The first `max_bytes` bytes of a regular file. Raises OSError."""
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(max_bytes)


def make_private(folder: Path) -> None:
    """Make a folder with its parents, or take this user's own; no other user may enter it then.

    Raises OSError if it belongs to another user or is no folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = _open_folder(folder)
    try:
        if os.fstat(opened).st_mode & 0o077:
            os.fchmod(opened, 0o700)
    finally:
        os.close(opened)


def check_private(folder: Path) -> None:
    """Raise OSError unless the folder is this user's and no other user may enter it."""
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


def _not_regular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "It is not a regular file", str(path))


# The times of the lines in a segment of the spool, a record for each change of the time.

# Where in the segment the lines begin, and their time in milliseconds since 1970.
_RECORD = struct.Struct("<IQ")
# More than the times of a segment take.
_MAX_BYTES = 4 * 1024 * 1024


class LineTimes:
    """In a file beside the segment, or in memory; one that can't be written is left out."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.size = 0
        self.last = sender.now()  # the time of the newest line
        self._first = self.last
        self._memory = bytearray()

    def add(self, start: int, at: int) -> None:
        """The lines from byte `start` of the segment on have the time `at`."""
        if self.size and at == self.last:
            return
        with contextlib.suppress(OSError):
            self._write(_RECORD.pack(start, at))
            self.last = at

    def _write(self, record: bytes) -> None:
        if self.path is None:
            self._memory += record
        else:
            # Open for a moment: this comes once a millisecond at most, and segments are many.
            file = open_file(self.path, os.O_WRONLY | os.O_CREAT)
            try:
                if os.pwrite(file, record, self.size) != len(record):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)
        self.size += len(record)

    def recover(self, written_at: int) -> None:
        """Read what a process that is gone left; without a file, all have the time `written_at`."""
        self.last = self._first = written_at
        records = self._records()
        self.size = len(records) * _RECORD.size
        if records:
            self.last = records[-1][1]

    def of(self, text: bytes, start: int) -> Times:
        """The times of the lines in `text`, which begins at byte `start` of the segment."""
        times = [(0, self._first)]
        for place, at in self._records():
            if place <= start:
                times[-1] = (0, at)
            # A damaged file must not divide a line.
            elif times[-1][0] < place - start < len(text) and text[place - start - 1] == ord("\n"):
                times.append((place - start, at))
        return times

    def _records(self) -> Times:
        data = bytes(self._memory)
        if self.path is not None:
            try:
                data = read_file(self.path, _MAX_BYTES)
            except OSError:
                return []
        return list(_RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]))

    def sync(self) -> None:
        if self.path is not None and self.size:
            file = open_file(self.path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def remove(self) -> None:
        self.size = 0
        self._memory.clear()
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
