"""Lets another thread end an attempt before the receiver responds."""

import contextlib
import socket
import threading


class Interrupted(Exception):
    """Another thread ended the attempt before the receiver responded."""


class Interrupt:
    """Ends one attempt at its next operation: a lookup, connect, send or wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._socket: socket.socket | None = None

    def set(self) -> None:
        """Make the attempt end soon, without waiting for its end."""
        with self._lock:
            self._is_set = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the receiver may have closed the connection
                    # SSLSocket.shutdown is not used: the socket would send without encryption
                    # afterwards.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise Interrupted if `set` was called."""
        if self._is_set:
            raise Interrupted

    def watch(self, connection: socket.socket) -> None:
        """Let `set` shut down this connection; raises Interrupted if `set` was called before."""
        with self._lock:
            self.check()
            self._socket = connection
