"""Sends signed webhooks: a library that uses neither the database nor the settings."""

import contextlib
import socket
import threading
from typing import NamedTuple


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
    """How one attempt ended."""

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
