"""Lets another thread end an attempt before the receiver responds."""

import contextlib
import socket
import threading


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
                    # Not SSLSocket.shutdown, after which the socket would send without encryption.
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
