"""An event that one thread waits for, and that Ctrl-C cannot leave locked."""

from contextlib import suppress
from queue import Empty, SimpleQueue


class Flag:
    """Like threading.Event, but safe with Ctrl-C.

    Event takes its lock in Python code, where a KeyboardInterrupt can leave the lock held, so that
    waiting threads wait for ever. `put` and `get` of a SimpleQueue can't be interrupted halfway.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._calls: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        if not self._is_set:
            self._calls.put(None)
            self._is_set = True

    def clear(self) -> None:
        """For the thread that waits."""
        self._is_set = False
        with suppress(Empty):
            while True:
                self._calls.get_nowait()

    def wait(self, seconds: float) -> None:
        """Return when it is set, now and then before, or after this many seconds."""
        if not self._is_set:
            with suppress(Empty):
                self._calls.get(timeout=seconds)
