"""A response that is sent by our own function instead of gunicorn's."""

import socket
from collections.abc import Callable

from gunicorn.config import Config
from gunicorn.http import wsgi

from taskservice.serving.request_parser import Request

# Larger parts are sent one by one, since joining them would copy them.
MAX_JOINED = 256 * 1024


class Response(wsgi.Response):
    """gunicorn's response; sends its head in one packet with the first piece of the body."""

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
        """Whether some of it was sent, so that no other response can replace it."""
        return self.headers_sent and not self._head

    @property
    def is_complete(self) -> bool:
        """Whether all of it was sent, and as much as its Content-Length promised."""
        return self._is_finished and (self._omits_body or self.response_length in (None, self.sent))

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{k}: {v}\r\n" for k, v in self.headers), "\r\n"]
            self._head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def write(self, piece: bytes) -> None:
        super().write(piece)
        if not piece:
            self._send_parts()

    def close(self) -> None:
        self.send_headers()
        self._send_parts(b"0\r\n\r\n" if self.chunked else b"")
        self._is_finished = True

    def _emit_body(self, piece: bytes) -> None:
        if self.chunked:
            self._send_parts(b"%X\r\n" % len(piece), piece, b"\r\n")
        else:
            self._send_parts(piece)

    def _send_parts(self, *parts: bytes) -> None:
        parts = (self._head, *parts)
        self._head = b""
        if sum(map(len, parts)) <= MAX_JOINED:
            parts = (b"".join(parts),)
        for part in filter(None, parts):
            self._send(part)
