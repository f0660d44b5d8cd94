"""Which hosts are not worth a wait, since their last attempts have just failed."""

import time
from threading import Lock
from typing import NamedTuple

IN_A_ROW = 3
SECONDS = 60.0
HOSTS = 1_000


class _Failures(NamedTuple):
    in_a_row: int
    last: float


class CircuitBreaker:
    """Contains a host when its last attempts failed, three in a row, the last within a minute.

    Remembers of the hosts that failed the thousand which did so last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        # In the order of their last failure.
        self._failures: dict[str, _Failures] = {}

    def __contains__(self, host: str) -> bool:
        return self._recent(host) >= IN_A_ROW

    def all(self) -> set[str]:
        """The hosts that are in here now."""
        with self._lock:
            return {host for host in self._failures if host in self}

    def note(self, host: str, *, has_failed: bool) -> None:
        """Take down how an attempt ended."""
        with self._lock:
            count = self._recent(host)
            self._failures.pop(host, None)
            if has_failed:
                self._failures[host] = _Failures(count + 1, time.monotonic())
                if len(self._failures) > HOSTS:
                    del self._failures[next(iter(self._failures))]

    def _recent(self, host: str) -> int:
        failures = self._failures.get(host)
        if failures is None or time.monotonic() - failures.last > SECONDS:
            return 0
        return failures.in_a_row
