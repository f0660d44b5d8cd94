"""Load over a few kept-alive connections: by wrk where it is installed, else by this module."""

import math
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

WRK = shutil.which("wrk")
# wrk counts whole seconds only.
WRK_SECONDS = 1.0
SCRIPT = """
local all, number = {%s}, 0
request = function() number = number %% #all + 1; return all[number] end
done = function(summary, latency, requests)
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format("\\n@ %%d %%d %%d %%d %%d\\n", summary.requests - errors.status,
    errors.status + lost, summary.duration, latency:percentile(50), latency:percentile(95)))
end
"""
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# A few failures are no failure of the measurement.
TOLERATED = 0.01


@dataclass(frozen=True)
class Load:
    """How many requests were answered well a second, in how many milliseconds; how many were not.

    `failed` is a share.
    """

    rate: float
    p50: float
    p95: float
    failed: float


def request(method: str, path: str, key: str = "", body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one request; `_` in the name of a header stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if key:
        lines.append(f"apikey: {key}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    connections: int = 16,
    tolerated: float = TOLERATED,
) -> Load:
    """Send these requests in turn; raises RuntimeError if a larger share than `tolerated` fails."""
    # wrk gives up an answer that is not there at its end, which a single client may wait for.
    if WRK and seconds >= WRK_SECONDS and connections > 1:
        taken = _by_wrk(port, requests, seconds, connections)
    else:
        taken = _by_sockets(port, cycle(requests), seconds, connections)
    if taken.failed > tolerated:
        raise RuntimeError(f"{taken.failed:.0%} of the requests failed")
    return taken


def load_once(port: int, requests: Sequence[bytes]) -> Load:
    """Send each of these requests once, one after the other, as one client."""
    taken = _by_sockets(port, iter(requests), math.inf, connections=1)
    if taken.failed:
        raise RuntimeError(f"{taken.failed:.0%} of the requests failed")
    return taken


def _by_wrk(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> Load:
    assert WRK
    texts = ('"' + "".join(f"\\{byte:03d}" for byte in data) + '"' for data in requests)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % ", ".join(texts))
        script.flush()
        command = [WRK, "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "30s"]
        result = subprocess.run(
            [*command, "-s", script.name, f"http://127.0.0.1:{port}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    line = result.stdout[result.stdout.rindex("@") + 1 :]
    done, failed, microseconds, p50, p95 = map(int, line.split())
    share = failed / max(done + failed, 1)
    return Load(done / (microseconds / 1e6), p50 / 1000, p95 / 1000, share)


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


def _by_sockets(port: int, requests: Iterator[bytes], seconds: float, connections: int) -> Load:
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
    p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    rate = (len(times) - failed) / (time.perf_counter() - began)
    return Load(rate, statistics.median(times) * 1000, p95 * 1000, failed / len(times))
