"""Lines that wait in memory to be sent, written by a Python program."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from taskservice.client.flag import Flag
from taskservice.client.sender import Batch

# When this much waits, the program waits too.
MAX_BYTES = 16 * 1024 * 1024
# The memory that a line takes besides its text.
_OVERHEAD_BYTES = 64
# Between two checks for space.
_POLL_SECONDS = 0.02


class MemoryQueue:
    """A LineQueue in memory; before adding lines, call `wait_for_space`.

    Ctrl-C may come while lines are added. It cannot come between taking this lock and entering
    the `with`, as it can with a Condition, which would stay locked.
    """

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
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

    def put(self, lines: Sequence[bytes]) -> None:
        with self._lock:
            if self._is_open:
                self._lines.extend(lines)
                self._bytes += sum(map(_size, lines))
        self._news.set()

    def peek(self, max_bytes: int) -> Batch | None:
        with self._lock:
            if self._batch is None or len(self._batch.data) > max_bytes:
                self._batch = self._next_batch(max_bytes)
            return self._batch

    def _next_batch(self, max_bytes: int) -> Batch | None:
        taken: list[bytes] = []
        size = 0
        for line in self._lines:
            size += len(line) + 1
            if taken and size > max_bytes:
                break
            taken.append(line + b"\n")
        return Batch(self._seq, len(taken), b"".join(taken)) if taken else None

    def confirm(self, batch: Batch) -> None:
        with self._lock:
            if not self._is_open:
                return
            for _ in range(batch.lines):
                self._bytes -= _size(self._lines.popleft())
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
