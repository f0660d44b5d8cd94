"""The gunicorn worker: one loop receives whole requests, and a thread pool responds to them."""

import errno
import os
import resource
import select
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType
from typing import Any

from flask import Response as Refusal
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.errors import ParseException
from gunicorn.workers.base import Worker as BaseWorker

from taskservice import resources
from taskservice.auth import OWNER
from taskservice.error_codes import STOPPING
from taskservice.errors import RETRY_SECONDS, Problem, overloaded
from taskservice.operations import metrics, request_log
from taskservice.serving import responder
from taskservice.serving.request_parser import TOO_MUCH_AT_ONCE, BodyBudget, Request, RequestParser
from taskservice.serving.responder import Connection, Output, Response, Sender, ThreadPool, is_ready
from taskservice.web.request import WsgiApplication


class CallQueue:
    """Calls for the loop to run; its file descriptor is readable while there are any."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_awake = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def fileno(self) -> int:
        return self._wake_read

    def put(self, call: Callable[..., object], *arguments: object) -> None:
        """Safe in a signal handler too: nothing here takes a lock of Python's."""
        self._calls.put(partial(call, *arguments))
        # One byte is enough for all calls that arrive before the loop reads it.
        if not self._is_awake:
            self._is_awake = True
            os.write(self._wake_write, b"!")

    def run_all(self, _file: object = None) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 64)
        # Before the queue is read: a call that is put from here on writes another byte.
        self._is_awake = False
        with suppress(Empty):
            while True:
                self._calls.get_nowait()()


# The kernel's buffer for a response; Linux doubles the number. On loopback it would grow to 2.6 MB,
# of which a third must be free: a steady reader of 10 KB/s would seem stuck for over a minute.
SEND_BUFFER = 128 * 1024
# How often a stopping loop checks whether all connections are done, in seconds.
STOPPING_SECONDS = 0.05
# How many clients are accepted before the loop serves the others again.
ACCEPTS_PER_EVENT = 16
# The seconds that a new client has to send its key.
NEW_SECONDS = 1.0
# The linger option with which a close resets the connection.
RESET = struct.pack("ii", 1, 0)


