"""Lines that wait in memory to be sent, written by a Python program."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from taskservice.client import clock
from taskservice.client.flag import Flag
from taskservice.client.sender import Batch, Times

# When this much waits, the program waits too.
MAX_BYTES = 16 * 1024 * 1024
# The memory that a line takes besides its text.
_OVERHEAD_BYTES = 128
# Between two checks for space.
_POLL_SECONDS = 0.02


class MemoryQueue:
    """A LineQueue in memory; before adding lines, call `wait_for_space`.

    Ctrl-C may come while lines are added. It cannot come between taking this lock and entering
    the `with`, as it can with a Condition, which would stay locked.
    """

    def __init__(self) -> None:
        self._lines: deque[tuple[bytes, int]] = deque()  # each with its time
        self._bytes = 0
        self._seq = 1
        self._batch: Batch | None = None
        self._is_open = True
        self._lock = threading.Lock()
        self._news = Flag()

    def wait_for_space(self, seconds: float) -> bool:
        """Wait at most `seconds` for space for more lines; false if there is none then."""
        until = time.monotonic() + seconds
        while self._bytes >= MAX_BYTES:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def count(self) -> int:
        """The number of lines that wait."""
        with self._lock:
            return len(self._lines)

    def put(self, lines: Sequence[bytes], at: int | None = None) -> None:
        at = clock.now() if at is None else at
        with self._lock:
            if self._is_open:
                self._lines.extend((line, at) for line in lines)
                self._bytes += sum(map(_size, lines))
        self._news.set()

    def peek(self, max_bytes: int) -> Batch | None:
        with self._lock:
            if self._batch is None or len(self._batch.data) > max_bytes:
                self._batch = self._next_batch(max_bytes)
            return self._batch

    def _next_batch(self, max_bytes: int) -> Batch | None:
        taken, times = list[bytes](), Times()
        size = 0
        for line, at in self._lines:
            if taken and size + len(line) + 1 > max_bytes:
                break
            if not times or at != times[-1][1]:
                times.append((size, at))
            size += len(line) + 1
            taken.append(line + b"\n")
        return Batch(self._seq, len(taken), b"".join(taken), times) if taken else None

    def confirm(self, batch: Batch) -> None:
        with self._lock:
            if not self._is_open:
                return
            for _ in range(batch.lines):
                line, _ = self._lines.popleft()
                self._bytes -= _size(line)
            self._seq += batch.lines
            self._batch = None

    def renumber(self, seq: int) -> None:
        with self._lock:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._lock:
            self._is_open = False
            self._lines.clear()
            self._bytes, self._batch = 0, None

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)
        self._news.clear()

    def wake(self) -> None:
        self._news.set()


def _size(line: bytes) -> int:
    return len(line) + _OVERHEAD_BYTES
