"""How many threads of a process may wait at once for what is not in our hands."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore


class Budget:
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
