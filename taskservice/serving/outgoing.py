"""Sends answers as fast as their clients take them, and keeps slow clients out of the way."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from gunicorn.config import Config
from gunicorn.http import wsgi

from taskservice import resources
from taskservice.serving.connection import Connection
from taskservice.serving.incoming import Request

PIECE = 64 * 1024
# Larger parts leave one by one, since joining them would copy them.
MAX_JOINED = 256 * 1024
# A client that takes nothing for so long is a slow one.
SLOW_MILLISECONDS = 100


class ClientGoneError(Exception):
    """The client closed the connection, or takes the answer too slowly to go on."""


class Answer(wsgi.Response):
    """gunicorn's response; its head leaves in one packet with the first piece of the body."""

    headers_sent: bool
    _omits_body: bool

    def __init__(
        self, request: Request, sock: socket.socket, cfg: Config, send: Callable[[bytes], None]
    ) -> None:
        super().__init__(request, sock, cfg)
        self._send = send
        self._head = b""
        self._is_finished = False

    @property
    def has_begun(self) -> bool:
        """Whether some of it has left, so that nothing else can be answered any more."""
        return self.headers_sent and not self._head

    @property
    def is_whole(self) -> bool:
        """Whether all of it has left, which is as much as its Content-Length said."""
        return self._is_finished and (self._omits_body or self.response_length in (None, self.sent))

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{k}: {v}\r\n" for k, v in self.headers), "\r\n"]
            self._head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def write(self, piece: bytes) -> None:
        super().write(piece)
        if not piece:
            self._leave()

    def close(self) -> None:
        self.send_headers()
        self._leave(b"0\r\n\r\n" if self.chunked else b"")
        self._is_finished = True

    def _emit_body(self, piece: bytes) -> None:
        if self.chunked:
            self._leave(b"%X\r\n" % len(piece), piece, b"\r\n")
        else:
            self._leave(piece)

    def _leave(self, *parts: bytes) -> None:
        parts = (self._head, *parts)
        self._head = b""
        if sum(map(len, parts)) <= MAX_JOINED:
            parts = (b"".join(parts),)
        for part in filter(None, parts):
            self._send(part)


class Sender:
    """Sends for all threads; up to `limit` of them wait at a time for clients that are slow.

    Such a thread gets a stand-in by `hire`, which returns whether there is one: only one thread
    waits without. Past these limits, the client that has been waited for longest is cut off.
    A client may take `seconds` for 64 KiB, but `stop_seconds` once the process stops.
    """

    def __init__(
        self, hire: Callable[[], bool], limit: int, seconds: float, stop_seconds: float
    ) -> None:
        self._hire = hire
        self._limit = limit
        self._seconds = seconds
        self._stop_seconds = stop_seconds
        self._slow: dict[Connection, None] = {}
        self._lock = Lock()

    def send(self, connection: Connection, data: bytes) -> None:
        """Returns when all of `data` is with the kernel; raises ClientGoneError."""
        try:
            sent = _send_some(connection.sock, data)
            for start in range(sent, len(data), PIECE):
                self._send_piece(connection, memoryview(data)[start : start + PIECE])
        except OSError as error:
            raise ClientGoneError from error

    def _send_piece(self, connection: Connection, piece: memoryview) -> None:
        began = time.monotonic()
        try:
            while piece:
                if _is_writable(connection.sock):
                    piece = piece[_send_some(connection.sock, piece) :]
                else:
                    self._found_slow(connection)
                if time.monotonic() - began > self._patience():
                    raise ClientGoneError("too slow")
        finally:
            with self._lock:
                self._slow.pop(connection, None)

    def _patience(self) -> float:
        return self._stop_seconds if resources.stopping.is_set() else self._seconds

    def _found_slow(self, connection: Connection) -> None:
        with self._lock:
            if connection not in self._slow and len(self._slow) >= self._limit:
                self._cut_off(next(iter(self._slow)))
            self._slow[connection] = None
        if not connection.has_stand_in:
            connection.has_stand_in = self._hire()
            self._leave_one_without_stand_in()

    def _leave_one_without_stand_in(self) -> None:
        with self._lock:
            without = [each for each in self._slow if not each.has_stand_in]
            for connection in without[:-1]:
                self._cut_off(connection)

    def _cut_off(self, connection: Connection) -> None:
        del self._slow[connection]
        with suppress(OSError):
            # Wakes the thread that waits, which then finds the connection broken.
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
