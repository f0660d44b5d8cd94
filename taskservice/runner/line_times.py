"""The times of the lines in a segment of the spool, a record for each change of the time."""

import contextlib
import errno
import os
import struct
from pathlib import Path

from taskservice.client import sender
from taskservice.client.sender import Times
from taskservice.runner.files import open_file, read_file

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
