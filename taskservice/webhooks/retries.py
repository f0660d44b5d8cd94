"""The retry schedule of failed webhooks, and the circuit breaker for their receivers."""

import time
from threading import Lock
from typing import NamedTuple

# Seconds from each failed attempt to the next one; after the last of them the delivery fails.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
# The random part of each delay, which makes it shorter or longer.
JITTER = 0.2
# The maximum delay that a receiver can ask for.
MAX_RETRY_AFTER = 86_400.0
LONGEST_DELAY_SECONDS = max(max(SCHEDULE) * (1 + JITTER), MAX_RETRY_AFTER)

MAX_FAILURES = 3
OPEN_SECONDS = 60.0
MAX_RECEIVERS = 1_000


class Receiver(NamedTuple):
    """A host in one user's callbacks: at the same host, another user's callbacks may work."""

    user_id: str
    # With the port, as in the URL.
    host: str


class CircuitBreaker:
    """Opens for a receiver after three failures in a row, until a minute after the last."""

    def __init__(self) -> None:
        self._lock = Lock()
        # How many in a row, and when the last one was; in the order of these times.
        self._failures: dict[Receiver, tuple[int, float]] = {}

    def is_open(self, receiver: Receiver) -> bool:
        return self._recent_failures(receiver) >= MAX_FAILURES

    def open_receivers(self) -> set[Receiver]:
        with self._lock:
            return {receiver for receiver in self._failures if self.is_open(receiver)}

    def record(self, receiver: Receiver, *, has_failed: bool) -> None:
        """Count how an attempt ended: a success resets the count of its receiver."""
        with self._lock:
            count = self._recent_failures(receiver)
            self._failures.pop(receiver, None)
            if has_failed:
                self._failures[receiver] = (count + 1, time.monotonic())
                if len(self._failures) > MAX_RECEIVERS:
                    del self._failures[next(iter(self._failures))]

    def _recent_failures(self, receiver: Receiver) -> int:
        in_a_row, last = self._failures.get(receiver, (0, 0.0))
        return 0 if time.monotonic() - last > OPEN_SECONDS else in_a_row
