"""Stores waiting lines on the disk, so that they survive the process that wrote them."""

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from taskservice.client.sender import LONGEST_STORED, Batch, LineQueue, note, now, timed
from taskservice.quantities import plural
from taskservice.runner.saved_run import open_file
from taskservice.terms import MAX_LOG

# A log cannot contain more.
MAX_BYTES = MAX_LOG
# Maximum size of the lines in memory, if nothing can be written to the disk.
MAX_MEMORY_BYTES = 4 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
# In the file `position`: the confirmed bytes of `lines`, the number of the next line, the sent
# bytes, and the number of lines that were lost after the lines on the disk.
_POSITION = struct.Struct("<4Q")
# For an unknown position: the service refuses this number and returns the right one.
_UNKNOWN_SEQ = 1 << 52


class Spool(LineQueue):
    """A LineQueue in a file, which is emptied when all of its lines are confirmed.

    Each line is in the file before `put` returns, so it survives the end of this process. The
    file is not synced for each line, so a power failure can lose the lines of the last seconds.
    Over MAX_BYTES, or on a full disk, lines wait in memory. If memory is full too, lines are
    dropped, and a marker in the log contains their number. Without a folder all lines are in
    memory.
    """

    def __init__(
        self, folder: Path | None, on_full: Callable[[OSError], None] = lambda error: None
    ) -> None:
        """Resume with the lines of another process in the folder. Raises OSError."""
        super().__init__()
        self._on_full = on_full
        self._file = self._position = -1
        # The start and the end of the unconfirmed lines in the file.
        self._start = self._end = 0
        self.sent_bytes = 0
        self._lost = 0  # lines without space, of which the log contains no marker yet
        if folder is None:
            return
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._close_files)
            self._position = open_file(folder / "position", os.O_RDWR | os.O_CREAT)
            self._file = open_file(folder / "lines", os.O_RDWR | os.O_CREAT)
            self._resume()
            # Now, while there is space: without it a later process could not resume.
            self._write_position()
            on_error.pop_all()

    def _resume(self) -> None:
        last = max(os.fstat(self._file).st_size - LONGEST_STORED, 0)
        # An unfinished line is dropped.
        self._end = last + os.pread(self._file, LONGEST_STORED, last).rfind(b"\n") + 1
        position = os.pread(self._position, _POSITION.size, 0)
        if len(position) == _POSITION.size:
            self._start, self._seq, self.sent_bytes, self._lost = _POSITION.unpack(position)
        elif self._end:
            self._seq = _UNKNOWN_SEQ
        self._start = min(self._start, self._end)
        self._note_lost()

    def _store(self, text: bytes, at: int) -> None:
        left_out = f"{plural(self._lost, 'line')} left out here: there was no space"
        stored = timed((note(left_out) if self._lost else b"") + text, at)
        if self._store_on_disk(stored):
            self._lost = 0
        elif len(self._memory) + len(stored) <= MAX_MEMORY_BYTES:
            self._memory += stored
            self._lost = 0
        else:
            self._lost += text.count(b"\n")

    def _store_on_disk(self, stored: bytes) -> bool:
        """Append whole lines; returns whether there was space."""
        is_full = self._end - self._start + len(stored) > MAX_BYTES
        # Lines in memory are sent first, so the order stays.
        if self._file < 0 or self._memory or is_full:
            return False
        try:
            _write(self._file, self._end, stored)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            self._on_full(error)
            return False
        self._end += len(stored)
        return True

    def _note_lost(self) -> None:
        if self._lost:
            self._store(b"", now())

    def _read(self, max_bytes: int) -> bytes:
        size = min(max_bytes, self._end - self._start)
        text = os.pread(self._file, size, self._start) if size else b""
        return text + super()._read(max_bytes - size)

    def _remove(self, batch: Batch) -> None:
        from_disk = min(batch.stored_bytes, self._end - self._start)
        self._start += from_disk
        del self._memory[: batch.stored_bytes - from_disk]
        self.sent_bytes += batch.size
        self._note_lost()
        # If the position can't be written, lines are sent again later, and the service skips them.
        with contextlib.suppress(OSError):
            self._write_position()
            if self._end and self._start == self._end:
                # After the position: of an empty file nothing counts as confirmed.
                self._empty_file()
                self._write_position()

    def _clear(self) -> None:
        super()._clear()
        self._lost = 0
        if self._file >= 0:
            self._empty_file()

    def _empty_file(self) -> None:
        os.ftruncate(self._file, 0)
        self._start = self._end = 0

    def _write_position(self) -> None:
        """Raises OSError. The size is always the same, so overwriting needs no free space."""
        if self._position >= 0:
            position = _POSITION.pack(self._start, self._seq, self.sent_bytes, self._lost)
            _write(self._position, 0, position)

    def _count(self) -> int:
        lines = super()._count()
        for start in range(self._start, self._end, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, self._end - start)
            lines += os.pread(self._file, size, start).count(b"\n")
        return lines

    def close(self) -> tuple[int, int]:
        """Sync the waiting lines to the disk and close the files.

        Returns the number of lines on the disk, and of lost lines.
        """
        with self._lock:
            self._is_open = False
            in_memory = bytes(self._memory)
            self._memory.clear()
            # The disk may have space again; if not, `position` contains how many are lost.
            if not self._store_on_disk(in_memory):
                self._lost += in_memory.count(b"\n")
            lines = self._count()
            with contextlib.suppress(OSError):  # the lines are written, but not synced
                self._write_position()
                if lines:
                    os.fsync(self._file)
            self._close_files()
            return lines, self._lost

    def _close_files(self) -> None:
        for file in {self._file, self._position} - {-1}:
            os.close(file)
        self._file = self._position = -1
        self._start = self._end = 0


def _write(file: int, start: int, text: bytes) -> None:
    """Write all of the text at this position. Raises OSError, even if a part was written."""
    if os.pwrite(file, text, start) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
