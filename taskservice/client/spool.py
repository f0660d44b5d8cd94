"""Stores the lines of a log, with their times, until they are sent to the service."""

import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

from taskservice.quantities import plural
from taskservice.terms import MAX_LINE, MAX_LOG, MAX_MESSAGE


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def rfc3339(milliseconds: int) -> str:
    """Format a time, in milliseconds since 1970, as RFC 3339."""
    time_of_line = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time_of_line.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# The lines of a log are valid UTF-8 and have a maximum length.

# A line of at most this size fits even if each of its bytes is replaced with U+FFFD, which has
# three bytes in UTF-8.
_ALWAYS_FITS = MAX_LINE // 3
_MARKER_BYTES = 100  # reserved for the marker at the end of a truncated line


def note(text: str) -> bytes:
    """A line that taskservice itself adds to a program's log, with a line feed."""
    return f"[taskservice: {text}]\n".encode()


def as_lines(text: str) -> bytes:
    """The lines of a text, each truncated to the limit; an empty text is one empty line."""
    data = text.encode(errors="replace")
    return b"".join([truncate_line(line) + b"\n" for line in data.removesuffix(b"\n").split(b"\n")])


def truncate_line(line: bytes, size: int | None = None) -> bytes:
    """Truncate a long line; `size` is the size of the whole line if `line` is only its start."""
    if size is None and len(line) <= _ALWAYS_FITS:
        return line
    text = line.decode(errors="replace").replace("\0", "\ufffd").encode()
    if size is None and len(text) <= MAX_LINE:
        return line
    marker = f"… [taskservice: truncated here, the line has {size or len(line):,} bytes]"
    return _truncate_utf8(text, MAX_LINE - _MARKER_BYTES) + marker.encode()


def truncate_message(text: str) -> str:
    """Truncate the text to the maximum size of an error message."""
    return (
        _truncate_utf8(text.encode(errors="replace"), MAX_MESSAGE).decode().replace("\0", "\ufffd")
    )


def _truncate_utf8(text: bytes, max_bytes: int) -> bytes:
    """The longest prefix of at most `max_bytes` that does not split a character."""
    return text[:max_bytes].decode(errors="ignore").encode()


_TIME_BYTES = 14  # each stored line begins with a time of 13 digits and a space
LONGEST_STORED = _TIME_BYTES + MAX_LINE + 1


def timed(text: bytes, at: int) -> bytes:
    """Convert lines to the format of the spool, in which each line begins with its time."""
    time_of_line = b"%013d " % at
    return time_of_line + text[:-1].replace(b"\n", b"\n" + time_of_line) + b"\n"


class Batch(NamedTuple):
    """Lines to send in one request; lines with the same time are joined into one text."""

    seq: int  # the number of the first line; each writer numbers its lines from 1
    lines: int
    stored_bytes: int  # the size of the lines in the spool
    texts: list[tuple[int, bytes]]

    @classmethod
    def of(cls, seq: int, stored: bytes) -> "Batch":
        lines = stored.split(b"\n")[:-1]
        texts = [
            (int(at), b"".join([line[_TIME_BYTES:] + b"\n" for line in same]))
            for at, same in groupby(lines, lambda line: line[:_TIME_BYTES])
        ]
        return cls(seq, len(lines), len(stored), texts)

    @property
    def size(self) -> int:
        """The size of the lines without their times, in bytes."""
        return self.stored_bytes - self.lines * _TIME_BYTES

    def json(self) -> dict[str, Any]:
        """The request fields that contain the batch."""
        # The times must not decrease, even if the clock was set back.
        times = accumulate((min(at, now()) for at, _ in self.texts), max)
        logs = [text.decode(errors="replace") for _, text in self.texts]
        return {"seq": self.seq, "logs": logs, "at": list(map(rfc3339, times))}


