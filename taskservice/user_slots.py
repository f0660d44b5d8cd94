"""Limits concurrent costly requests of a process, so that no user can take all its capacity."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from taskservice.database.transactions import end_shared_reading
from taskservice.errors import overloaded


class UserSlots:
    """Slots for requests that do the same costly work; a user holds at most `per_user` slots.

    Since a waiting request occupies a thread, only one request of each user can wait for a slot.
    """

    def __init__(self, count: int, wait_seconds: float, refusal: str, per_user: int = 1) -> None:
        self._count, self._per_user = count, per_user
        self.wait_seconds, self._refusal = wait_seconds, refusal
        self._changed = Condition()
        # The ID of the user who holds each used slot.
        self._holding: list[str] = []
        self._waiting = set[str]()

    @contextmanager
    def hold(self, user_id: str) -> Iterator[None]:
        """Hold a slot for this user; raises 503 if no slot becomes free in time."""

        def is_free() -> bool:
            is_allowed = self._holding.count(user_id) < self._per_user
            return is_allowed and len(self._holding) < self._count

        with self._changed:
            if not is_free():
                if user_id in self._waiting:
                    raise overloaded(self._refusal)
                end_shared_reading()
                self._waiting.add(user_id)
                try:
                    if not self._changed.wait_for(is_free, self.wait_seconds):
                        raise overloaded(self._refusal)
                finally:
                    self._waiting.remove(user_id)
            self._holding.append(user_id)
        try:
            yield
        finally:
            with self._changed:
                self._holding.remove(user_id)
                self._changed.notify_all()
