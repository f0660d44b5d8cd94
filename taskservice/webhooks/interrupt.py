"""Ends an attempt from another thread: its connection breaks, and it sends nothing more."""

import contextlib
import socket
import threading


class Interrupted(Exception):
    """The attempt was ended from outside, before the receiver had answered."""


class Interrupt:
    """What breaks one attempt, wherever it is: in a lookup, connecting, sending or waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._socket: socket.socket | None = None

    def set(self) -> None:
        """From now on the receiver gets nothing more of it; does not wait for its end."""
        with self._lock:
            self._is_set = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # its other end may have gone already
                    # Not its own `shutdown`: over TLS that would send on in the clear.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises Interrupted once it was set."""
        if self._is_set:
            raise Interrupted

    def watch(self, connection: socket.socket) -> None:
        """Break this connection when it is set; raises Interrupted if it was."""
        with self._lock:
            self.check()
            self._socket = connection

    def release(self) -> None:
        """Leave the connection alone, whose number may soon be another's."""
        with self._lock:
            self._socket = None
