"""Lines that wait on the disk to be sent, so that they survive the process that wrote them."""

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from taskservice.client import sender
from taskservice.client.sender import Batch, Times, line_count, note
from taskservice.runner.files import LineTimes, open_file, read_file
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


class Position(NamedTuple):
    """Up to which line the service has confirmed; kept in the file `place`."""

    first: int = 1  # the number of the oldest segment on the disk
    start: int = 0  # how many of its bytes are confirmed
    seq: int = 1  # the number of the next line
    sent_bytes: int = 0
    lost: int = 0  # lines after those on the disk, lost because it was full

    def text(self) -> bytes:
        """Always of the same size, so that overwriting it needs no free space."""
        return (" ".join(f"{number:020}" for number in self) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> "Position | None":
        """None if the file is missing or damaged. Raises OSError."""
        try:
            numbers = [int(number) for number in read_file(path, _POSITION_BYTES).split()]
        except (FileNotFoundError, ValueError):
            return None
        is_place = len(numbers) == len(cls._fields) and min(numbers) >= 0
        return cls(*numbers) if is_place else None


class Segment:
    """Some of the lines, in a file, or in memory if no file can be written."""

    def __init__(self, number: int, path: Path | None) -> None:
        self.number = number
        self.size = 0
        self.lines = 0
        self.dropped = 0  # how many lines its only line, a note, stands for
        self.path = path
        self._memory = bytearray()
        self._file = -1
        if path is not None:
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)
        self._times = LineTimes(path and path.with_suffix(_TIMES_SUFFIX))

    @property
    def total_bytes(self) -> int:
        """The bytes of its lines and of their times."""
        return self.size + self._times.size

    def append(self, text: bytes, lines: int, at: int) -> None:
        """Add whole lines of one time. Raises OSError, and adds none of them then."""
        self._times.add(self.size, at)
        if self.path is None:
            self._memory += text
        elif os.pwrite(self._file, text, self.size) != len(text):
            os.ftruncate(self._file, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(text)
        self.lines += lines

    def read(self, start: int, max_bytes: int) -> bytes:
        if self.path is None:
            return bytes(self._memory[start : start + max_bytes])
        return os.pread(self._file, min(max_bytes, self.size - start), start)

    def times(self, text: bytes, start: int) -> Times:
        """The times of the lines in `text`, which was read from `start`."""
        return self._times.of(text, start)

    def save(self, path: Path) -> None:
        """Move it from memory to the disk. Raises OSError, and stays in memory then."""
        saved, text = Segment(self.number, path), bytes(self._memory)
        (_, first), *others = self.times(text, 0)
        try:
            saved.append(text, self.lines, first)
        except OSError:
            saved.remove()
            raise
        for start, at in others:
            saved._times.add(start, at)
        self.path, self._file, self._times = path, saved._file, saved._times
        self._memory.clear()

    def replace_with_note(self, dropped: int) -> None:
        """Drop its lines, and put in their place a note with the number of lines left out."""
        text = note(f"{line_count(dropped)} left out here: there was no space")
        at = self._times.last
        try:
            self._empty()
            self.append(text, 1, at)
        except OSError:
            self.remove()
            self.path = None
            self._memory.clear()
            self._times = LineTimes(None)
            self.append(text, 1, at)
        self.dropped = dropped

    def _empty(self) -> None:
        self.size = self.lines = 0
        self._memory.clear()
        self._times.remove()
        if self.path is not None:
            os.ftruncate(self._file, 0)

    def recover(self) -> None:
        """Read what a process that is gone left in the file; an unfinished line is dropped."""
        found = os.fstat(self._file)
        size = found.st_size
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, "It holds more than a log can", self.path)
        text = os.pread(self._file, size, 0)
        self.size = text.rfind(b"\n") + 1
        self.lines = text.count(b"\n")
        # Spools of an earlier version have no times.
        self._times.recover(found.st_mtime_ns // 1_000_000)

    def sync(self) -> None:
        if self.path is not None:
            os.fsync(self._file)
            self._times.sync()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        self.close()
        if self.path is not None:
            with contextlib.suppress(OSError):  # the next `load` removes it
                self.path.unlink()
        self._times.remove()


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
        self._is_sealed = True  # the newest segment takes no more lines
        self._confirmed_bytes = 0  # bytes of the oldest segment that are confirmed
        self._confirmed_lines = 0
        self._bytes = 0  # of all segments
        self._seq = 1
        self.sent_bytes = 0
        self._batch: Batch | None = None
        self._is_open = True
        self._is_woken = False
        self._changed = threading.Condition()
        if folder is not None and not (folder / "place").exists():
            self._create_position_file(folder)

    def _create_position_file(self, folder: Path) -> None:
        """Write the file while there is space: without it a later process could not resume."""
        try:
            _overwrite(folder / "place", Position().text())
        except OSError as error:
            self._on_full(error)
            self._folder = None

    @classmethod
    def load(cls, folder: Path) -> "Spool":
        """The lines that are left of a process that is gone. Raises OSError."""
        position = Position.read(folder / "place")
        spool = cls(folder)
        try:
            spool._load_segments(folder, position)
        except OSError:
            spool._close_segments()
            raise
        spool._resume_at(position or Position(first=0))
        return spool

    def _load_segments(self, folder: Path, position: Position | None) -> None:
        for path in sorted(folder.glob(f"{'[0-9]' * 8}{_SUFFIX}")):
            segment = Segment(int(path.stem), path)
            if position is not None and segment.number < position.first:
                segment.remove()
                continue
            self._segments.append(segment)
            segment.recover()
            self._bytes += segment.total_bytes
            self._newest_number = segment.number

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
            self._segments.append(Segment(self._newest_number, None))
            self._replace_with_note(self._segments[-1], position.lost, is_oldest=False)

    # --- in ------------------------------------------------------------------------------

    def put(self, lines: Sequence[bytes], at: int | None = None) -> None:
        text = b"".join([line + b"\n" for line in lines])
        self.put_text(text, len(lines), sender.now() if at is None else at)

    def put_text(self, text: bytes, lines: int, at: int) -> None:
        """Add lines of one time, each with its line feed, without waiting for the service."""
        with self._changed:
            if not self._is_open or not lines:
                return
            while self._bytes + len(text) > self._max_bytes and self._drop_oldest():
                pass
            self._store(text, lines, at)
            self._changed.notify_all()

    def _store(self, text: bytes, lines: int, at: int) -> None:
        while self._folder is not None:
            try:
                path = self._folder / f"{self._newest_number + 1:08}{_SUFFIX}"
                return self._append(text, lines, at, path)
            except OSError as error:
                self._on_full(error)
                self._seal()
                is_full = error.errno in _FULL
            if not is_full or not self._drop_oldest(on_disk=True):
                break
        while self._memory_bytes() > MAX_MEMORY_BYTES and self._drop_oldest(on_disk=False):
            pass
        return self._append(text, lines, at, None)

    def _seal(self) -> None:
        self._is_sealed = True
        if self._segments and not self._segments[-1].size:
            self._segments.pop().remove()

    def _memory_bytes(self) -> int:
        return sum(segment.total_bytes for segment in self._segments if segment.path is None)

    def _append(self, text: bytes, lines: int, at: int, path: Path | None) -> None:
        newest = self._segments[-1] if self._segments and not self._is_sealed else None
        if (
            newest is None
            or newest.total_bytes >= SEGMENT_BYTES
            or (newest.path is None) != (path is None)
        ):
            newest = Segment(self._newest_number + 1, path)
            self._newest_number += 1
            self._segments.append(newest)
            self._is_sealed = False
        before = newest.total_bytes
        newest.append(text, lines, at)
        self._bytes += newest.total_bytes - before

    def _drop_oldest(self, on_disk: bool | None = None) -> bool:
        """Drop the lines of the oldest segment that may go; false if there is none."""
        in_batch = self._segments_in_batch()
        for index in range(in_batch, len(self._segments)):
            segment = self._segments[index]
            is_wanted = on_disk is None or on_disk == (segment.path is not None)
            if is_wanted and not segment.dropped:
                break
        else:
            return False
        if index == len(self._segments) - 1:
            self._is_sealed = True
        dropped = segment.lines - (self._confirmed_lines if index == 0 else 0)
        if index > in_batch and self._segments[index - 1].dropped:
            del self._segments[index]
            self._bytes -= segment.total_bytes
            segment.remove()
            index -= 1
            dropped += self._segments[index].dropped
        self._replace_with_note(self._segments[index], dropped, is_oldest=index == 0)
        return True

    def _replace_with_note(self, segment: Segment, dropped: int, is_oldest: bool) -> None:
        self._bytes -= segment.total_bytes
        segment.replace_with_note(dropped)
        self._bytes += segment.total_bytes
        if is_oldest:
            self._confirmed_bytes = self._confirmed_lines = 0
            self._write_position()

    def _segments_in_batch(self) -> int:
        """How many segments the batch that is being sent has lines of."""
        if self._batch is None:
            return 0
        missing = len(self._batch.data) + self._confirmed_bytes
        for count, segment in enumerate(self._segments):
            if missing <= 0:
                return count
            missing -= segment.size
        return len(self._segments)

    # --- out -----------------------------------------------------------------------------

    def peek(self, max_bytes: int) -> Batch | None:
        with self._changed:
            if self._batch is None or len(self._batch.data) > max_bytes:
                self._batch = self._next_batch(max_bytes)
            return self._batch

    def _next_batch(self, max_bytes: int) -> Batch | None:
        text, times = b"", Times()
        start, wanted = self._confirmed_bytes, max(max_bytes, MAX_LINE) + 1
        for segment in self._segments:
            part = segment.read(start, wanted - len(text))
            times += [(len(text) + place, at) for place, at in segment.times(part, start)]
            text += part
            start = 0
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
            done = self._remove_confirmed()
            # The position first, so that it never names a segment that is gone.
            self._write_position()
            for segment in done:
                segment.remove()

    def _remove_confirmed(self) -> list[Segment]:
        """Take the fully confirmed segments off the queue and return them."""
        done = []
        while self._segments and self._confirmed_bytes >= self._segments[0].size:
            segment = self._segments.popleft()
            self._confirmed_bytes -= segment.size
            self._confirmed_lines -= segment.lines
            self._bytes -= segment.total_bytes
            done.append(segment)
        if not self._segments:
            self._is_sealed = True
        return done

    def renumber(self, seq: int) -> None:
        with self._changed:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._changed:
            self._is_open = False
            for segment in self._segments:
                segment.remove()
            self._segments.clear()
            self._bytes, self._batch = 0, None
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
            self._move_memory_to_disk()
            self._write_position()
            lost = self._count_lost() + sum(segment.dropped for segment in self._on_disk())
            self._drop_memory()
            for segment in self._segments:
                with contextlib.suppress(OSError):  # the lines are written, only not synced
                    segment.sync()
            self._close_segments()
            return lost

    def _close_segments(self) -> None:
        for segment in self._segments:
            segment.close()

    def _on_disk(self) -> list[Segment]:
        return [segment for segment in self._segments if segment.path is not None]

    def _move_memory_to_disk(self) -> None:
        """Write what is in memory, in case the disk has space again."""
        if self._folder is None:
            return
        for segment in self._segments:
            if segment.path is None:
                with contextlib.suppress(OSError):  # `place` says how many lines are lost
                    segment.save(self._folder / f"{segment.number:08}{_SUFFIX}")

    def _count_lost(self) -> int:
        """How many lines would be lost if this process ended now."""
        lost = sum(s.dropped or s.lines for s in self._segments if s.path is None)
        is_partly_sent = self._segments and self._segments[0].path is None
        return lost - (self._confirmed_lines if is_partly_sent else 0)

    def _drop_memory(self) -> None:
        if self._segments and self._segments[0].path is None:
            self._confirmed_bytes = self._confirmed_lines = 0
        self._segments = deque(self._on_disk())

    def _write_position(self) -> None:
        """Write the position to its file."""
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
            _overwrite(self._folder / "place", position.text())


def _overwrite(path: Path, text: bytes) -> None:
    """Overwrite the beginning of a file; works on a full disk if it was as long before."""
    file = open_file(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as out:
        if out.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _whole_lines(text: bytes, max_bytes: int) -> bytes:
    """The whole lines in the first `max_bytes` bytes, but at least one line."""
    if len(text) <= max_bytes:
        return text
    end = text.rfind(b"\n", 0, max_bytes) + 1
    return text[: end or text.find(b"\n") + 1]
