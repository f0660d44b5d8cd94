"""Sends responses as fast as clients read them, and the refusals of the server itself."""

import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from queue import SimpleQueue
from threading import Lock

from gunicorn.config import Config
from gunicorn.http import errors, wsgi
from gunicorn.util import http_date

from taskservice import resources
from taskservice.auth import KEY_HEADERS
from taskservice.errors import Problem, body
from taskservice.serving.request_parser import Request, RequestParser, Steps
from taskservice.terms import PROBLEM_TYPE

logger = logging.getLogger(__name__)


class ThreadPool:
    """Threads that run the `jobs`; a thread ends when its job returns False."""

    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        for _ in range(size):
            self.add_thread()

    def add_thread(self) -> None:
        # A daemon: a request that never ends must not keep the process from ending.
        resources.start_thread("pool", self._run)

    def _run(self) -> None:
        is_wanted = True
        while is_wanted:
            try:
                is_wanted = self.jobs.get()()
            except BaseException:
                # The error must not end the thread.
                logger.exception("Unhandled error in a thread of the pool")


def is_ready(sock: socket.socket, event: int, milliseconds: int = 0) -> bool:
    """Whether this event of `poll` happens within a time."""
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(milliseconds))


@dataclass(eq=False)
class Connection:
    """A client's socket and the request that arrives on it.

    It is `in_pool` while a thread of its `pool` has it, and `lingering` after its last response,
    until the client closes it. Otherwise it receives a request; `begun` means that the first bytes
    have arrived. At its `deadline` (monotonic) the worker stops waiting for the client; the whole
    request, refused or not, must arrive before the `request_deadline`. The `owner` is the user
    whose key was in the latest request, if known.
    """

    sock: socket.socket
    client: object
    server: object
    parser: RequestParser
    pool: ThreadPool
    owner: str | None = None
    active_at: float = 0.0
    deadline: float = inf
    request_deadline: float = inf
    watched: bool = False
    lingering: bool = False
    # Whether the pool started a thread in place of the one that has this connection.
    has_replacement: bool = False

    def expect_request(self) -> None:
        self.steps: Steps[Request] = self.parser.request()
        self.in_pool = False
        self.begun = False

    def replace_thread(self) -> None:
        """Start a thread in place of the one that has this connection until it has responded."""
        if not self.has_replacement:
            self.has_replacement = True
            self.pool.add_thread()


PIECE_SIZE = 64 * 1024
# A client that reads nothing for this time is slow.
SLOW_MILLISECONDS = 100


class ClientGoneError(Exception):
    """The client closed the connection, or reads the response too slowly."""


