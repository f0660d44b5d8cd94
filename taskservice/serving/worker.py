"""The gunicorn worker: a loop takes requests in, whole, and a crew of threads answers them."""

import errno
import resource
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from os import getppid
from threading import Thread
from types import FrameType
from typing import Any

from gunicorn import http
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.errors import ParseException
from gunicorn.workers.base import Worker as BaseWorker

from taskservice import resources
from taskservice.operations import metrics, request_log
from taskservice.serving.connection import NEVER, Connection
from taskservice.serving.head_check import RefusedByApplicationError
from taskservice.serving.incoming import BodyMemory, Intake, Need, Request
from taskservice.serving.outgoing import Answer, ClientGoneError, Sender
from taskservice.serving.proxies import Application
from taskservice.serving.refusals import (
    INTERNAL,
    NoRoomError,
    RefusedError,
    RequestTooSlowError,
    StoppingError,
    as_response,
    refusal_for,
)
from taskservice.serving.thread_pool import Calls, ThreadPool

RECEIVE_SIZE = 64 * 1024
STOPPING_TURN = 0.05
# How long the loop goes on with what it put off, before it looks for what is new.
TURN_SECONDS = 0.005
# How many clients it lets in before it looks after those that it has.
CLIENTS_PER_TURN = 16
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Each connection may take a second one, for a large body.
FILE_DESCRIPTORS = 4096
# The linger option with which a close resets the connection.
RESET = struct.pack("ii", 1, 0)


