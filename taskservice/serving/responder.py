"""Runs the application on a request and sends its response, in a thread of the pool."""

import logging
import math
import select
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import wsgi

from taskservice import resources
from taskservice.auth import OWNER
from taskservice.operations import metrics, request_log
from taskservice.serving.refusals import INTERNAL, as_response, refusal_for
from taskservice.serving.request_parser import Request, RequestParser, Steps
from taskservice.web.request import WsgiApplication

logger = logging.getLogger(__name__)

# The threads that run the application, and the state of a client's connection.


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


NEVER = math.inf


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
    active_at: float = field(default_factory=time.monotonic)
    deadline: float = NEVER
    request_deadline: float = NEVER
    watched: bool = False
    lingering: bool = False
    # Whether the pool started a thread in place of the one that has this connection.
    has_replacement: bool = False

    def __post_init__(self) -> None:
        self.expect_request()

    def expect_request(self) -> None:
        self.steps: Steps[Request] = self.parser.request()
        self.in_pool = False
        self.begun = False

    def replace_thread(self) -> None:
        """Start a thread in place of the one that has this connection until it has responded."""
        if not self.has_replacement:
            self.has_replacement = True
            self.pool.add_thread()


# Sends responses as fast as their clients read them, and limits the threads that wait.

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


# A response that is sent by our own function instead of gunicorn's.

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
        elif self.has_begun:
            self._send(data)
        elif len(data) > MAX_JOINED:
            self.flush()
            self._send(data)
        else:
            self.has_begun = True
            self._send(self._head + data)

    def flush(self) -> None:
        """Send the headers now, unless they were sent."""
        if self._head is not None and not self.has_begun:
            self.has_begun = True
            self._send(self._head)


class Response(wsgi.Response):
    """gunicorn's response; an empty piece of the body sends the headers alone."""

    def __init__(self, request: Request, output: Output, cfg: Config) -> None:
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


class Next(Enum):
    """What to do with a connection after a response."""

    KEEP_ALIVE = 1
    LINGER = 2
    # The response is incomplete.
    RESET = 3


@dataclass
class Responder:
    """Responds to requests; its methods may run in any thread.

    `is_stopping` returns whether the worker no longer accepts requests on open connections.
    """

    cfg: Config
    log: Logger
    sender: Sender
    is_stopping: Callable[[], bool]

    def respond(
        self, connection: Connection, request: Request, application: WsgiApplication
    ) -> Next:
        response = None
        try:
            response, environ = self.prepare(connection, request)
            self._run(application, connection, response, environ)
        except ClientGoneError as error:
            self.log.debug("A client did not read its response to the end: %s", error)
            return Next.RESET
        except (Exception, SystemExit) as error:
            if response is None or not response.output.has_begun:
                self.refuse(connection, error, request)
                return Next.LINGER
            self._log_failure("Failed in %s %s", response, error)
        if not response.is_complete:
            self._log_failure("Aborted the response to %s %s", response)
            return Next.RESET
        return Next.LINGER if response.should_close() else Next.KEEP_ALIVE

    def prepare(self, connection: Connection, request: Request) -> tuple[Response, dict[str, Any]]:
        """The response to fill, and the WSGI environ of the request."""
        output = Output(partial(self.sender.send, connection))
        response, environ = wsgi.create(
            request,
            connection.sock,
            connection.client,
            connection.server,
            self.cfg,
            response_class=lambda request, _socket, cfg: Response(request, output, cfg),
        )
        environ["wsgi.input"] = request.content
        environ["wsgi.multithread"] = True
        environ[resources.REPLACE_THREAD] = connection.replace_thread
        if self.is_stopping() or not request.is_complete:
            response.force_close()
        return response, environ

    def _run(
        self,
        application: WsgiApplication,
        connection: Connection,
        response: Response,
        environ: dict[str, Any],
    ) -> None:
        began = datetime.now()
        body = application(environ, response.start_response)
        connection.owner = environ.get(OWNER)
        try:
            for piece in body:
                response.write(piece)
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()
            self.log.access(response, response.req, environ, datetime.now() - began)

    def refuse(
        self, connection: Connection, error: BaseException, request: Request | None = None
    ) -> None:
        """Send the refusal for `error`, or a plain 500, without the application."""
        refusal = refusal_for(error)
        # The application counts all other requests; it did not see this one, or did not respond.
        metrics.requests.add(None, request.method if request else "", refusal.status, 0.0)
        request_id = _request_id(request.headers if request else ())
        extra = request_log.log_extra(request_id)
        if refusal is INTERNAL:
            name = f"{request.method} {request.path}" if request else "a request"
            self.log.error("Could not respond to %s", name, exc_info=error, extra=extra)
        else:
            # The client of a unix socket has no address.
            client: Any = connection.client
            host = client[0] if client else "a local socket"
            self.log.info("Refused a request from %s: %s %s", host, *refusal[:2], extra=extra)
        with suppress(OSError):
            method = request.method if request else None
            connection.sock.send(as_response(refusal, method, request_id))

    def _log_failure(
        self, message: str, response: Response, error: BaseException | None = None
    ) -> None:
        extra = request_log.log_extra(_request_id(response.headers))
        request = response.req
        self.log.error(message, request.method, request.path, exc_info=error, extra=extra)


def _request_id(headers: Iterable[tuple[str, str]]) -> str:
    """The request id in the headers of a request or response, or a new one."""
    named = (value for name, value in headers if name.lower() == "x-request-id")
    return request_log.request_id(next(named, ""))
