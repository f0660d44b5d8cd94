"""Lines that wait in memory to be sent, written by a Python program."""

import threading
from collections import deque
from collections.abc import Sequence

from taskservice.client.sender import Batch

# When this much waits, the program waits too.
MAX_BYTES = 16 * 1024 * 1024
# The memory that a line takes besides its text.
_OVERHEAD_BYTES = 64


class MemoryQueue:
    """A LineQueue in memory; before adding lines, call `wait_for_space`."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._seq = 1
        self._batch: Batch | None = None
        self._is_open = True
        self._is_woken = False
        self._changed = threading.Condition()

    def wait_for_space(self, seconds: float) -> bool:
        """Wait at most `seconds` for space for more lines; false if there is none then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._bytes < MAX_BYTES, seconds)

    def count(self) -> int:
        """The number of lines that wait."""
        with self._changed:
            return len(self._lines)

    def put(self, lines: Sequence[bytes]) -> None:
        with self._changed:
            if self._is_open:
                self._lines.extend(lines)
                self._bytes += sum(map(_size, lines))
                self._changed.notify_all()

    def peek(self, max_bytes: int) -> Batch | None:
        with self._changed:
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
        with self._changed:
            if not self._is_open:
                return
            for _ in range(batch.lines):
                self._bytes -= _size(self._lines.popleft())
            self._seq += batch.lines
            self._batch = None
            self._changed.notify_all()

    def renumber(self, seq: int) -> None:
        with self._changed:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._changed:
            self._is_open = False
            self._lines.clear()
            self._bytes, self._batch = 0, None
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._is_woken, seconds)
            self._is_woken = False

    def wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()


def _size(line: bytes) -> int:
    return len(line) + _OVERHEAD_BYTES