class InterruptSafeEvent:
    """Like threading.Event, but Ctrl-C can't leave it locked for other threads."""

    def __init__(self) -> None:
        self.is_set = False
        self._gate = threading.Lock()  # the lock is free while the event is set
        self._gate.acquire()

    def set(self) -> None:
        if not self.is_set:
            with suppress(RuntimeError):  # the gate is already unlocked
                self._gate.release()
            self.is_set = True

    def clear(self) -> None:
        self.is_set = False
        self._gate.acquire(blocking=False)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` until the event is set; return whether it is set."""
        if not self.is_set:
            self._gate.acquire(timeout=seconds)
        return self.is_set


MAX_SPOOL_BYTES = MAX_LOG
# Maximum size of the lines in memory, if the lines of a run can't be stored on disk.
MAX_MEMORY_BYTES = 4 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
# The file `position` contains four numbers: how many bytes of the file `lines` are confirmed, the
# number of the next line, how many bytes were sent, and how many lines were lost after the last
# line on the disk.
_POSITION = struct.Struct("<4Q")


class Spool:
    """Stores lines until they are sent, in a file or in memory.

    A line is in the file before `put` returns, so it survives the end of this process; a power
    failure can lose the lines of the last seconds. The file is emptied when all of its lines are
    confirmed. Without a directory or free disk space, lines are stored in memory. When the lines in
    memory exceed `max_memory` bytes, further lines are dropped, and a marker in the log contains
    the number of dropped lines.
    """

    def __init__(
        self,
        directory: Path | None,
        on_full: Callable[[OSError], None] = lambda error: None,
        max_memory: float = MAX_MEMORY_BYTES,
    ) -> None:
        """Resume with the lines that another process left in the directory. Raises OSError."""
        self.news = InterruptSafeEvent()  # set when the sender has something to do
        self.sent_bytes = 0
        self._seq = 1
        self._batch: Batch | None = None
        # Not a Condition, which Ctrl-C in a thread that adds lines could leave locked.
        self._lock = threading.RLock()
        self._is_open = True
        self._on_full, self._max_memory = on_full, max_memory
        self.memory = bytearray()
        self._file = self._position = -1
        # The start and the end of the unconfirmed lines in the file.
        self._start = self._end = 0
        self._lost = 0  # the number of lines dropped since the last marker
        if directory is None:
            return
        with ExitStack() as on_error:
            on_error.callback(self._close_files)
            self._position = open_file(directory / "position", os.O_RDWR | os.O_CREAT)
            self._file = open_file(directory / "lines", os.O_RDWR | os.O_CREAT)
            self._resume()
            # A later process needs the position to resume, so write it while the disk has space.
            self._write_position()
            on_error.pop_all()

    def put(self, text: bytes, at: int) -> None:
        """Add whole lines with the time `at`, in milliseconds since 1970."""
        with self._lock:
            if self._is_open and text:
                self._store(text, at)
        self.news.set()

    def peek(self, max_bytes: int) -> Batch | None:
        """Return the next lines: at most `max_bytes`, but at least one line.

        The same lines are returned until they are confirmed.
        """
        with self._lock:
            if self._batch is None or self._batch.size > max_bytes:
                stored = self._read(max(max_bytes, LONGEST_STORED))
                end = stored.rfind(b"\n", 0, max(max_bytes, 0)) + 1 or stored.find(b"\n") + 1
                self._batch = Batch.of(self._seq, stored[:end]) if end else None
            return self._batch

    def confirm(self, batch: Batch) -> None:
        """Remove the lines that `peek` returned last, which the service has stored."""
        with self._lock:
            if not self._is_open:
                return
            self._seq += batch.lines
            self.sent_bytes += batch.size
            self._batch = None
            from_disk = min(batch.stored_bytes, self._end - self._start)
            self._start += from_disk
            del self.memory[: batch.stored_bytes - from_disk]
            if self._lost:
                self._store(b"", now())
            # If the position can't be written, a later process sends these lines again, and the
            # service skips them.
            with suppress(OSError):
                self._write_position()
                if self._end and self._start == self._end:
                    # Empty the file only after the position is written, so that a later process
                    # always finds the right number of the next line.
                    self._empty_file()
                    self._write_position()

    def renumber(self, seq: int) -> None:
        """Set the number of the next line."""
        with self._lock:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        """Drop all lines, and all lines added later."""
        with self._lock:
            self._is_open, self._batch, self._lost = False, None, 0
            self.memory.clear()
            if self._file >= 0:
                self._empty_file()

    def count(self) -> int:
        with self._lock:
            lines = self.memory.count(b"\n")
            for start in range(self._start, self._end, _BLOCK_BYTES):
                size = min(_BLOCK_BYTES, self._end - start)
                lines += os.pread(self._file, size, start).count(b"\n")
            return lines

    def close(self) -> tuple[int, int]:
        """Sync the lines to the disk and close the files.

        Returns the numbers of stored lines and of lost lines.
        """
        with self._lock:
            self._is_open = False
            in_memory = bytes(self.memory)
            self.memory.clear()
            # The disk may have space now. If not, `position` stores the number of lost lines.
            if not self._store_on_disk(in_memory):
                self._lost += in_memory.count(b"\n")
            lines = self.count()
            with suppress(OSError):  # the lines remain in the file if the sync fails
                self._write_position()
                if lines:
                    os.fsync(self._file)
            self._close_files()
            return lines, self._lost

    def _resume(self) -> None:
        last = max(os.fstat(self._file).st_size - LONGEST_STORED, 0)
        # Drop an incomplete last line, which does not end with a line feed.
        self._end = last + os.pread(self._file, LONGEST_STORED, last).rfind(b"\n") + 1
        position = os.pread(self._position, _POSITION.size, 0)
        if len(position) == _POSITION.size:
            self._start, self._seq, self.sent_bytes, self._lost = _POSITION.unpack(position)
        elif self._end:
            self._seq = 1 << 52  # the service rejects this line number, and returns the next number
        self._start = min(self._start, self._end)
        if self._lost:
            self._store(b"", now())

    def _store(self, text: bytes, at: int) -> None:
        left_out = b""
        if self._lost:
            left_out = note(f"{plural(self._lost, 'line')} left out here: there was no space")
        stored = timed(left_out + text, at)
        if self._store_on_disk(stored):
            self._lost = 0
        elif len(self.memory) + len(stored) <= self._max_memory:
            self.memory += stored
            self._lost = 0
        else:
            self._lost += text.count(b"\n")

    def _store_on_disk(self, stored: bytes) -> bool:
        """Append whole lines; returns whether there was space."""
        # While lines are in memory, later lines are stored there too, to preserve the order.
        if self._file < 0 or self.memory:
            return False
        if self._end - self._start + len(stored) > MAX_SPOOL_BYTES:
            return False
        try:
            _write(self._file, self._end, stored)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            self._on_full(error)
            return False
        self._end += len(stored)
        return True

    def _read(self, max_bytes: int) -> bytes:
        size = min(max_bytes, self._end - self._start)
        text = os.pread(self._file, size, self._start) if size else b""
        return text + self.memory[: max_bytes - size]

    def _empty_file(self) -> None:
        os.ftruncate(self._file, 0)
        self._start = self._end = 0

    def _write_position(self) -> None:
        """Write the file `position`. Raises OSError.

        The size of the file never changes, so overwriting it needs no free space.
        """
        if self._position >= 0:
            position = _POSITION.pack(self._start, self._seq, self.sent_bytes, self._lost)
            _write(self._position, 0, position)

    def _close_files(self) -> None:
        for file in {self._file, self._position} - {-1}:
            os.close(file)
        self._file = self._position = -1
        self._start = self._end = 0


def _write(file: int, start: int, text: bytes) -> None:
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
