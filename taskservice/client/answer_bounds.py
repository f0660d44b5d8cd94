"""Bounds the time and size of a whole answer; `requests` only bounds the wait for each part."""

import io
import math
import socket
import threading
import time
from http.client import HTTPResponse
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

# An answer that arrives faster than this never times out.
MIN_BYTES_PER_SECOND = 16 * 1024
# More than the framing of an answer in small chunks takes.
_MAX_FRAMING = 2
_thread = threading.local()


class AnswerTooLarge(Exception):
    """The answer, with its head and framing, is larger than any valid one."""


def set_max_bytes(max_bytes: int) -> None:
    """Set the largest body that the next answers in this thread may have."""
    _thread.max_bytes = max_bytes * _MAX_FRAMING


class _Limited(io.RawIOBase):
    """Limits what a socket receives; the timeout is for all of it, and grows with each byte."""

    def __init__(self, received: io.RawIOBase, sock: socket.socket) -> None:
        self._received, self._socket = received, sock
        self._seconds = sock.gettimeout() or 0.0
        self._until = time.monotonic() + self._seconds
        self._bytes_left = getattr(_thread, "max_bytes", math.inf)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._seconds:
            self._socket.settimeout(self._time_left())
        count: int | None = self._received.readinto(buffer)
        # The next request may be sent on this connection.
        self._socket.settimeout(self._seconds or None)
        self._bytes_left -= count or 0
        if self._bytes_left < 0:
            raise AnswerTooLarge
        earned = (count or 0) / MIN_BYTES_PER_SECOND
        self._until = min(self._until + earned, time.monotonic() + self._seconds)
        return count

    def _time_left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("The answer takes too long")
        return left

    def close(self) -> None:
        self._received.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Limited(self.fp.detach(), sock))


class _Connection(HTTPConnection):
    response_class = _Response


class _TLSConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class Adapter(HTTPAdapter):
    """Limits the answers of a session of `requests`, through a proxy of the environment too."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _limit(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return _limit(super().proxy_manager_for(*args, **kwargs))


def _limit(manager: Any) -> Any:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return manager
