"""Stores the last lines of a log that is too long to be stored whole."""

import errno
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

SEGMENT_BYTES = 1024 * 1024  # the size of the files, of which the oldest is removed


class Tail:
    """The last lines, in files in `directory`/tail, which is renamed to `rest` by `release`.

    The name of a file contains the numbers of lines and of bytes that were added before it, so that
    a later process knows how many were dropped.
    """

    def __init__(self, directory: Path) -> None:
        self._tail, self._rest = directory / "tail", directory / "rest"
        self._lines_file = directory / "lines"
        # All lines that were added, and for each file the numbers in its name, oldest file first.
        self.lines = self._bytes = 0
        self._segments: deque[tuple[int, int]] = deque()
        self._file, self._size = -1, 0  # the newest file, if it is open

    def put(
        self, stored: bytes, lines: int, size: int, kept: int, on_full: Callable[[OSError], None]
    ) -> None:
        """Add lines of `size` bytes; drop the oldest lines, but not the last `kept` bytes."""
        while True:
            try:
                self._write(stored)
                break
            except OSError as error:
                on_full(error)
                self._close()
                if not self._segments:
                    break  # the lines count as dropped
                self._remove_oldest()
        self.lines, self._bytes = self.lines + lines, self._bytes + size
        while len(self._segments) > 1 and self._bytes - self._segments[1][1] >= kept:
            self._remove_oldest()

    def dropped(self) -> tuple[int, int]:
        """The numbers of lines and bytes that were dropped; zeros after `release`."""
        if self._rest.exists():
            return 0, 0
        oldest = next(iter(self.paths()), None)
        if oldest is None:
            return self.lines, self._bytes
        lines, size = oldest.name.split("-")
        return int(lines), int(size)

    def release(self) -> None:
        """End the adding of lines, so that `take` returns them."""
        self._close()
        if self._tail.exists() and not self._rest.exists():
            self._tail.rename(self._rest)

    def take(self) -> Path | None:
        """Move the oldest file to `directory`/lines; None if none is left."""
        return next((path.replace(self._lines_file) for path in self.paths()), None)

    def paths(self) -> list[Path]:
        """The files, oldest first."""
        folder = self._rest if self._rest.exists() else self._tail
        return sorted(folder.iterdir()) if folder.exists() else []

    def discard(self) -> None:
        self._close()
        for folder in (self._tail, self._rest):
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, segment: tuple[int, int]) -> Path:
        return self._tail / "{:016}-{:016}".format(*segment)

    def _write(self, stored: bytes) -> None:
        if self._file < 0 or self._size >= SEGMENT_BYTES:
            self._close()
            self._tail.mkdir(mode=0o700, exist_ok=True)
            segment = self.lines, self._bytes
            self._file = open_file(self._path(segment), os.O_RDWR | os.O_CREAT)
            if segment not in self._segments:
                self._segments.append(segment)
            self._size = 0
        try:
            write_at(self._file, self._size, stored)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(stored)

    def _remove_oldest(self) -> None:
        self._path(self._segments.popleft()).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def write_at(file: int, start: int, text: bytes) -> None:
    """Write the text at the position `start`. Raises OSError, possibly after a partial write."""
    if os.pwrite(file, text, start) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_file(path: Path, flags: int) -> int:
    """Open a regular file and return its descriptor. Raises OSError, even for links and FIFOs."""
    # Without O_NONBLOCK, opening a FIFO would block until another process opens it.
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def sync(paths: Iterable[Path]) -> None:
    for path in paths:
        file = open_file(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)
