"""What the threads of a process share: slots, and the news that it is about to stop."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock


class Slots:
    """Places for so many threads at once."""

    def __init__(self, places: int) -> None:
        self._places = BoundedSemaphore(places)

    @contextmanager
    def place(self, seconds: float = 0.0) -> Iterator[bool]:
        """Hold a place until the end of the block; False when none gets free in so many seconds."""
        has_place = self._places.acquire(timeout=seconds)
        try:
            yield has_place
        finally:
            if has_place:
                self._places.release()


class SharedSlots:
    """Places for so many threads at once, the last of which is for a user who holds none."""

    def __init__(self, places: int) -> None:
        self._lock = Lock()
        self._free = places
        self._held: Counter[str] = Counter()

    @contextmanager
    def place(self, user_id: str) -> Iterator[bool]:
        """Hold a place for this user until the end of the block; False when there is none."""
        has_place = self._take(user_id)
        try:
            yield has_place
        finally:
            if has_place:
                self._give_back(user_id)

    def _take(self, user_id: str) -> bool:
        with self._lock:
            has_place = self._free > (user_id in self._held)
            if has_place:
                self._free -= 1
                self._held[user_id] += 1
            return has_place

    def _give_back(self, user_id: str) -> None:
        with self._lock:
            self._free += 1
            # Leaves out those who hold none.
            self._held -= Counter([user_id])


# Set once, by `begin`; what holds an answer open or works in the background ends then.
stopping = threading.Event()
_callbacks: list[Callable[[], None]] = []


def on_stop(callback: Callable[[], None]) -> None:
    """Has `callback` called when the process is about to stop, at once if it already is.

    It runs between the signal and the stop, so it must be quick: notify, don't work.
    """
    _callbacks.append(callback)
    if stopping.is_set():
        callback()


def begin_stop() -> None:
    """Sets `event` and makes the calls.

    Not for a signal handler: one that interrupted this very call would wait for it for ever.
    """
    stopping.set()
    for callback in _callbacks:
        callback()
