"""Stores the lines of a log, with their times, until they are sent to the service."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from taskservice.client.log_tail import Tail, open_file, sync, write_at
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


_TIME_BYTES = 15  # a time is stored as NUL, 13 digits and a line feed
LONGEST_STORED = _TIME_BYTES + MAX_LINE + 1


def timed(text: bytes, at: int) -> bytes:
    """Convert lines to the format of the spool, in which a time precedes the lines printed then."""
    return b"\0%013d\n%b" % (at, text)


class Batch(NamedTuple):
    """Lines to send in one request; lines with the same time are joined into one text."""

    seq: int  # the number of the first line; each writer numbers its lines from 1
    lines: int
    size: int  # the size of the lines without their times, in bytes
    stored_bytes: int  # the size of the lines in the spool
    texts: list[tuple[int, bytes]]

    @classmethod
    def of(cls, seq: int, stored: bytes, at: int = 0) -> "Batch":
        """`at` is the time of the lines that are not preceded by a time."""
        first, *parts = stored.split(b"\0")
        texts = [(at, first), *((int(part[:13]), part[14:]) for part in parts)]
        texts = [(at, text) for at, text in texts if text]
        lines, size = sum(text.count(b"\n") for _, text in texts), sum(len(t) for _, t in texts)
        return cls(seq, lines, size, len(stored), texts)

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


# A log of more than MAX_LOG_BYTES is stored in part: the first HEAD_BYTES, which are sent as they
# are printed, and about the last TAIL_BYTES, which are sent when the program has ended.
MAX_LOG_BYTES = MAX_LOG - 64 * 1024  # leaves space for the notes
HEAD_BYTES = 50 * 1024 * 1024
TAIL_BYTES = 40 * 1024 * 1024
# The interval of the notes that are sent while the program prints the rest. Without a new line for
# ten minutes, a task can count as hanging.
NOTE_SECONDS = 300
# Maximum size of the lines in memory, if the lines of a run can't be stored on disk.
MAX_MEMORY_BYTES = 4 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
# The file `position` contains four numbers: how many bytes of the file `lines` are confirmed, the
# number of the next line, how many bytes were sent, and how many lines were lost after the last
# line on the disk.
_POSITION = struct.Struct("<4Q")
# The service rejects this line number, and returns the number of the next line.
_UNKNOWN_SEQ = 1 << 52


class Spool:
    """Stores lines until they are sent, in a file or in memory.

    A line is in the file before `put` returns, so it survives the end of this process; a power
    failure can lose the lines of the last seconds. The file is emptied when all of its lines are
    confirmed. Without a directory or free disk space, lines are stored in memory. When the lines in
    memory exceed `max_memory` bytes, further lines are dropped, and a marker in the log contains
    the number of dropped lines. With a directory, the middle of a very long log is dropped.
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
        self.seq = 1  # the number of the next line
        self._at = 0  # the time of the next line, unless a time precedes it
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
        self._text_bytes = 0  # the size of all lines that were added
        self._noted_at = 0.0  # when the last note about a long log was added
        self._has_ended = False
        self._directory, self._tail = directory, Tail(directory) if directory else None
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
        if b"\0" in text or not text.isascii():
            # As the service stores it, so that its size is known, and NUL only precedes a time.
            text = text.decode(errors="replace").replace("\0", "\ufffd").encode()
        with self._lock:
            if self._is_open and text:
                self._store(text, at)
        self.news.set()

    def end(self) -> None:
        """Let `peek` return the end of a long log too, since the program prints nothing more."""
        with self._lock:
            if self._tail and self._is_open and not self._has_ended:
                self._has_ended = True
                lines, size = self._tail.dropped()
                if lines:
                    count = f"{plural(lines, 'line')} ({size:,} bytes)"
                    why = "the log is too long, so only its start and its end are stored"
                    self._store(note(f"{count} left out here: {why}"), now())
                self._tail.release()

    def peek(self, max_bytes: int) -> Batch | None:
        """Return the next lines: at most `max_bytes`, but at least one line.

        The same lines are returned until they are confirmed.
        """
        with self._lock:
            if self._batch is None or self._batch.size > max_bytes:
                self._continue_with_tail()
                stored = self._read(max(max_bytes, LONGEST_STORED))
                first = _TIME_BYTES if stored.startswith(b"\0") else 0
                end = stored.rfind(b"\n", first, max(max_bytes, 0)) + 1
                end = end or stored.find(b"\n", first) + 1
                if stored[end - _TIME_BYTES : end].startswith(b"\0"):  # the time of the next line
                    end -= _TIME_BYTES
                self._batch = Batch.of(self.seq, stored[:end], self._at) if end else None
            return self._batch

    def confirm(self, batch: Batch) -> None:
        """Remove the lines that `peek` returned last, which the service has stored."""
        with self._lock:
            if not self._is_open:
                return
            self.seq += batch.lines
            self.sent_bytes += batch.size
            self._batch = None
            if batch.stored_bytes:  # not the note of `renumber`
                self._at = batch.texts[-1][0]
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
        """Set the number of the next line, which the service expects.

        If it is too low, the service has lost lines, and the next line states their number.
        """
        with self._lock:
            lost, self.seq, self._batch = self.seq - seq, seq, None
            if 0 < lost < _UNKNOWN_SEQ // 2:
                text = f"{plural(lost, 'line')} missing here: the service has lost what was sent"
                marker = Batch.of(seq, timed(note(text), now()))
                self._batch = marker._replace(stored_bytes=0)

    def discard(self) -> None:
        """Drop all lines, and all lines added later."""
        with self._lock:
            self._is_open, self._batch, self._lost = False, None, 0
            self.memory.clear()
            if self._tail:
                self._tail.discard()
            if self._file >= 0:
                self._empty_file()

    def count(self) -> int:
        with self._lock:
            lines = _count_lines(self.memory)
            for start in range(self._start, self._end, _BLOCK_BYTES):
                size = min(_BLOCK_BYTES, self._end - start)
                lines += _count_lines(os.pread(self._file, size, start))
            paths = self._tail.paths() if self._tail else ()
            return lines + sum(_count_lines(path.read_bytes()) for path in paths)

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
                self._lost += _count_lines(in_memory)
            lines = self.count()
            with suppress(OSError):  # the lines remain in the file if the sync fails
                self._write_position()
                if lines:
                    os.fsync(self._file)
                    sync(self._tail.paths() if self._tail else ())
            self._close_files()
            return lines, self._lost

    def _resume(self) -> None:
        self._end = self._find_end()
        position = os.pread(self._position, _POSITION.size, 0)
        if len(position) == _POSITION.size:
            self._start, self.seq, self.sent_bytes, self._lost = _POSITION.unpack(position)
        elif self._end:
            self.seq = _UNKNOWN_SEQ
        self._start = min(self._start, self._end)
        if self._start:
            with mmap.mmap(self._file, self._start, prot=mmap.PROT_READ) as confirmed:
                time_at = confirmed.rfind(b"\0") + 1
                self._at = int(confirmed[time_at : time_at + 13])
        if self._lost:
            self._store(b"", now())

    def _find_end(self) -> int:
        """The end of the last line in the file that ends with a line feed."""
        last = max(os.fstat(self._file).st_size - LONGEST_STORED, 0)
        return last + os.pread(self._file, LONGEST_STORED, last).rfind(b"\n") + 1

    def _store(self, text: bytes, at: int) -> None:
        left_out = b""
        if self._lost:
            left_out = note(f"{plural(self._lost, 'line')} left out here: there was no space")
        self._text_bytes += len(text)
        if self._tail and not (self._has_ended or self.memory or self._text_bytes <= HEAD_BYTES):
            self._note_long_log(self._tail.lines, at)
            is_long = self._text_bytes > MAX_LOG_BYTES
            text = left_out + text
            kept = TAIL_BYTES if is_long else MAX_LOG_BYTES
            self._tail.put(timed(text, at), text.count(b"\n"), len(text), kept, self._on_full)
            self._lost = 0
            return
        stored = timed(left_out + text, at)
        if self._store_on_disk(stored):
            self._lost = 0
        elif len(self.memory) + len(stored) <= self._max_memory:
            self.memory += stored
            self._lost = 0
        else:
            self._lost += text.count(b"\n")

    def _note_long_log(self, unsent: int, at: int) -> None:
        """Add a note, which is sent at once, about the lines that are sent later, if one is due."""
        if unsent and time.monotonic() - self._noted_at < NOTE_SECONDS:
            return
        text = f"{HEAD_BYTES >> 20} MiB of the log are sent; its last lines follow"
        if unsent:
            text = f"{plural(unsent, 'more line')} so far; the last ones follow"
        text_of_note = note(f"{text} when the program has ended")
        self._text_bytes += len(text_of_note)
        self._noted_at = time.monotonic()
        self._store_on_disk(timed(text_of_note, at))

    def _continue_with_tail(self) -> None:
        """When all other lines are confirmed, let the next file of the tail replace the file."""
        while self._tail and self._has_ended and self._start == self._end and not self.memory:
            path = self._tail.take()
            if path is None:
                return
            os.close(self._file)
            self._file = open_file(path, os.O_RDWR)
            self._start, self._end = 0, self._find_end()

    def _store_on_disk(self, stored: bytes) -> bool:
        """Append whole lines; returns whether there was space."""
        # While lines are in memory, later lines are stored there too, to preserve the order.
        if self._file < 0 or self.memory:
            return False
        try:
            write_at(self._file, self._end, stored)
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
            position = _POSITION.pack(self._start, self.seq, self.sent_bytes, self._lost)
            write_at(self._position, 0, position)

    def _close_files(self) -> None:
        for file in {self._file, self._position} - {-1}:
            os.close(file)
        self._file = self._position = -1
        self._start = self._end = 0


def _count_lines(stored: bytes | bytearray) -> int:
    return stored.count(b"\n") - stored.count(b"\0")
