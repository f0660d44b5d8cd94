"""A receiver of webhooks on real sockets, which can also imitate every fault.

    with Receiver() as receiver:
        send(receiver.url)
        receiver.wait_for(1)
        receiver.requests[0].body

It returns 204 by default: `receiver.answer` is a behaviour for every path, and
`receiver.paths["/hook"]` one for a single path (without its query). A behaviour is any
function that takes an `Exchange`; the usual ones are below. Connections are served at
once, each in its thread; leaving the `with` ends them all.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.support.waiting import PATIENCE_SECONDS


@dataclass(frozen=True)
class Received:
    """One received request; header names are lower case."""

    method: str
    path: str  # with its query, as on the wire
    headers: dict[str, str]
    body: bytes
    at: float  # time.monotonic()


@dataclass(frozen=True)
class Exchange:
    """The argument of a behaviour: the request, and the connection for the response."""

    request: Received
    connection: socket.socket
    stopping: threading.Event

    def write(self, *parts: bytes) -> None:
        self.connection.sendall(b"".join(parts))

    def drip(self, parts: Iterable[bytes], every: float) -> None:
        """Write each part and pause, until the receiver stops or the sender disconnects."""
        for part in parts:
            self.write(part)
            if self.stopping.wait(every):
                return


Behaviour = Callable[[Exchange], None]


def answer(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes = b""
) -> Behaviour:
    """A whole response, with a Content-Length unless `headers` has its own framing."""
    fields = {"Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return raw(head + body)


def raw(data: bytes) -> Behaviour:
    """These bytes, then the connection closes."""
    return lambda exchange: exchange.write(data)


def silence(exchange: Exchange) -> None:
    """No response, and the connection remains open."""
    exchange.stopping.wait()


def held_until_closed(closed: threading.Event) -> Behaviour:
    """No response; sets `closed` when the sender has closed the connection."""

    def behave(exchange: Exchange) -> None:
        with contextlib.suppress(OSError):
            exchange.connection.recv(1)
        closed.set()

    return behave


def reset(data: bytes = b"") -> Behaviour:
    """These bytes, then a TCP reset."""

    def behave(exchange: Exchange) -> None:
        exchange.write(data)
        time.sleep(0.05)  # a reset would overtake the bytes
        linger = struct.pack("ii", 1, 0)
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return behave


def drip(data: bytes, every: float = 0.05, first: bytes = b"") -> Behaviour:
    """`first` at once, then `data` byte by byte, a byte each `every` seconds."""

    def behave(exchange: Exchange) -> None:
        exchange.write(first)
        exchange.drip((data[index : index + 1] for index in range(len(data))), every)

    return behave


def endless(data: bytes, first: bytes = b"") -> Behaviour:
    """`first`, then `data` repeatedly, as fast as it is read."""

    def behave(exchange: Exchange) -> None:
        exchange.write(first)
        while not exchange.stopping.is_set():
            exchange.write(data)

    return behave


def sip(size: int = 32768, every: float = 0.005) -> Behaviour:
    """No answer; with `reads_body=False` the body is taken by `size` bytes each `every` seconds."""

    def behave(exchange: Exchange) -> None:
        while exchange.connection.recv(size) and not exchange.stopping.wait(every):
            pass

    return behave


@dataclass
class Receiver:
    """A receiver on a free port of `host`; with `tls`, a server's context, it speaks TLS.

    `reads_body=False` leaves the body unread, as a receiver does that is slow or gone. While
    `shakes_hands` is cleared, no handshake of TLS begins.
    """

    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    reads_body: bool = True
    answer: Behaviour = field(default_factory=lambda: answer(204))
    paths: dict[str, Behaviour] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    shakes_hands: threading.Event = field(default_factory=threading.Event)
    connections: int = 0  # the connections accepted so far

    def __enter__(self) -> "Receiver":
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family, backlog=128)
        self.shakes_hands.set()
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.shakes_hands.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):  # it may be closed already
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The root; a path may be appended without its slash."""
        scheme = "https" if self.tls else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/"

    def wait_for(self, count: int, timeout: float = PATIENCE_SECONDS) -> list[Received]:
        """The requests, as soon as there are `count`; AssertionError after `timeout` seconds."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.requests) >= count, timeout)
            assert arrived, f"{len(self.requests)} of {count} requests came in {timeout} s"
            return list(self.requests)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            with self._changed:
                self.connections += 1
                self._open.add(connection)
                self._changed.notify_all()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        plain = connection
        try:
            if self.tls:
                self.shakes_hands.wait()
                connection = self.tls.wrap_socket(connection, server_side=True)
                with self._changed:
                    self._open.add(connection)
            request = self._read(connection)
            with self._changed:
                # A test that has seen this request can set the behaviour of the next one.
                behaviour = self.paths.get(request.path.partition("?")[0], self.answer)
                self.requests.append(request)
                self._changed.notify_all()
            behaviour(Exchange(request, connection, self._stopping))
        except (OSError, EOFError, ValueError):
            return  # the sender disconnected or does not speak HTTP, as in many tests
        finally:
            with self._changed:
                self._open -= {plain, connection}
            connection.close()

    def _read(self, connection: socket.socket) -> Received:
        with connection.makefile("rb") as stream:
            head = []
            while (line := stream.readline()) not in (b"\r\n", b"\n"):
                if not line:
                    raise EOFError
                head.append(line.decode("latin-1").rstrip("\r\n"))
            method, path, _ = head[0].split(" ")
            fields = (line.partition(":") for line in head[1:])
            headers = {name.lower(): value.strip() for name, _, value in fields}
            length = int(headers.get("content-length", 0)) if self.reads_body else 0
            body = stream.read(length)
            if len(body) < length:  # the sender died on the way: nothing has been received
                raise EOFError
        return Received(method, path, headers, body, time.monotonic())


def unused_port() -> int:
    """A port of 127.0.0.1 on which no program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Each request gets the next behaviour, and all later ones the last."""
    waiting = list(behaviours)

    def behave(exchange: Exchange) -> None:
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(exchange)

    return behave
