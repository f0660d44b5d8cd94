"""Lines that wait on the disk to be sent, so that they survive the process that wrote them."""

import contextlib
import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from taskservice.client import sender
from taskservice.client.sender import Batch, Times, line_count, note
from taskservice.runner.files import open_file, read_file
from taskservice.terms import MAX_LINE, MAX_LOG

SEGMENT_BYTES = 1024 * 1024
# A log holds no more than this.
MAX_BYTES = MAX_LOG
# The limit of lines in memory, if nothing can be written to the disk.
MAX_MEMORY_BYTES = 4 * 1024 * 1024
_SUFFIX = ".lines"
_TIMES_SUFFIX = ".times"
# The errors after which dropping lines makes space. After others, such as of a disk that has become
# read-only, the lines on it can still be read and sent.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POSITION_BYTES = 1024
# For an unknown position: the service refuses this number and answers with the right one.
_UNKNOWN_SEQ = 1 << 52
# Where in the segment the lines of one time begin, and their time in milliseconds since 1970.
_TIME = struct.Struct("<IQ")
# More than the times of a segment take.
_MAX_TIMES_BYTES = 4 * 1024 * 1024


class Position(NamedTuple):
    """Up to which line the service has confirmed; kept in the file `place`."""

    first: int = 1  # the number of the oldest segment on the disk
    start: int = 0  # how many of its bytes are confirmed
    seq: int = 1  # the number of the next line
    sent_bytes: int = 0
    lost: int = 0  # lines after those on the disk, lost because it was full

    def write(self, path: Path) -> None:
        """Raises OSError. Always of the same size, so that overwriting it needs no free space."""
        text = (" ".join(f"{number:020}" for number in self) + "\n").encode()
        _overwrite(path, 0, text)

    @classmethod
    def read(cls, path: Path) -> "Position | None":
        """None if the file is missing or damaged. Raises OSError."""
        try:
            numbers = [int(number) for number in read_file(path, _POSITION_BYTES).split()]
        except (FileNotFoundError, ValueError):
            return None
        is_place = len(numbers) == len(cls._fields) and min(numbers) >= 0
        return cls(*numbers) if is_place else None


