"""Sends responses as fast as their clients read them, and limits the threads that wait."""

import select
import socket
import time
from contextlib import suppress
from threading import Lock

from taskservice import resources
from taskservice.serving.connection import Connection

PIECE_SIZE = 64 * 1024
# A client that reads nothing for this time is slow.
SLOW_MILLISECONDS = 100


class ClientGoneError(Exception):
    """The client closed the connection, or reads the response too slowly."""


class Sender:
    """Sends for all threads; at most `limit` of them wait for slow clients at a time.

    The pool starts a thread in place of each that waits, if it can; at most one thread waits
    without a replacement. Past these limits, the connection that has waited longest is shut down.
    A client has `seconds` for 64 KiB, `stop_seconds` once the process stops.
    """

    def __init__(self, limit: int, seconds: float, stop_seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._stop_seconds = stop_seconds
        self._slow: dict[Connection, None] = {}
        # Those that were shut down, until their threads notice it.
        self._cut_off: set[Connection] = set()
        self._lock = Lock()

    def send(self, connection: Connection, data: bytes) -> None:
        """Returns when the kernel has all of `data`; raises ClientGoneError."""
        try:
            sent = _send_some(connection.sock, data)
            for start in range(sent, len(data), PIECE_SIZE):
                self._send_piece(connection, memoryview(data)[start : start + PIECE_SIZE])
        except OSError as error:
            raise ClientGoneError from error

    def _send_piece(self, connection: Connection, piece: memoryview) -> None:
        began = time.monotonic()
        try:
            while piece:
                if _is_writable(connection.sock):
                    piece = piece[_send_some(connection.sock, piece) :]
                else:
                    self._note_slow(connection)
                if time.monotonic() - began > self._timeout():
                    raise ClientGoneError("too slow")
        finally:
            with self._lock:
                self._slow.pop(connection, None)
                self._cut_off.discard(connection)

    def _timeout(self) -> float:
        return self._stop_seconds if resources.stopping.is_set() else self._seconds

    def _note_slow(self, connection: Connection) -> None:
        with self._lock:
            if connection in self._cut_off:
                raise ClientGoneError("others wait too")
            if connection not in self._slow and len(self._slow) >= self._limit:
                self._shut_down(next(iter(self._slow)))
            self._slow[connection] = None
        if not connection.has_replacement:
            connection.has_replacement = connection.pool.add_thread()
            self._keep_one_without_replacement()

    def _keep_one_without_replacement(self) -> None:
        with self._lock:
            without = [each for each in self._slow if not each.has_replacement]
            for connection in without[:-1]:
                self._shut_down(connection)

    def _shut_down(self, connection: Connection) -> None:
        del self._slow[connection]
        self._cut_off.add(connection)
        with suppress(OSError):
            # Wakes the waiting thread, whose next send fails.
            connection.sock.shutdown(socket.SHUT_RDWR)


def _is_writable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(SLOW_MILLISECONDS))


def _send_some(sock: socket.socket, data: bytes | memoryview) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