class Worker(BaseWorker):
    """Serves as gthread does, but a slow client holds neither a thread nor the loop.

    `max_body` in bytes comes from the settings; the other attributes are fixed, except in tests.
    All methods run in the loop's thread, except those below "In threads of the pool".
    """

    max_body = 10 * 1024 * 1024
    # Signals from before this process has its own handlers: its parent's handlers put them here.
    early_signals: SimpleQueue[int] = SimpleQueue()
    # Where the metrics of this process are stored; no two living workers share one.
    slot = 0
    background_threads: Sequence[Thread] = ()
    # WSGI environ without the body -> the id of the request's owner, or a response that refuses it;
    # a request without an owner may only have a small body.
    find_owner: Callable[[dict[str, Any]], str | Refusal | None] = staticmethod(lambda _environ: "")
    # They have threads of their own: a probe must not wait for requests that wait for the database.
    probe_paths = frozenset({"/livez", "/readyz", "/metrics"})
    # The budget for the large bodies of all requests together, in bodies of `max_body`.
    max_large_bodies = 25
    request_seconds = 30.0
    response_seconds = 30.0
    linger_seconds = 5.0
    stop_seconds = 0.5
    sweep_seconds = 1.0
    max_slow_clients = 64

    # Start, loop and stop.

    @classmethod
    def check_config(cls, cfg: Config, _log: object) -> None:
        if cfg.is_ssl:
            raise RuntimeError("remove certfile and keyfile: a reverse proxy does TLS")

    def init_process(self) -> None:
        self.connections: set[Connection] = set()
        self.must_quit = False
        self.next_sweep = 0.0
        self.selector = selectors.DefaultSelector()
        self.calls = CallQueue()
        self.budget = BodyBudget(self.max_large_bodies * self.max_body)
        self.pool = ThreadPool(self.cfg.threads)
        self.probe_pool = ThreadPool(2)
        self.sender = Sender(self.max_slow_clients, self.response_seconds, self.stop_seconds)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        while not self.early_signals.empty():
            if self.early_signals.get() in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
                self.alive = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.alive = False
        self.calls.put(lambda: None)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self.must_quit = True
        self.handle_exit(sig, frame)

    def run(self) -> None:
        self.selector.register(self.calls, selectors.EVENT_READ, self.calls.run_all)
        for listener in self.sockets:
            listener.setblocking(False)
            # The accepted connections inherit it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.selector.register(listener, selectors.EVENT_READ, self.accept_some)
        while self.alive and self.ppid == os.getppid():
            self.run_once(self.sweep_seconds)
        self.stop()

    def run_once(self, seconds: float) -> None:
        """Handle the events that have arrived, or that arrive within `seconds`."""
        for key, _ in self.selector.select(seconds):
            key.data(key.fileobj)
        now = time.monotonic()
        if now >= self.next_sweep:
            self.next_sweep = now + seconds
            self.notify()
            if self.alive and not all(thread.is_alive() for thread in self.background_threads):
                # gunicorn starts a new worker.
                self.log.critical("A background thread has died: the worker restarts")
                self.alive = False
            for connection in [each for each in self.connections if each.deadline <= now]:
                self.expire(connection)

    def stop(self) -> None:
        """Respond to the requests that have arrived, for at most `graceful_timeout` seconds."""
        resources.begin_stop()
        for listener in self.sockets:
            # The kernel has already accepted these connections, and would reset them.
            while self.accept(listener):
                pass
            self.selector.unregister(listener)
            listener.close()
        began = self.next_sweep = time.monotonic()
        for connection in self.connections:
            if not connection.in_pool:
                connection.deadline = min(connection.deadline, began + self.stop_seconds)
        while self.connections:
            # In the meantime a second signal can ask for a quick stop.
            seconds = 2 * self.stop_seconds if self.must_quit else self.cfg.graceful_timeout
            if time.monotonic() - began >= seconds:
                return
            self.run_once(STOPPING_SECONDS)

    # Connections.

    def accept_some(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_EVENT):
            if not self.accept(listener):
                return

    def accept(self, listener: socket.socket) -> bool:
        """Accept one client; False if there is none."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            # Without a free descriptor the kernel fails even if no client is waiting.
            if error.errno in (errno.EMFILE, errno.ENFILE) and is_ready(listener, select.POLLIN):
                return self.evict()
            return False
        sock.setblocking(False)
        is_full = len(self.connections) >= self.cfg.worker_connections and not self.evict()
        parser = RequestParser(self.cfg, client, self.max_body, self.budget)
        connection = Connection(sock, client, listener.getsockname(), parser, self.pool)
        self.connections.add(connection)
        connection.expect_request()
        self.wait_for(connection, self.request_seconds)
        if is_full:
            self.refuse(connection, overloaded(TOO_MUCH_AT_ONCE))
        return True

    def evict(self) -> bool:
        """Close the longest idle connection, those without a key first; False if there is none."""
        waiting = [each for each in self.connections if not each.in_pool]
        # One that was just accepted counts as one with a key, unless most have none.
        is_crowd = 2 * sum(each.owner is None for each in waiting) > len(waiting)
        new_since = time.monotonic() - (0.0 if is_crowd else NEW_SECONDS)

        def worth(each: Connection) -> tuple[bool, float]:
            return each.owner is not None or each.active_at > new_since, each.active_at

        if waiting:
            self.close(min(waiting, key=worth))
        return bool(waiting)

    def wait_for(self, connection: Connection, seconds: float) -> None:
        """Wait for the client, at most `seconds`, and less while the worker stops."""
        if not self.alive:
            seconds = min(seconds, self.stop_seconds)
        connection.active_at = time.monotonic()
        connection.deadline = connection.active_at + seconds
        if not connection.watched:
            connection.watched = True
            self.selector.register(
                connection.sock, selectors.EVENT_READ, partial(self.on_readable, connection)
            )

    def unwatch(self, connection: Connection) -> None:
        if connection.watched:
            connection.watched = False
            self.selector.unregister(connection.sock)

    def expire(self, connection: Connection) -> None:
        if connection.begun and not connection.lingering:
            late = Problem(408, "The request did not arrive in time")
            headers = {"Retry-After": str(RETRY_SECONDS)}
            stops = Problem(503, "The service is stopping", code=STOPPING, headers=headers)
            self.refuse(connection, late if self.alive else stops)
        else:
            self.close(connection)

    def refuse(self, connection: Connection, error: Exception) -> None:
        self.send_refusal(connection, error)
        self.linger(connection)

    def keep_alive(self, connection: Connection) -> None:
        connection.expect_request()
        self.wait_for(connection, self.cfg.keepalive)
        if connection.parser.received:
            self.parse(connection)

    def linger(self, connection: Connection) -> None:
        """Send no more, and let the client read to the end: an immediate close could reset it."""
        connection.in_pool = False
        connection.lingering = True
        # Releases its body's share of the budget immediately.
        connection.steps.close()
        self.wait_for(connection, self.linger_seconds)
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(connection)

    def reset(self, connection: Connection) -> None:
        """Reset the connection, so that no client mistakes a part of a response for the whole."""
        with suppress(OSError):
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close(connection)

    def close(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self.unwatch(connection)
            connection.steps.close()
            connection.sock.close()

    # Requests.

    def on_readable(self, connection: Connection, _sock: object) -> None:
        if connection.in_pool:
            # The next request or the end of the connection; the kernel keeps it for later.
            self.unwatch(connection)
            return
        try:
            data = connection.sock.recv(64 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
        elif connection.lingering:
            if self.alive:
                # The client still sends a request that was refused.
                until = min(connection.request_deadline, time.monotonic() + self.linger_seconds)
                connection.deadline = max(connection.deadline, until)
        else:
            connection.active_at = time.monotonic()
            connection.parser.received += data
            self.parse(connection)

    def parse(self, connection: Connection, owner: str | None = None) -> None:
        """Parse what has arrived; `owner` is what `identify` found."""
        if not connection.begun:
            connection.begun = True
            self.wait_for(connection, self.request_seconds)
            connection.request_deadline = connection.deadline
        try:
            wanted = connection.steps.send(owner)
        except StopIteration as complete:
            request = complete.value
            connection.pool = self.probe_pool if request.path in self.probe_paths else self.pool
            self.submit(connection, partial(self.respond, connection, request, self.wsgi))
        except (ParseException, Problem) as error:
            self.refuse(connection, error)
        except Exception:
            # A bug may cost this client its connection, but must not end the loop.
            self.log.exception("Could not read a request")
            self.reset(connection)
        else:
            if isinstance(wanted, Request):
                self.submit(connection, partial(self.identify, connection, wanted))
            elif wanted:
                with suppress(OSError):
                    connection.sock.send(wanted)

    def submit(self, connection: Connection, job: Callable[[], bool]) -> None:
        """Hand the connection to a thread of the pool, until the thread defers a call for it."""
        connection.in_pool = True
        connection.deadline = inf
        connection.pool.jobs.put(job)

    def resume(self, connection: Connection, owner: str | None) -> None:
        connection.in_pool = False
        connection.owner = owner
        self.wait_for(connection, connection.request_deadline - time.monotonic())
        self.parse(connection, owner)

    # In threads of the pool.

    def identify(self, connection: Connection, request: Request) -> bool:
        """Pool job: ask the application for the owner of a request whose headers have arrived."""
        try:
            _, environ = self.prepare(connection, request)
            owner = self.find_owner(environ)
        except Exception as error:
            try:
                self.send_refusal(connection, error, request)
            finally:
                self.calls.put(self.linger, connection)
            return True
        if isinstance(owner, Refusal):
            return self.respond(connection, request, owner)
        self.calls.put(self.resume, connection, owner)
        return True

    def respond(
        self, connection: Connection, request: Request, application: WsgiApplication
    ) -> bool:
        """Pool job: respond to a request; False if another thread has replaced this one."""
        follow_up: Callable[[Connection], None] = self.reset
        try:
            follow_up = self.send_response(connection, request, application)
            request.content.close()
        finally:
            has_replacement, connection.has_replacement = connection.has_replacement, False
            self.calls.put(follow_up, connection)
        return not has_replacement

    def send_response(
        self, connection: Connection, request: Request, application: WsgiApplication
    ) -> Callable[[Connection], None]:
        """Returns what to do with the connection next."""
        response = None
        try:
            response, environ = self.prepare(connection, request)
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
                self.log.access(response, request, environ, datetime.now() - began)
        except responder.ClientGoneError as error:
            self.log.debug("A client did not read its response to the end: %s", error)
            return self.reset
        except (Exception, SystemExit) as error:
            if response is None or not response.output.has_begun:
                self.send_refusal(connection, error, request)
                return self.linger
            self.log_failure("Failed in %s %s", response, error)
        if not response.is_complete:
            self.log_failure("Aborted the response to %s %s", response)
            return self.reset
        return self.linger if response.should_close() else self.keep_alive

    def prepare(self, connection: Connection, request: Request) -> tuple[Response, dict[str, Any]]:
        """The response to fill, and the WSGI environ of the request."""
        output = Output(partial(self.sender.send, connection))
        addresses = connection.client, connection.server
        response, environ = wsgi.create(
            request, connection.sock, *addresses, self.cfg, Response, (output,)
        )
        environ["wsgi.input"] = request.content
        environ["wsgi.multithread"] = True
        environ[resources.REPLACE_THREAD] = connection.replace_thread
        if not self.alive or not request.is_complete:
            response.force_close()
        return response, environ

    def send_refusal(
        self, connection: Connection, error: BaseException, request: Request | None = None
    ) -> None:
        """Refuse a request because of `error`, without the application; also in the loop."""
        problem = responder.problem_of(error)
        method = request.method if request else None
        # The application counts all other requests; it did not see this one, or did not respond.
        metrics.requests.add(None, method or "", problem.status, 0.0)
        extra = request_log.log_extra(request.headers if request else ())
        if problem.status == 500:
            name = f"{request.method} {request.path}" if request else "a request"
            self.log.error("Could not respond to %s", name, exc_info=error, extra=extra)
        else:
            # The client of a unix socket has no address.
            client: Any = connection.client
            why = client[0] if client else "a local socket", problem.status, problem.detail
            self.log.info("Refused a request from %s: %s %s", *why, extra=extra)
        with suppress(OSError):
            request_id = extra["details"]["requestId"]
            connection.sock.send(responder.as_response(problem, method, request_id))

    def log_failure(self, message: str, response: Response, error: object = None) -> None:
        request, extra = response.req, request_log.log_extra(response.headers)
        self.log.error(message, request.method, request.path, exc_info=error, extra=extra)
