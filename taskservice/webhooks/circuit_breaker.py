"""Skips the first attempt of a delivery if its receiver has failed several times in a row."""

import threading
import time
from typing import NamedTuple
from urllib.parse import urlsplit

MAX_FAILURES = 3  # failures in a row that open the circuit
OPEN_SECONDS = 60.0  # the time from the last failure until the circuit closes
# The maximum number of receivers whose failures are counted. If there are more, the receiver with
# the oldest failure is removed.
MAX_RECEIVERS = 1_000


class Receiver(NamedTuple):
    """A host and a user: a host that fails for one user's callbacks may work for another user's."""

    user_id: str
    host: str  # including the port, as in the URL


def host_of(url: str) -> str:
    """The host of a URL with its port, in lower case; empty for an email address."""
    return urlsplit(url).netloc.lower()


class CircuitBreaker:
    """Opens for a receiver after MAX_FAILURES in a row; closes OPEN_SECONDS after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # For each receiver, the number of failures in a row and the time of the last failure. The
        # receivers are sorted by the time of the last failure.
        self._failures: dict[Receiver, tuple[int, float]] = {}

    def is_open(self, receiver: Receiver) -> bool:
        return self._recent_failures(receiver) >= MAX_FAILURES

    def open_receivers(self) -> set[Receiver]:
        with self._lock:
            return {receiver for receiver in self._failures if self.is_open(receiver)}

    def record(self, receiver: Receiver, *, has_failed: bool) -> None:
        """Count a failed attempt; a successful attempt resets the count of the receiver."""
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
