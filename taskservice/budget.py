"""How many threads of a process may wait at once for what is not in our hands."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore


class Budget:
    """Places for so many threads; nobody waits for one."""

    def __init__(self, places: int) -> None:
        self._places = BoundedSemaphore(places)

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place until the end of the block; False when none is free."""
        has_place = self._places.acquire(blocking=False)
        try:
            yield has_place
        finally:
            if has_place:
                self._places.release()
