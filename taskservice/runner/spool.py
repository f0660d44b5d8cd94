"""Lines that wait on the disk: they outlive the process that wrote them."""

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from taskservice.client.log_text import line_count, note
from taskservice.client.sender import Batch
from taskservice.contract.terms import MAX_LINE, MAX_LOG
from taskservice.runner.files import open_file, read_file

SEGMENT_BYTES = 1024 * 1024
# More than a log holds need not wait for it.
MOST_BYTES = MAX_LOG
# Where nothing can be written to the disk, so much waits in memory.
MOST_MEMORY_BYTES = 4 * 1024 * 1024
_SUFFIX = ".lines"
_PLACE_BYTES = 1024
# Where it is not known how many lines the service has, it says so when it gets this number.
_UNKNOWN_SEQ = 1 << 52


class Place(NamedTuple):
    """How far the service has the lines: those before are not on the disk any more."""

    first: int = 1  # the number of the oldest segment on the disk
    start: int = 0  # how many bytes of it are confirmed
    seq: int = 1  # the number of the next line
    sent_bytes: int = 0
    lost: int = 0  # lines that come last and are not on the disk: it was full

    def text(self) -> bytes:
        """Always of one size: written over what was there, it needs no room."""
        return (" ".join(f"{number:020}" for number in self) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> "Place | None":
        """None where there is none to be read. Raises OSError."""
        try:
            numbers = [int(number) for number in read_file(path, _PLACE_BYTES).split()]
        except (FileNotFoundError, ValueError):
            return None
        is_place = len(numbers) == len(cls._fields) and min(numbers) >= 0
        return cls(*numbers) if is_place else None


class Segment:
    """Some lines that wait, in a file, or in memory where there is no file to be had."""

    def __init__(self, number: int, path: Path | None) -> None:
        self.number = number
        self.size = 0
        self.lines = 0
        self.dropped = 0  # how many lines its only line, a mark, stands for
        self.path = path
        self._memory = bytearray()
        self._file = -1
        if path is not None:
            self._file = open_file(path, os.O_RDWR | os.O_CREAT)

    def append(self, text: bytes, lines: int) -> None:
        """Add whole lines: all of them, or OSError and none."""
        if self.path is None:
            self._memory += text
        elif os.pwrite(self._file, text, self.size) != len(text):
            os.ftruncate(self._file, self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size += len(text)
        self.lines += lines

    def read(self, start: int, most: int) -> bytes:
        if self.path is None:
            return bytes(self._memory[start : start + most])
        return os.pread(self._file, min(most, self.size - start), start)

    def save(self, path: Path) -> None:
        """Bring it from the memory to the disk. Raises OSError, and then it is where it was."""
        saved = Segment(self.number, path)
        try:
            saved.append(bytes(self._memory), self.lines)
        except OSError:
            saved.remove()
            raise
        self.path, self._file = path, saved._file
        self._memory.clear()

    def become_mark(self, dropped: int) -> None:
        """Give up its lines for one that says how many were left out, itself included."""
        text = note(f"{line_count(dropped)} left out here: there was no room")
        try:
            self._empty()
            self.append(text, 1)
        except OSError:
            self.remove()
            self.path = None
            self._memory.clear()
            self.append(text, 1)
        self.dropped = dropped

    def _empty(self) -> None:
        self.size = self.lines = 0
        self._memory.clear()
        if self.path is not None:
            os.ftruncate(self._file, 0)

    def recover(self) -> None:
        """Take what a process that is gone has left in the file; half a line is no line."""
        size = os.fstat(self._file).st_size
        if size > MOST_BYTES:
            raise OSError(errno.EFBIG, "It holds more than a log can", self.path)
        text = os.pread(self._file, size, 0)
        self.size = text.rfind(b"\n") + 1
        self.lines = text.count(b"\n")

    def sync(self) -> None:
        if self.path is not None:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        self.close()
        if self.path is not None:
            with contextlib.suppress(OSError):  # a later `load` removes it
                self.path.unlink()


class Spool:
    """Lines in order, in a folder of their own; the service has those that are confirmed.

    Each line is in the file before `put_text` returns, so it survives the end of this
    process; the file is not synced to the disk for each, so a power failure can take the
    last seconds. What is over the bound, or finds the disk full, pushes out the oldest
    lines, and a mark in the log says how many. With no folder everything is in memory.
    """

    def __init__(
        self,
        folder: Path | None,
        most_bytes: int = MOST_BYTES,
        on_full: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._on_full = on_full
        self._segments: deque[Segment] = deque()
        self._number = 0  # of the newest segment
        self._sealed = True  # nothing more goes into the newest segment
        self._start = 0  # bytes of the oldest segment that are confirmed
        self._start_lines = 0
        self._bytes = 0  # of all segments
        self._seq = 1
        self.sent_bytes = 0
        self._batch: Batch | None = None
        self._open = True
        self._woken = False
        self._changed = threading.Condition()
        if folder is not None and not (folder / "place").exists():
            self._take_place(folder)

    def _take_place(self, folder: Path) -> None:
        """Write down the place while there is room; without one nothing could be resumed."""
        try:
            _write_over(folder / "place", Place().text())
        except OSError as error:
            self._on_full(error)
            self._folder = None

    @classmethod
    def load(cls, folder: Path) -> "Spool":
        """The lines that a process that is gone has left. Raises OSError."""
        place = Place.read(folder / "place")
        spool = cls(folder)
        try:
            spool._load_segments(folder, place)
        except OSError:
            spool._close_segments()
            raise
        spool._settle(place or Place(first=0))
        return spool

    def _load_segments(self, folder: Path, place: Place | None) -> None:
        for path in sorted(folder.glob(f"{'[0-9]' * 8}{_SUFFIX}")):
            segment = Segment(int(path.stem), path)
            if place is not None and segment.number < place.first:
                segment.remove()
                continue
            self._segments.append(segment)
            segment.recover()
            self._bytes += segment.size
            self._number = segment.number

    def _settle(self, place: Place) -> None:
        """Go on at this place, as far as it fits the segments."""
        self._seq, self.sent_bytes = place.seq, place.sent_bytes
        if self._segments:
            oldest = self._segments[0]
            if place.first != oldest.number:
                self._seq = _UNKNOWN_SEQ
            elif place.start <= oldest.size:
                self._start = place.start
                self._start_lines = oldest.read(0, place.start).count(b"\n")
        if place.lost:
            self._number += 1
            self._segments.append(Segment(self._number, None))
            self._become_mark(self._segments[-1], place.lost, is_oldest=False)

    # --- in ------------------------------------------------------------------------------

    def put(self, lines: Sequence[bytes]) -> None:
        self.put_text(b"".join([line + b"\n" for line in lines]), len(lines))

    def put_text(self, text: bytes, lines: int) -> None:
        """Add lines, each with its line feed; never waits for the service."""
        with self._changed:
            if not self._open or not lines:
                return
            while self._bytes + len(text) > self._most_bytes and self._drop_oldest():
                pass
            self._store(text, lines)
            self._changed.notify_all()

    def _store(self, text: bytes, lines: int) -> None:
        while self._folder is not None:
            try:
                return self._append(text, lines, self._folder / f"{self._number + 1:08}{_SUFFIX}")
            except OSError as error:
                self._on_full(error)
                self._seal()
            if not self._drop_oldest(on_disk=True):
                break
        while self._memory_bytes() > MOST_MEMORY_BYTES and self._drop_oldest(on_disk=False):
            pass
        return self._append(text, lines, None)

    def _seal(self) -> None:
        self._sealed = True
        if self._segments and not self._segments[-1].size:
            self._segments.pop().remove()

    def _memory_bytes(self) -> int:
        return sum(segment.size for segment in self._segments if segment.path is None)

    def _append(self, text: bytes, lines: int, path: Path | None) -> None:
        newest = self._segments[-1] if self._segments and not self._sealed else None
        if (
            newest is None
            or newest.size >= SEGMENT_BYTES
            or (newest.path is None) != (path is None)
        ):
            newest = Segment(self._number + 1, path)
            self._number += 1
            self._segments.append(newest)
            self._sealed = False
        newest.append(text, lines)
        self._bytes += len(text)

    def _drop_oldest(self, on_disk: bool | None = None) -> bool:
        """Give up the lines of one segment; false when there is none to be given up."""
        pinned = self._pinned()
        for place in range(pinned, len(self._segments)):
            segment = self._segments[place]
            is_wanted = on_disk is None or on_disk == (segment.path is not None)
            if is_wanted and not segment.dropped:
                break
        else:
            return False
        if place == len(self._segments) - 1:
            self._sealed = True
        dropped = segment.lines - (self._start_lines if place == 0 else 0)
        if place > pinned and self._segments[place - 1].dropped:
            del self._segments[place]
            self._bytes -= segment.size
            segment.remove()
            place -= 1
            dropped += self._segments[place].dropped
        self._become_mark(self._segments[place], dropped, is_oldest=place == 0)
        return True

    def _become_mark(self, segment: Segment, dropped: int, is_oldest: bool) -> None:
        self._bytes -= segment.size
        segment.become_mark(dropped)
        self._bytes += segment.size
        if is_oldest:
            self._start = self._start_lines = 0
            self._write_place()

    def _pinned(self) -> int:
        """How many segments have a part in the batch that is on its way."""
        if self._batch is None:
            return 0
        missing = len(self._batch.data) + self._start
        for count, segment in enumerate(self._segments):
            if missing <= 0:
                return count
            missing -= segment.size
        return len(self._segments)

    # --- out -----------------------------------------------------------------------------

    def peek(self, most: int) -> Batch | None:
        with self._changed:
            if self._batch is None or len(self._batch.data) > most:
                self._batch = self._take(most)
            return self._batch

    def _take(self, most: int) -> Batch | None:
        parts: list[bytes] = []
        start, wanted = self._start, max(most, MAX_LINE) + 1
        for segment in self._segments:
            part = segment.read(start, wanted)
            parts.append(part)
            start, wanted = 0, wanted - len(part)
            if wanted <= 0:
                break
        data = _whole_lines(b"".join(parts), most)
        return Batch(self._seq, data.count(b"\n"), data) if data else None

    def confirm(self, batch: Batch) -> None:
        with self._changed:
            self._seq += batch.lines
            self.sent_bytes += len(batch.data)
            self._batch = None
            self._start += len(batch.data)
            self._start_lines += batch.lines
            done = self._pass_segments()
            # First the place, so that nobody takes up a segment that is not there.
            self._write_place()
            for segment in done:
                segment.remove()

    def _pass_segments(self) -> list[Segment]:
        """Take out the segments that are confirmed as a whole."""
        done = []
        while self._segments and self._start >= self._segments[0].size:
            segment = self._segments.popleft()
            self._start -= segment.size
            self._start_lines -= segment.lines
            self._bytes -= segment.size
            done.append(segment)
        if not self._segments:
            self._sealed = True
        return done

    def renumber(self, seq: int) -> None:
        with self._changed:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._changed:
            self._open = False
            for segment in self._segments:
                segment.remove()
            self._segments.clear()
            self._bytes, self._batch = 0, None
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._segments or self._woken, seconds)
            self._woken = False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    # --- the end -------------------------------------------------------------------------

    def count(self) -> int:
        """How many lines wait."""
        with self._changed:
            return sum(segment.lines for segment in self._segments) - self._start_lines

    def close(self) -> int:
        """Leave what waits on the disk, safe from a power failure too; how many lines are lost."""
        with self._changed:
            self._open = False
            self._save_memory()
            self._write_place()
            lost = self._lost() + sum(segment.dropped for segment in self._on_disk())
            self._forget_memory()
            for segment in self._segments:
                with contextlib.suppress(OSError):  # it is there, if not as safe
                    segment.sync()
            self._close_segments()
            return lost

    def _close_segments(self) -> None:
        for segment in self._segments:
            segment.close()

    def _on_disk(self) -> list[Segment]:
        return [segment for segment in self._segments if segment.path is not None]

    def _save_memory(self) -> None:
        """There may be room again for what could only be kept in memory."""
        if self._folder is None:
            return
        for segment in self._segments:
            if segment.path is None:
                with contextlib.suppress(OSError):  # the place says how many lines it had
                    segment.save(self._folder / f"{segment.number:08}{_SUFFIX}")

    def _lost(self) -> int:
        """How many lines would be lost if this process ended now."""
        lost = sum(s.dropped or s.lines for s in self._segments if s.path is None)
        is_begun = self._segments and self._segments[0].path is None
        return lost - (self._start_lines if is_begun else 0)

    def _forget_memory(self) -> None:
        if self._segments and self._segments[0].path is None:
            self._start = self._start_lines = 0
        self._segments = deque(self._on_disk())

    def _write_place(self) -> None:
        """Write down how far the service has the lines."""
        if self._folder is None:
            return
        on_disk = self._on_disk()
        is_begun = bool(on_disk) and on_disk[0] is self._segments[0]
        place = Place(
            first=on_disk[0].number if on_disk else self._number + 1,
            start=self._start if is_begun else 0,
            seq=self._seq,
            sent_bytes=self.sent_bytes,
            lost=self._lost(),
        )
        with contextlib.suppress(OSError):
            # If it can't be written, more is sent again than need be, and skipped there.
            _write_over(self._folder / "place", place.text())


def _write_over(path: Path, text: bytes) -> None:
    """Write to the beginning of a file; on a full disk too, if it has been as long before."""
    file = open_file(path, os.O_WRONLY | os.O_CREAT)
    with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as out:
        if out.write(text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _whole_lines(text: bytes, most: int) -> bytes:
    """The longest beginning of at most `most` bytes that has whole lines; one line at least."""
    if len(text) <= most:
        return text
    end = text.rfind(b"\n", 0, most) + 1
    return text[: end or text.find(b"\n") + 1]
