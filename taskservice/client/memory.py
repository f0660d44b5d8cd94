"""Lines that wait in memory, for programs that write them with Python."""

import threading
from collections import deque
from collections.abc import Sequence

from taskservice.client.sender import Batch

# So much may wait; then whoever writes must wait too.
MOST_BYTES = 16 * 1024 * 1024
# What a line costs beside its text.
_BYTES_OF_LINE = 64


class Memory:
    """Lines in order; whoever adds some waits for room before."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._seq = 1
        self._batch: Batch | None = None
        self._open = True
        self._woken = False
        self._changed = threading.Condition()

    def has_room(self, seconds: float) -> bool:
        """Whether there is room for more lines, or will be in so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._bytes < MOST_BYTES, seconds)

    def count(self) -> int:
        """How many lines wait."""
        with self._changed:
            return len(self._lines)

    def put(self, lines: Sequence[bytes]) -> None:
        with self._changed:
            if self._open:
                self._lines.extend(lines)
                self._bytes += sum(map(_cost, lines))
                self._changed.notify_all()

    def peek(self, most: int) -> Batch | None:
        with self._changed:
            if self._batch is None or len(self._batch.data) > most:
                self._batch = self._take(most)
            return self._batch

    def _take(self, most: int) -> Batch | None:
        taken: list[bytes] = []
        size = 0
        for line in self._lines:
            size += len(line) + 1
            if taken and size > most:
                break
            taken.append(line + b"\n")
        return Batch(self._seq, len(taken), b"".join(taken)) if taken else None

    def confirm(self, batch: Batch) -> None:
        with self._changed:
            if not self._open:
                return
            for _ in range(batch.lines):
                self._bytes -= _cost(self._lines.popleft())
            self._seq += batch.lines
            self._batch = None
            self._changed.notify_all()

    def renumber(self, seq: int) -> None:
        with self._changed:
            self._seq, self._batch = seq, None

    def discard(self) -> None:
        with self._changed:
            self._open = False
            self._lines.clear()
            self._bytes, self._batch = 0, None
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._woken, seconds)
            self._woken = False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()


def _cost(line: bytes) -> int:
    return len(line) + _BYTES_OF_LINE
