"""Remembers hosts whose last attempts failed, so that no request waits for them."""

import time
from threading import Lock
from typing import NamedTuple

MAX_FAILURES = 3
OPEN_SECONDS = 60.0
MAX_HOSTS = 1_000


class _Failures(NamedTuple):
    in_a_row: int
    last: float


class CircuitBreaker:
    """Is open for a host after three failures in a row, until a minute after the last one.

    It remembers the 1,000 hosts that failed last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        # In the order of their last failure.
        self._failures: dict[str, _Failures] = {}

    def is_open(self, host: str) -> bool:
        return self._recent_failures(host) >= MAX_FAILURES

    def open_hosts(self) -> set[str]:
        with self._lock:
            return {host for host in self._failures if self.is_open(host)}

    def record(self, host: str, *, has_failed: bool) -> None:
        """Count how an attempt ended: a success resets the count of its host."""
        with self._lock:
            count = self._recent_failures(host)
            self._failures.pop(host, None)
            if has_failed:
                self._failures[host] = _Failures(count + 1, time.monotonic())
                if len(self._failures) > MAX_HOSTS:
                    del self._failures[next(iter(self._failures))]

    def _recent_failures(self, host: str) -> int:
        failures = self._failures.get(host)
        if failures is None or time.monotonic() - failures.last > OPEN_SECONDS:
            return 0
        return failures.in_a_row
