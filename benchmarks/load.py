"""Load over a few kept-alive connections."""

import math
import re
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# A few failures do not spoil the measurement.
TOLERATED = 0.01


@dataclass(frozen=True)
class Load:
    """How many requests were answered well a second, in how many milliseconds."""

    rate: float
    p50: float
    p95: float


def request(method: str, path: str, key: str = "", body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one request; `_` in the name of a header stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if key:
        lines.append(f"apikey: {key}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(port: int, requests: Sequence[bytes], seconds: float, connections: int = 16) -> Load:
    """Send these requests in turn; raises RuntimeError if too many of them fail."""
    return _send(port, cycle(requests), seconds, connections)


def load_once(port: int, requests: Sequence[bytes], connections: int = 1) -> Load:
    """Send each of these requests once; raises RuntimeError if too many of them fail."""
    return _send(port, iter(requests), math.inf, connections)


class _Connection:
    """A connection that has one request under way at a time."""

    def __init__(self, port: int, requests: Iterator[bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._requests = requests
        self.send()

    def send(self) -> bool:
        """Send the next request; returns whether there was one."""
        data = next(self._requests, None)
        self._answer = b""
        self._began = time.perf_counter()
        if data is not None:
            self.socket.sendall(data)
        return data is not None

    def receive(self) -> tuple[float, bool] | None:
        """The seconds until the answer was complete and whether it is one; None before."""
        part = self.socket.recv(262_144)
        if not part:
            raise RuntimeError(f"The connection was closed after {self._answer[:500]!r}")
        self._answer += part
        if not is_complete(self._answer):
            return None
        return time.perf_counter() - self._began, self._answer[9:10] in b"23"


def is_complete(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    if head[9:12] in (b"304", b"204"):
        return True
    length = LENGTH.search(head)
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


def _send(port: int, requests: Iterator[bytes], seconds: float, connections: int) -> Load:
    times, failed = [], 0
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = _Connection(port, requests)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while selector.get_map():
            for key, _ in selector.select():
                if (received := key.data.receive()) is None:
                    continue
                times.append(received[0])
                failed += not received[1]
                if time.perf_counter() - began > seconds or not key.data.send():
                    selector.unregister(key.data.socket)
                    key.data.socket.close()
    if failed > TOLERATED * len(times):
        raise RuntimeError(f"{failed} of {len(times)} requests failed")
    p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    rate = (len(times) - failed) / (time.perf_counter() - began)
    return Load(rate, statistics.median(times) * 1000, p95 * 1000)
