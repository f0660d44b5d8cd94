"""Lines that wait on the disk to be sent, so that they survive the process that wrote them."""

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path

from taskservice.client.sender import LONGEST_STORED, Batch, LineQueue, line_count, note, now, timed
from taskservice.runner.files import open_file
from taskservice.terms import MAX_LOG

# A log holds no more than this.
MAX_BYTES = MAX_LOG
# The limit of lines in memory, if nothing can be written to the disk.
MAX_MEMORY_BYTES = 4 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
# In the file `place`: how many bytes of `lines` are confirmed, the number of the next line, the
# bytes that were sent, and how many lines were lost after those on the disk.
_PLACE = struct.Struct("<4Q")
# For an unknown place: the service refuses this number and answers with the right one.
_UNKNOWN_SEQ = 1 << 52


class Spool(LineQueue):
    """A LineQueue in a file, which is emptied when all of its lines are confirmed.

    Each line is in the file before `put` returns, so it survives the end of this process. The
    file is not synced for each line, so a power failure can take the lines of the last seconds.
    Over MAX_BYTES, or on a full disk, lines wait in memory. Those that find no space there either
    are dropped, and a note in the log says how many. Without a folder all lines are in memory.
    """

    def __init__(
        self, folder: Path | None, on_full: Callable[[OSError], None] = lambda error: None
    ) -> None:
        """Take over the lines that another process left in the folder. Raises OSError."""
        super().__init__()
        self._on_full = on_full
        self._file = self._place = -1
        # Where the lines in the file that are not confirmed begin and end.
        self._start = self._end = 0
        self.sent_bytes = 0
        self._lost = 0  # lines that found no space; the log has no note of them yet
        if folder is None:
            return
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._close_files)
            self._place = open_file(folder / "place", os.O_RDWR | os.O_CREAT)
            self._file = open_file(folder / "lines", os.O_RDWR | os.O_CREAT)
            self._resume()
            # While there is space: without it a later process could not resume.
            self._write_place()
            on_error.pop_all()

    def _resume(self) -> None:
        last = max(os.fstat(self._file).st_size - LONGEST_STORED, 0)
        # A line that its process could not finish is dropped.
        self._end = last + os.pread(self._file, LONGEST_STORED, last).rfind(b"\n") + 1
        place = os.pread(self._place, _PLACE.size, 0)
        if len(place) == _PLACE.size:
            self._start, self._seq, self.sent_bytes, self._lost = _PLACE.unpack(place)
        elif self._end:
            self._seq = _UNKNOWN_SEQ
        self._start = min(self._start, self._end)
        self._note_lost()

    def _store(self, text: bytes, at: int) -> None:
        left_out = f"{line_count(self._lost)} left out here: there was no space"
        stored = timed((note(left_out) if self._lost else b"") + text, at)
        if self._store_on_disk(stored):
            self._lost = 0
        elif len(self._memory) + len(stored) <= MAX_MEMORY_BYTES:
            self._memory += stored
            self._lost = 0
        else:
            self._lost += text.count(b"\n")

    def _store_on_disk(self, stored: bytes) -> bool:
        """Write whole lines behind the others; whether there was space."""
        is_full = self._end - self._start + len(stored) > MAX_BYTES
        # Lines in memory are sent first, to keep the order.
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
        # If it can't be written, lines are sent again later, and the service skips them.
        with contextlib.suppress(OSError):
            self._write_place()
            if self._end and self._start == self._end:
                # After the place: of an empty file nothing counts as confirmed.
                self._empty_file()
                self._write_place()

    def _clear(self) -> None:
        super()._clear()
        self._lost = 0
        if self._file >= 0:
            self._empty_file()

    def _empty_file(self) -> None:
        os.ftruncate(self._file, 0)
        self._start = self._end = 0

    def _write_place(self) -> None:
        """Raises OSError. Always of the same size, so that overwriting it needs no free space."""
        if self._place >= 0:
            place = _PLACE.pack(self._start, self._seq, self.sent_bytes, self._lost)
            _write(self._place, 0, place)

    def _count(self) -> int:
        lines = super()._count()
        for start in range(self._start, self._end, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, self._end - start)
            lines += os.pread(self._file, size, start).count(b"\n")
        return lines

    def close(self) -> tuple[int, int]:
        """Sync what waits to the disk and close the files.

        Returns how many lines wait there, and how many are lost.
        """
        with self._lock:
            self._is_open = False
            in_memory = bytes(self._memory)
            self._memory.clear()
            # In case the disk has space again; if not, `place` says how many are lost.
            if not self._store_on_disk(in_memory):
                self._lost += in_memory.count(b"\n")
            lines = self._count()
            with contextlib.suppress(OSError):  # the lines are written, only not synced
                self._write_place()
                if lines:
                    os.fsync(self._file)
            self._close_files()
            return lines, self._lost

    def _close_files(self) -> None:
        for file in {self._file, self._place} - {-1}:
            os.close(file)
        self._file = self._place = -1
        self._start = self._end = 0


def _write(file: int, start: int, text: bytes) -> None:
    """Write all of the text at this place. Raises OSError, also where a part found space."""
    if os.pwrite(file, text, start) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