class Sender:
    """Sends for all threads; at most `limit` of them wait for slow clients at a time.

    The pool starts a thread in place of each waiting one. Above the limit, the connection that has
    waited longest is shut down; connections without a known owner come first. A client has
    `seconds` for 64 KiB, `stop_seconds` once the process stops.
    """

    def __init__(self, limit: int, seconds: float, stop_seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._stop_seconds = stop_seconds
        self._slow: dict[Connection, None] = {}
        self._lock = Lock()

    def send(self, connection: Connection, data: bytes) -> None:
        """Returns when the kernel has all of `data`; raises ClientGoneError."""
        try:
            sent = _send_some(connection, data)
            for start in range(sent, len(data), PIECE_SIZE):
                self._send_piece(connection, memoryview(data)[start : start + PIECE_SIZE])
        except OSError as error:
            raise ClientGoneError from error

    def _send_piece(self, connection: Connection, piece: memoryview) -> None:
        began = time.monotonic()
        try:
            while piece:
                if is_ready(connection.sock, select.POLLOUT, SLOW_MILLISECONDS):
                    piece = piece[_send_some(connection, piece) :]
                else:
                    self._note_slow(connection)
                seconds = self._stop_seconds if resources.stopping.is_set() else self._seconds
                if time.monotonic() - began > seconds:
                    raise ClientGoneError("too slow")
        finally:
            with self._lock:
                self._slow.pop(connection, None)

    def _note_slow(self, connection: Connection) -> None:
        with self._lock:
            self._slow[connection] = None
            if len(self._slow) > self._limit:
                longest = min(self._slow, key=lambda each: each.owner is not None)
                del self._slow[longest]
                with suppress(OSError):
                    # Wakes the waiting thread, whose next send fails.
                    longest.sock.shutdown(socket.SHUT_RDWR)
        connection.replace_thread()


def _send_some(connection: Connection, data: bytes | memoryview) -> int:
    try:
        return connection.sock.send(data)
    except BlockingIOError:
        return 0


# A larger piece of the body is sent apart from the headers: joining them would copy the piece.
MAX_JOINED = 256 * 1024


class Output:
    """Stands in for the socket of gunicorn's response.

    It keeps the headers, which are written first, until there is a piece of the body: both are
    sent in one packet, and until then another response can replace them.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._head: bytes | None = None
        self.has_begun = False

    def sendall(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
            return
        if len(data) > MAX_JOINED:
            self.flush()
        head, self._head = self._head, b""
        self.has_begun = True
        self._send(head + data)

    def flush(self) -> None:
        """Send the headers now, unless they were sent."""
        if self._head:
            self.sendall(b"")


class Response(wsgi.Response):
    """gunicorn's response; an empty piece of the body sends the headers alone."""

    def __init__(self, request: Request, _sock: object, cfg: Config, output: Output) -> None:
        super().__init__(request, output, cfg)
        self.output = output
        self._is_finished = False

    @property
    def is_complete(self) -> bool:
        """Whether everything was sent, and as much as its Content-Length promised."""
        has_no_body = self.req.method == "HEAD" or self.status_code == 304
        return self._is_finished and (has_no_body or self.response_length in (None, self.sent))

    def write(self, piece: bytes) -> None:
        super().write(piece)
        if not piece:
            self.output.flush()

    def close(self) -> None:
        super().close()
        self.output.flush()
        self._is_finished = True


_INTERNAL = (500, "Internal error; see the service's log")
_BAD_HEADER = (400, "A header is malformed, missing, duplicated or contradictory")
_BAD_CHUNK = (400, "The chunks of the request's body are malformed")

# By gunicorn's error: a status, and a fixed sentence, so that it can't echo a secret.
_REFUSALS: dict[type[BaseException], tuple[int, str]] = {
    errors.ParseException: (400, "The request is not valid HTTP"),
    errors.InvalidRequestLine: (400, "The request line is malformed"),
    errors.InvalidRequestMethod: (400, "The method is malformed"),
    errors.InvalidHTTPVersion: (400, "Only HTTP/1.1 and HTTP/1.0 are supported"),
    errors.InvalidHeader: _BAD_HEADER,
    errors.InvalidHeaderName: _BAD_HEADER,
    errors.ObsoleteFolding: _BAD_HEADER,
    errors.InvalidChunkSize: _BAD_CHUNK,
    errors.InvalidChunkExtension: _BAD_CHUNK,
    errors.ChunkMissingTerminator: _BAD_CHUNK,
    errors.LimitRequestLine: (414, "The request line is too long"),
    errors.ExpectationFailed: (417, "The only supported expectation is 100-continue"),
    errors.LimitRequestHeaders: (431, "The headers are too many or too long"),
    errors.UnsupportedTransferCoding: (501, "The only supported transfer coding is chunked"),
    # An application's own malformed headers are not the client's fault.
    errors.InvalidResponseHeader: _INTERNAL,
    errors.InvalidResponseHeaderName: _INTERNAL,
    errors.ConfigurationProblem: _INTERNAL,
    BaseException: _INTERNAL,
}


def problem_of(error: BaseException) -> Problem:
    """The problem for the client; a 500 if `error` is not the client's fault."""
    if isinstance(error, Problem):
        return error
    return Problem(*next(_REFUSALS[kind] for kind in type(error).__mro__ if kind in _REFUSALS))


def as_response(problem: Problem, method: str | None, request_id: str) -> bytes:
    """The bytes of the response, after which the connection closes; no body for HEAD."""
    content = body(problem, request_id)
    headers = {
        "Date": http_date(),
        "Connection": "close",
        "Cache-Control": "no-store",
        "Vary": KEY_HEADERS,
        "Content-Type": PROBLEM_TYPE,
        "Content-Length": len(content),
        "X-Request-Id": request_id,
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else content)