class Worker(BaseWorker):
    """Serves as gthread does, but a slow client holds neither a thread nor the loop.

    `max_body` in bytes comes from the settings; the other attributes are fixed but for tests.
    All methods run in the loop's thread, save `identify`, `answer` and what they call.
    """

    max_body = 10 * 1024 * 1024
    # Where the metrics of this process are; no other one that lives has the same.
    slot = 0
    # What works in the background of this process.
    loops: Sequence[Thread] = ()
    # Whose request this is, by its WSGI environ without the body: what has no owner may have only
    # a small body. Raises RefusedByApplicationError.
    owner_of: Callable[[dict[str, Any]], str | None] = staticmethod(lambda _environ: "")
    # Room for the large bodies of all requests together, in bodies of the largest size.
    max_bodies = 25
    request_seconds = 30.0
    answer_seconds = 30.0
    linger_seconds = 5.0
    stop_seconds = 0.5
    sweep_seconds = 1.0
    slow_clients = 64

    # From start to stop.

    @classmethod
    def check_config(cls, cfg: Config, _log: object) -> None:
        if cfg.is_ssl:
            raise RuntimeError("TLS is left to a reverse proxy: drop certfile and keyfile")

    def init_process(self) -> None:
        self.connections: set[Connection] = set()
        # Those that have had their turn, and the next one when others have had theirs.
        self.put_off: deque[Connection] = deque()
        self.hurried = False
        self.next_sweep = 0.0
        self.poller = selectors.DefaultSelector()
        self.calls = Calls()
        self.room = BodyMemory(self.max_bodies * self.max_body)
        self.crew = ThreadPool(self.cfg.threads)
        self.sender = Sender(
            self.crew.hire, self.slow_clients, self.answer_seconds, self.stop_seconds
        )
        allow_file_descriptors()
        super().init_process()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.alive = False
        self.calls.ask(lambda: None)

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        self.hurried = True
        self.handle_exit(sig, frame)

    def run(self) -> None:
        self.poller.register(self.calls, selectors.EVENT_READ, self.calls.make)
        for listener in self.sockets:
            listener.setblocking(False)
            self.give_up_lost_clients(listener)
            self.poller.register(listener, selectors.EVENT_READ, self.accept_some)
        while self.alive and self.ppid == getppid():
            self.turn(self.sweep_seconds)
        self.finish()

    def give_up_lost_clients(self, listener: socket.socket) -> None:
        """Has the kernel break a connection of which nothing is acknowledged any more.

        Otherwise a stream to a machine that has vanished goes on for a quarter of an hour.
        """
        if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(self.answer_seconds * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def turn(self, seconds: float) -> None:
        """Does what is to do now, or comes up in the next `seconds`."""
        is_behind = self.put_off or self.next_sweep <= time.monotonic()
        for key, _ in self.poller.select(0 if is_behind else seconds):
            key.data(key.fileobj)
        self.go_on_with_put_off()
        now = time.monotonic()
        if now >= self.next_sweep:
            self.next_sweep = now + seconds
            self.notify()
            self.sweep(now)

    def go_on_with_put_off(self) -> None:
        until = time.monotonic() + TURN_SECONDS
        while self.put_off and time.monotonic() < until:
            connection = self.put_off.popleft()
            if connection in self.connections and not connection.lingering:
                self.watch(connection)
                self.take_in(connection)

    def sweep(self, now: float) -> None:
        """Stops waiting for those whose time is over; what takes long goes on in the next turn."""
        for connection in [each for each in self.connections if each.deadline <= now]:
            self.expire(connection)
            if time.monotonic() - now > TURN_SECONDS:
                self.next_sweep = now
                return

    def finish(self) -> None:
        """Answers what has come until now, for `graceful_timeout` at most."""
        resources.begin_stop()
        for listener in self.sockets:
            # The kernel has let these in already, and would reset them.
            while self.accept(listener):
                pass
            self.poller.unregister(listener)
            listener.close()
        began = self.next_sweep = time.monotonic()
        for connection in self.connections:
            if not connection.answering:
                connection.deadline = min(connection.deadline, began + self.stop_seconds)
        while self.connections and time.monotonic() - began < self.patience():
            self.turn(STOPPING_TURN)

    def patience(self) -> float:
        return 2 * self.stop_seconds if self.hurried else self.cfg.graceful_timeout

    # A client comes, and goes.

    def accept_some(self, listener: socket.socket) -> None:
        for _ in range(CLIENTS_PER_TURN):
            if not self.accept(listener):
                return

    def accept(self, listener: socket.socket) -> bool:
        """Lets one client in; False if there is none."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.make_room()
            return False
        sock.setblocking(False)
        is_full = len(self.connections) >= self.cfg.worker_connections and not self.make_room()
        intake = Intake(self.cfg, client, self.max_body, self.room)
        connection = Connection(sock, client, listener.getsockname(), intake)
        self.connections.add(connection)
        self.wait_for(connection, self.request_seconds)
        if is_full:
            self.refuse(connection, NoRoomError())
        return True

    def make_room(self) -> bool:
        """Drops the client that would have to go first anyway; False if all are being answered."""
        waiting = [each for each in self.connections if not each.answering]
        if waiting:
            self.drop(min(waiting, key=lambda each: each.deadline))
        return bool(waiting)

    def wait_for(self, connection: Connection, seconds: float) -> None:
        """Listens to the client, but for no longer than `seconds`, and less at the end."""
        self.wait_until(connection, time.monotonic() + seconds)

    def wait_until(self, connection: Connection, deadline: float) -> None:
        if not self.alive:
            deadline = min(deadline, time.monotonic() + self.stop_seconds)
        connection.deadline = deadline
        self.watch(connection)

    def watch(self, connection: Connection) -> None:
        if not connection.watched:
            connection.watched = True
            self.poller.register(
                connection.sock, selectors.EVENT_READ, partial(self.on_readable, connection)
            )

    def unwatch(self, connection: Connection) -> None:
        if connection.watched:
            connection.watched = False
            self.poller.unregister(connection.sock)

    def expire(self, connection: Connection) -> None:
        if connection.begun and not connection.lingering:
            self.refuse(connection, RequestTooSlowError() if self.alive else StoppingError())
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.remove(connection)
            self.unwatch(connection)
            connection.steps.close()
            connection.sock.close()

    # A request comes in.

    def on_readable(self, connection: Connection, _sock: object) -> None:
        if connection.answering:
            # The next request, or the end: it waits in the kernel for its turn.
            self.unwatch(connection)
            return
        try:
            data = connection.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(connection)
        elif connection.lingering:
            self.linger_on(connection)
        else:
            connection.intake.received += data
            self.take_in(connection)

    def take_in(self, connection: Connection, owner: str | None = None) -> None:
        """Goes on with a request as far as its bytes are here; with its owner, if it asked."""
        if not connection.begun:
            connection.begun = True
            self.wait_for(connection, self.request_seconds)
            connection.request_deadline = connection.deadline
        try:
            need = connection.steps.send(owner)
        except StopIteration as complete:
            self.hand_over(connection, partial(self.answer, connection, complete.value))
        except (ParseException, RefusedError) as error:
            self.refuse(connection, error)
        except Exception:
            # A bug may cost this client its connection, but never the others the loop.
            self.log.exception("Could not take in a request")
            self.break_off(connection)
        else:
            self.provide(connection, need)

    def provide(self, connection: Connection, need: Need | Request) -> None:
        if isinstance(need, Request):
            self.hand_over(connection, partial(self.identify, connection, need))
        elif need is Need.CONTINUE:
            with suppress(OSError):
                connection.sock.send(CONTINUE)
        elif need is Need.TURN:
            self.unwatch(connection)
            self.put_off.append(connection)

    def hand_over(self, connection: Connection, job: Callable[[], bool]) -> None:
        """Leaves the connection to a thread of the crew, until that asks for a call."""
        connection.answering = True
        connection.deadline = NEVER
        self.crew.jobs.put(job)

    def identify(self, connection: Connection, request: Request) -> bool:
        """Asks the application, in a thread of the crew, whose request has begun."""
        try:
            _, environ = self.prepare(connection, request)
            owner = self.owner_of(environ)
        except RefusedByApplicationError as refused:
            return self.answer(connection, request, refused.response)
        except Exception as error:
            self.handle_error(request, connection.sock, connection.client, error)
            self.calls.ask(self.linger, connection)
        else:
            self.calls.ask(self.go_on, connection, owner)
        return True

    def go_on(self, connection: Connection, owner: str | None) -> None:
        connection.answering = False
        self.wait_until(connection, connection.request_deadline)
        self.take_in(connection, owner)

    def refuse(self, connection: Connection, error: Exception) -> None:
        self.handle_error(None, connection.sock, connection.client, error)
        self.linger(connection)

    def handle_error(
        self, req: http.Request | None, client: socket.socket, addr: Any, exc: BaseException
    ) -> None:
        refusal = refusal_for(exc)
        # The application, which counts all others, has not seen it or not answered it.
        metrics.requests.add(None, req.method if req else "", refusal.status, 0.0)
        request_id = id_among(req.headers if req else ())
        of_request = request_log.of_request(request_id)
        if refusal is INTERNAL:
            name = f"{req.method} {req.path}" if req else "a request"
            self.log.error("Could not answer %s", name, exc_info=exc, extra=of_request)
        else:
            host = addr[0] if addr else "a local socket"
            self.log.info("Refused a request from %s: %s %s", host, *refusal[:2], extra=of_request)
        with suppress(OSError):
            client.send(as_response(refusal, req.method if req else None, request_id))

    # It is answered.

    def answer(
        self, connection: Connection, request: Request, application: Application | None = None
    ) -> bool:
        """Answers a request, in a thread of the crew; False if that got a stand-in meanwhile."""
        what_next = self.respond(connection, request, application or self.wsgi)
        request.content.close()
        has_stand_in, connection.has_stand_in = connection.has_stand_in, False
        self.calls.ask(what_next, connection)
        return not has_stand_in

    def respond(
        self, connection: Connection, request: Request, application: Application
    ) -> Callable[[Connection], None]:
        """Has the application answer; returns what is then to do with the connection."""
        answer = None
        try:
            self.count_request()
            answer, environ = self.prepare(connection, request)
            self.call(application, answer, environ)
        except ClientGoneError as error:
            self.log.debug("A client did not take its whole answer: %s", error)
            return self.break_off
        except (Exception, SystemExit) as error:
            if answer is None or not answer.has_begun:
                self.handle_error(request, connection.sock, connection.client, error)
                return self.linger
            self.complain("Failed in %s %s", answer, error)
        if not answer.is_whole:
            self.complain("Broke off the answer to %s %s", answer)
            return self.break_off
        return self.linger if answer.should_close() else self.keep

    def complain(self, message: str, answer: Answer, error: BaseException | None = None) -> None:
        of_request = request_log.of_request(id_among(answer.headers))
        request = answer.req
        self.log.error(message, request.method, request.path, exc_info=error, extra=of_request)

    def count_request(self) -> None:
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False

    def prepare(self, connection: Connection, request: Request) -> tuple[Answer, dict[str, Any]]:
        answer, environ = wsgi.create(
            request,
            connection.sock,
            connection.client,
            connection.server,
            self.cfg,
            response_class=Answer,
            response_args=(partial(self.sender.send, connection),),
        )
        environ["wsgi.input"] = request.content
        environ["wsgi.multithread"] = True
        if not self.alive or not request.is_whole:
            answer.force_close()
        return answer, environ

    def call(self, application: Application, answer: Answer, environ: dict[str, Any]) -> None:
        began = datetime.now()
        body = application(environ, answer.start_response)
        try:
            for piece in body:
                answer.write(piece)
            answer.close()
        finally:
            if hasattr(body, "close"):
                body.close()
            self.log.access(answer, answer.req, environ, datetime.now() - began)

    def keep(self, connection: Connection) -> None:
        connection.expect_request()
        self.wait_for(connection, self.cfg.keepalive)
        if connection.intake.received:
            self.take_in(connection)

    def linger(self, connection: Connection) -> None:
        """Says that no more comes, and lets the client read to the end before the close.

        A close at once could reset the connection before that.
        """
        connection.answering = False
        connection.lingering = True
        # What was here of its body makes room for others at once.
        connection.steps.close()
        self.wait_for(connection, self.linger_seconds)
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(connection)

    def linger_on(self, connection: Connection) -> None:
        """Lets a client that still sends what was refused come to its end, as if it were not."""
        if self.alive:
            until = min(connection.request_deadline, time.monotonic() + self.linger_seconds)
            connection.deadline = max(connection.deadline, until)

    def break_off(self, connection: Connection) -> None:
        """Resets the connection, so that a part of an answer can't pass for the whole."""
        with suppress(OSError):
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.drop(connection)


def id_among(headers: Iterable[tuple[str, str]]) -> str:
    """The request's id by the headers of a request or of its answer; else a new one."""
    named = (value for name, value in headers if name.lower() == "x-request-id")
    return request_log.request_id(next(named, ""))


def allow_file_descriptors() -> None:
    """Lets this process have as many as it needs at worst, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILE_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(FILE_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
