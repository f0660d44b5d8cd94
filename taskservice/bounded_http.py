"""A `requests` session that limits the time and size of responses and follows no redirects."""

import functools
import http.client
import io
import math
import socket
import ssl
import time
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse, RemoteDisconnected
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection


@functools.cache
def tls_context() -> ssl.SSLContext:
    """A TLS context that trusts the CAs of `requests`, and the CAs of the system or SSL_CERT_FILE.

    The context is cached, since reading the certificates takes 10 ms.
    """
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


class TooLargeError(Exception):
    """The response, including its headers and framing, is larger than allowed."""


class Deadline:
    """The time limit of an operation that begins when this object is created."""

    def __init__(self, seconds: float, min_rate: float = math.inf) -> None:
        """Data that arrives faster than `min_rate` bytes a second extends the deadline."""
        self.seconds = seconds
        self._min_rate = min_rate
        self._started = time.monotonic()
        self._until = self._started + seconds

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def remaining(self) -> float:
        """The remaining seconds. Raises TimeoutError if no time remains."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def extend(self, received: int) -> None:
        extended = self._until + received / self._min_rate
        self._until = min(extended, time.monotonic() + self.seconds)


@dataclass
class Limits:
    """Limits the size, including headers and framing, and the time of each response.

    A change of a limit applies to the next response and all later responses.
    """

    max_bytes: int
    deadline: Deadline | None = None  # if None, the socket's timeout applies
    min_rate: float = math.inf

    def apply(self, connection: http.client.HTTPConnection) -> None:
        connection.response_class = cast(type[HTTPResponse], functools.partial(_Response, self))


class _Response(HTTPResponse):
    def __init__(self, limits: Limits, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._limited = LimitedStream(self.fp.detach(), sock, limits)
        self.fp = io.BufferedReader(self._limited)

    def begin(self) -> None:
        """Skip interim responses, such as status 103; the base class skips only status 100."""
        super().begin()
        while 101 < self.status < 200:
            self.headers = cast(HTTPMessage, None)  # otherwise, `begin` would return immediately
            super().begin()
        self._limited.in_headers = False


class LimitedStream(io.RawIOBase):
    """Reads a response from a socket and enforces the limits."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, limits: Limits) -> None:
        self._stream, self._sock = stream, sock
        seconds = cast(float, sock.gettimeout())
        self._deadline = limits.deadline or Deadline(seconds, limits.min_rate)
        self._bytes_left = limits.max_bytes
        self.in_headers = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._bytes_left:
            raise TooLargeError("the response is too large")
        self._sock.settimeout(self._deadline.remaining())
        count = self._stream.readinto(memoryview(buffer)[: self._bytes_left]) or 0
        if not count and self.in_headers:  # the base class would accept incomplete headers
            raise RemoteDisconnected("Remote end closed connection without response")
        self._bytes_left -= count
        self._deadline.extend(count)
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class Session(requests.Session):
    """Limits each response. Follows no redirects, since a redirect would forward the headers."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.headers["Accept-Encoding"] = "identity"
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(limits))

    def get_redirect_target(self, response: requests.Response) -> None:
        # With `allow_redirects=False`, `requests` would still read the body of a redirect.
        return None


class _Adapter(HTTPAdapter):
    """Applies the limits to every connection, including connections through a proxy."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        pool.ConnectionCls = functools.partial(self._connection, type(pool).ConnectionCls)
        return pool

    def build_connection_pool_key_attributes(self, *args: Any, **options: Any) -> Any:
        host, pool = super().build_connection_pool_key_attributes(*args, **options)
        if host["scheme"] == "https":
            pool["ssl_context"] = tls_context()
        return host, pool

    def build_response(self, request: Any, response: Any) -> requests.Response:
        # The limit applies to the received bytes; a decompressed response could be a thousand times
        # larger.
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise requests.RequestException("the response is compressed")
        return super().build_response(request, response)

    def _connection(self, kind: type[HTTPConnection], **options: Any) -> HTTPConnection:
        connection = kind(**options)
        self._limits.apply(connection)
        return connection
