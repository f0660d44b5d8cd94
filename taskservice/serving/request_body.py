"""The body of a request while it arrives, and how much memory all bodies may use."""

from collections import Counter
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from threading import Lock

from taskservice.serving.refusals import OverloadedError

# A body of up to this many bytes stays in memory and uses nothing of the budget.
SMALL_BODY = 64 * 1024


class BodyBudget:
    """Limits the bytes that the large bodies of all requests use together.

    No owner may use more than what is left free: one alone gets half, two get a third each.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._used: Counter[str] = Counter()
        self._lock = Lock()

    def acquire(self, size: int, owner: str) -> None:
        with self._lock:
            if self._used[owner] + size > self._free - size:
                raise OverloadedError
            self._add(size, owner)

    def release(self, size: int, owner: str) -> None:
        with self._lock:
            self._add(-size, owner)

    def _add(self, size: int, owner: str) -> None:
        self._free -= size
        self._used[owner] += size
        if not self._used[owner]:
            del self._used[owner]


class RequestBody(SpooledTemporaryFile[bytes]):
    """The body of a request: in memory while it is small, in a file above `SMALL_BODY` bytes."""

    def __init__(self, budget: BodyBudget, owner: str) -> None:
        super().__init__(SMALL_BODY)
        self.size = 0
        self._budget = budget
        self._owner = owner
        self._acquired = 0

    def add(self, data: bytes) -> None:
        """Append `data`; raises OverloadedError when the budget or the disk is used up."""
        self.size += len(data)
        if self.size > SMALL_BODY:
            self._budget.acquire(len(data), self._owner)
            self._acquired += len(data)
        try:
            self.write(data)
        except OSError as error:
            raise OverloadedError from error

    def rewind(self) -> None:
        """Make it ready to be read; raises OverloadedError when the disk is full."""
        try:
            self.seek(0)
        except OSError as error:
            raise OverloadedError from error

    def close(self) -> None:
        with suppress(OSError):
            # A full disk fails here once more: closing flushes what was buffered.
            super().close()
        self._budget.release(self._acquired, self._owner)
        self._acquired = 0
