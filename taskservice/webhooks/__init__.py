"""Signed webhooks, without database and settings; here outcomes, retries, circuit breaker."""

import contextlib
import socket
import threading
import time
from typing import NamedTuple
from urllib.parse import urlsplit


class Interrupted(Exception):
    """Another thread ended the attempt before the receiver responded."""


class Interrupt:
    """Ends one attempt at its next step: a look-up, a connect, a send or a wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._socket: socket.socket | None = None

    def set(self) -> None:
        """Stop sending; does not wait for the attempt to end."""
        with self._lock:
            self._is_set = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the receiver may have closed it
                    # Not SSLSocket.shutdown, after which the socket would send in the clear.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises Interrupted after `set`."""
        if self._is_set:
            raise Interrupted

    def watch(self, connection: socket.socket) -> None:
        """Break this connection at `set`; raises Interrupted if it was set before."""
        with self._lock:
            self.check()
            self._socket = connection


class Outcome(NamedTuple):
    message: str  # one sentence for a person, without secrets and without path or query
    delivered: bool = False  # the response was 2xx
    permanent: bool = False  # do not try again: the URL is refused, or the response was 410
    status_code: int | None = None  # None without a response
    retry_after: float | None = None  # seconds that the receiver asks for, at most a day
    duration_ms: int = 0
    answer: str | None = None  # the first KiB of the response's body

    @property
    def failure(self) -> str | None:
        """The kind of the failure, as MCP's events name it; None if there was none."""
        if self.delivered:
            return None
        if self.status_code is not None:
            return "http_5xx" if self.status_code >= 500 else "http_4xx"
        # See the sentences in `transport`.
        if " within " in self.message:
            return "timeout"
        is_of_tls = self.message.startswith("The certificate") or " TLS " in self.message
        return "tls_error" if is_of_tls else "connection_refused"


# The retry schedule of failed webhooks, and the circuit breaker for their receivers.

# Seconds from each failed attempt to the next one; after the last of them the delivery fails.
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2  # the random part of each delay, which makes it shorter or longer
MAX_RETRY_AFTER = 86_400.0  # the maximum delay that a receiver can ask for
LONGEST_DELAY_SECONDS = max(max(SCHEDULE) * (1 + JITTER), MAX_RETRY_AFTER)

MAX_FAILURES = 3
OPEN_SECONDS = 60.0
MAX_RECEIVERS = 1_000


class Receiver(NamedTuple):
    """A host in one user's callbacks: at the same host, another user's callbacks may work."""

    user_id: str
    host: str  # with the port, as in the URL


def host_of(url: str) -> str:
    """The host of a URL with its port, in lower case; empty for a mail address."""
    return urlsplit(url).netloc.lower()


class CircuitBreaker:
    """Opens for a receiver after three failures in a row, until a minute after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
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