class LineTimes:
    """The times of a segment's lines, a record for each change of the time.

    In a file beside the segment, or in memory; one that can't be written is left out.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.size = 0
        self.last = self._first = sender.now()  # the time of the newest and of the oldest line
        self._memory = bytearray()

    def add(self, start: int, at: int) -> None:
        """The lines from byte `start` of the segment on have the time `at`."""
        if self.size and at == self.last:
            return
        record = _TIME.pack(start, at)
        with contextlib.suppress(OSError):
            if self._path is None:
                self._memory += record
            else:
                # Open for a moment: this comes once a millisecond at most, and segments are many.
                _overwrite(self._path, self.size, record)
            self.size += len(record)
            self.last = at

    def recover(self, written_at: int) -> None:
        """Read what a process that is gone left; without a file, all have the time `written_at`."""
        self.last = self._first = written_at
        records = self._records()
        self.size = len(records) * _TIME.size
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
        if self._path is not None:
            try:
                data = read_file(self._path, _MAX_TIMES_BYTES)
            except OSError:
                return []
        return list(_TIME.iter_unpack(data[: len(data) // _TIME.size * _TIME.size]))

    def sync(self) -> None:
        if self._path is not None and self.size:
            file = open_file(self._path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def remove(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


class Segment:
    """Some of the lines, in a file, or in memory if no file can be written."""

    def __init__(self, number: int, path: Path | None) -> None:
        self.number = number
        self.size = 0
        self.lines = 0
        self.dropped = 0  # how many lines its only line, a note, stands for
        self.is_sealed = False  # it takes no more lines
        self.path = path
        self._memory = bytearray()
        self._file = -1 if path is None else open_file(path, os.O_RDWR | os.O_CREAT)
        self.times = LineTimes(path and path.with_suffix(_TIMES_SUFFIX))

    @classmethod
    def create(cls, number: int, path: Path | None, text: bytes, lines: int, at: int) -> "Segment":
        """A segment with these lines. Raises OSError, and leaves no file then."""
        segment = cls(number, path)
        try:
            segment.append(text, lines, at)
        except OSError:
            segment.remove()
            raise
        return segment

    @classmethod
    def of_note(cls, number: int, path: Path | None, dropped: int, at: int) -> "Segment":
        """A segment with a note in place of dropped lines; in memory, if the disk is full."""
        text = note(f"{line_count(dropped)} left out here: there was no space")
        try:
            segment = cls.create(number, path, text, 1, at)
        except OSError:
            segment = cls.create(number, None, text, 1, at)
        segment.dropped, segment.is_sealed = dropped, True
        return segment

    @property
    def total_bytes(self) -> int:
        """The bytes of its lines and of their times."""
        return self.size + self.times.size

    def append(self, text: bytes, lines: int, at: int) -> None:
        """Add whole lines of one time. Raises OSError, and adds none of them then."""
        self.times.add(self.size, at)
        try:
            if self.path is None:
                self._memory += text
            else:
                _write(self._file, self.size, text)
        except OSError:
            self.is_sealed = True
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(text)
        self.lines += lines

    def read(self, start: int, max_bytes: int) -> bytes:
        if self.path is None:
            return bytes(self._memory[start : start + max_bytes])
        return os.pread(self._file, min(max_bytes, self.size - start), start)

    def save(self, path: Path) -> "Segment":
        """A copy on the disk of this one in memory. Raises OSError."""
        text = self.read(0, self.size)
        (_, first), *others = self.times.of(text, 0)
        saved = Segment.create(self.number, path, text, self.lines, first)
        for start, at in others:
            saved.times.add(start, at)
        saved.dropped = self.dropped
        return saved

    def recover(self) -> None:
        """Read what a process that is gone left in the file; an unfinished line is dropped."""
        found = os.fstat(self._file)
        if found.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, "It holds more than a log can", self.path)
        text = os.pread(self._file, found.st_size, 0)
        self.size = text.rfind(b"\n") + 1
        self.lines = text.count(b"\n")
        self.is_sealed = True
        # Spools of an earlier version have no times.
        self.times.recover(found.st_mtime_ns // 1_000_000)

    def sync(self) -> None:
        with contextlib.suppress(OSError):  # the lines are written, only not synced
            os.fsync(self._file)
            self.times.sync()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        self.close()
        if self.path is not None:
            with contextlib.suppress(OSError):  # the next `load` removes it
                self.path.unlink()
        self.times.remove()


class Spool:
    """A LineQueue in a folder, in segments of about 1 MiB, removed once they are confirmed.

    Each line is in its file before `put_text` returns, so it survives the end of this
    process. Files are not synced for each line, so a power failure can take the lines of
    the last seconds. Over `max_bytes`, or on a full disk, the oldest lines are dropped,
    and a note in the log says how many. Without a folder all lines are in memory.
    """

    def __init__(
        self,
        folder: Path | None,
        max_bytes: int = MAX_BYTES,
        on_full: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._on_full = on_full
        self._segments: deque[Segment] = deque()
        self._newest_number = 0  # of the newest segment
        self._confirmed_bytes = 0  # bytes of the oldest segment that are confirmed
        self._confirmed_lines = 0
        self._seq = 1
        self.sent_bytes = 0
        self._batch: Batch | None = None
        self._segments_in_batch = 0  # how many segments the batch may have lines of
        self._is_open = True
        self._is_woken = False
        self._changed = threading.Condition()
        if folder is not None and not (folder / "place").exists():
            try:
                # While there is space: without it a later process could not resume.
                Position().write(folder / "place")
            except OSError as error:
                self._on_full(error)
                self._folder = None

    @classmethod
    def load(cls, folder: Path) -> "Spool":
        """The lines that are left of a process that is gone. Raises OSError."""
        position = Position.read(folder / "place")
        spool = cls(folder)
        with contextlib.ExitStack() as opened:
            for path in sorted(folder.glob(f"{'[0-9]' * 8}{_SUFFIX}")):
                segment = Segment(int(path.stem), path)
                opened.callback(segment.close)
                if position is not None and segment.number < position.first:
                    segment.remove()
                    continue
                segment.recover()
                spool._segments.append(segment)
                spool._newest_number = segment.number
            spool._resume_at(position or Position(first=0))
            opened.pop_all()
        return spool

    def _resume_at(self, position: Position) -> None:
        """Continue from this position, as far as it fits the segments."""
        self._seq, self.sent_bytes = position.seq, position.sent_bytes
        if self._segments:
            oldest = self._segments[0]
            if position.first != oldest.number:
                self._seq = _UNKNOWN_SEQ
            elif position.start <= oldest.size:
                self._confirmed_bytes = position.start
                self._confirmed_lines = oldest.read(0, position.start).count(b"\n")
        if position.lost:
            self._newest_number += 1
            lost = Segment.of_note(self._newest_number, None, position.lost, sender.now())
            self._segments.append(lost)

    def _path(self, number: int) -> Path | None:
        return self._folder and self._folder / f"{number:08}{_SUFFIX}"

    # --- in ------------------------------------------------------------------------------

    def put(self, lines: Sequence[bytes], at: int | None = None) -> None:
        text = b"".join([line + b"\n" for line in lines])
        self.put_text(text, len(lines), sender.now() if at is None else at)

    def put_text(self, text: bytes, lines: int, at: int) -> None:
        """Add lines of one time, each with its line feed, without waiting for the service."""
        with self._changed:
            if self._is_open and lines:
                self._store(text, lines, at)
                self._changed.notify_all()

    def _store(self, text: bytes, lines: int, at: int) -> None:
        while self._folder is not None:
            try:
                self._append(text, lines, at, on_disk=True)
                return
            except OSError as error:
                self._on_full(error)
                is_full = error.errno in _FULL
            if not is_full or not self._drop_oldest(on_disk=True):
                break
        self._append(text, lines, at, on_disk=False)

    def _append(self, text: bytes, lines: int, at: int, on_disk: bool) -> None:
        if self._segments:
            newest = self._segments[-1]
            is_full = newest.is_sealed or newest.total_bytes >= SEGMENT_BYTES
            if not is_full and (newest.path is not None) == on_disk:
                newest.append(text, lines, at)
                return
        max_bytes = self._max_bytes if on_disk else MAX_MEMORY_BYTES
        while self._total_bytes(on_disk) > max_bytes - SEGMENT_BYTES and self._drop_oldest(on_disk):
            pass
        number = self._newest_number + 1
        path = self._path(number) if on_disk else None
        self._segments.append(Segment.create(number, path, text, lines, at))
        self._newest_number = number

    def _total_bytes(self, on_disk: bool) -> int:
        return sum(s.total_bytes for s in self._segments if (s.path is not None) == on_disk)

    def _drop_oldest(self, on_disk: bool) -> bool:
        """Put a note in the place of the oldest lines that may go; false if there are none."""
        first = 0 if self._batch is None else self._segments_in_batch
        for index in range(first, len(self._segments)):
            segment = self._segments[index]
            if (segment.path is not None) == on_disk and not segment.dropped:
                break
        else:
            return False
        dropped = segment.lines - (self._confirmed_lines if index == 0 else 0)
        segment.remove()
        if index > first and self._segments[index - 1].dropped:
            del self._segments[index]
            index -= 1
            dropped += self._segments[index].dropped
            self._segments[index].remove()
        number = self._segments[index].number
        at = segment.times.last
        self._segments[index] = Segment.of_note(number, self._path(number), dropped, at)
        if index == 0:
            self._confirmed_bytes = self._confirmed_lines = 0
            self._write_position()
        return True

    # --- out -----------------------------------------------------------------------------

    def peek(self, max_bytes: int) -> Batch | None:
        with self._changed:
            if self._batch is None or len(self._batch.data) > max_bytes:
                self._batch = self._next_batch(max_bytes)
            return self._batch

    def _next_batch(self, max_bytes: int) -> Batch | None:
        text, times = b"", Times()
        start, wanted = self._confirmed_bytes, max(max_bytes, MAX_LINE) + 1
        self._segments_in_batch = 0
        for segment in self._segments:
            part = segment.read(start, wanted - len(text))
            times += [(len(text) + place, at) for place, at in segment.times.of(part, start)]
            text += part
            start = 0
            self._segments_in_batch += 1
            if len(text) >= wanted:
                break
        data = _whole_lines(text, max_bytes)
        return Batch.of(self._seq, data, times) if data else None

    def confirm(self, batch: Batch) -> None:
        with self._changed:
            self._seq += batch.lines
            self.sent_bytes += len(batch.data)
            self._batch = None
            self._confirmed_bytes += len(batch.data)
            self._confirmed_lines += batch.lines
            done = []
            while self._segments and self._confirmed_bytes >= self._segments[0].size:
                segment = self._segments.popleft()
                self._confirmed_bytes -= segment.size
                self._confirmed_lines -= segment.lines
                done.append(segment)
            # The position first, so that it never names a segment that is gone.
            self._write_position()
            for segment in done:
                segment.remove()

    def renumber(self, seq: int) -> None:
        with self._changed:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._changed:
            self._is_open = False
            for segment in self._segments:
                segment.remove()
            self._segments.clear()
            self._batch = None
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._segments or self._is_woken, seconds)
            self._is_woken = False

    def wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    # --- the end -------------------------------------------------------------------------

    def count(self) -> int:
        """The number of lines that wait."""
        with self._changed:
            return sum(segment.lines for segment in self._segments) - self._confirmed_lines

    def close(self) -> int:
        """Sync what waits to the disk and close the files; returns how many lines are lost."""
        with self._changed:
            self._is_open = False
            for index, segment in enumerate(list(self._segments)):
                path = self._path(segment.number)
                if segment.path is None and path is not None:
                    # In case the disk has space again; if not, `place` says how many are lost.
                    with contextlib.suppress(OSError):
                        self._segments[index] = segment.save(path)
            self._write_position()
            on_disk = self._on_disk()
            lost = self._count_lost() + sum(segment.dropped for segment in on_disk)
            if not on_disk or on_disk[0] is not self._segments[0]:
                self._confirmed_bytes = self._confirmed_lines = 0
            self._segments = deque(on_disk)
            for segment in on_disk:
                segment.sync()
                segment.close()
            return lost

    def _on_disk(self) -> list[Segment]:
        return [segment for segment in self._segments if segment.path is not None]

    def _count_lost(self) -> int:
        """How many lines would be lost if this process ended now."""
        lost = sum(s.dropped or s.lines for s in self._segments if s.path is None)
        is_partly_sent = self._segments and self._segments[0].path is None
        return lost - (self._confirmed_lines if is_partly_sent else 0)

    def _write_position(self) -> None:
        if self._folder is None:
            return
        on_disk = self._on_disk()
        is_partly_sent = bool(on_disk) and on_disk[0] is self._segments[0]
        position = Position(
            first=on_disk[0].number if on_disk else self._newest_number + 1,
            start=self._confirmed_bytes if is_partly_sent else 0,
            seq=self._seq,
            sent_bytes=self.sent_bytes,
            lost=self._count_lost(),
        )
        with contextlib.suppress(OSError):
            # If it can't be written, lines are sent again later, and the service skips them.
            position.write(self._folder / "place")


def _overwrite(path: Path, start: int, text: bytes) -> None:
    """Write a part of a file. Raises OSError."""
    file = open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        _write(file, start, text)
    finally:
        os.close(file)


def _write(file: int, start: int, text: bytes) -> None:
    """Write all of the text at this place. Raises OSError, also where a part found space."""
    if os.pwrite(file, text, start) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _whole_lines(text: bytes, max_bytes: int) -> bytes:
    """The whole lines in the first `max_bytes` bytes, but at least one line."""
    if len(text) <= max_bytes:
        return text
    end = text.rfind(b"\n", 0, max_bytes) + 1
    return text[: end or text.find(b"\n") + 1]
