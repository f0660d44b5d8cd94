"""gunicorn's `gthread` worker, with time limits for slow clients and extra threads for waits."""

import errno
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread, local
from types import FrameType
from typing import Any

from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.body import ChunkedReader
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from taskservice import resources
from taskservice.serving import refusals

# The size in bytes of the kernel's send buffer; Linux doubles it. By default, the buffer grows to
# 2.6 MB on loopback, and more is sent only when a third of it is free. A client that reads 10 KB/s
# would then seem to read nothing for over a minute.
SEND_BUFFER = 128 * 1024
# The interval at which a thread that waits for a client checks the time.
CHECK_SECONDS = 0.25
# If no thread has begun a request for this many seconds, all threads count as held up.
HELD_UP_SECONDS = 0.25
# The number of seconds in which a client may send the rest of its request after the response, and
# may close the connection. Closing it earlier would reset it if bytes still arrived, and the client
# could not read the response. When the service stops, idle connections are closed sooner.
UNREAD_SECONDS = 2.0
STOP_SECONDS = 0.5
PIECE = 64 * 1024


class ThreadPool:
    """Daemon threads for requests: `size` threads, and up to `max_extra` more if all are held up.

    A request that waits for a change gets a separate thread.
    """

    def __init__(self, size: int, max_extra: int) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._current = local()
        self._begun_at = 0.0
        self._max_extra, self._extra = max_extra, list[Thread]()
        for _ in range(size):
            resources.start_thread("pool", self._run)

    def submit(self, call: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((future, partial(call, *arguments)))
        return future

    def shutdown(self, *, wait: bool) -> None:
        """Do nothing: gunicorn calls this when the process exits, which ends the threads."""

    def replace_thread(self) -> None:
        """Start a thread that replaces the current thread, which ends after its request."""
        if not self._current.is_replaced:
            resources.start_thread("pool", self._run)
            self._current.is_replaced = True

    def waiting(self) -> int:
        """The number of requests that wait for a thread."""
        return self._jobs.qsize()

    def relieve(self) -> None:
        """If all threads are held up, start a thread for each request that waits for a thread."""
        waiting = self.waiting()
        if waiting and time.monotonic() - self._begun_at > HELD_UP_SECONDS:
            self._extra = [thread for thread in self._extra if thread.is_alive()]
            # If there is no memory for a thread, the requests continue to wait.
            with suppress(RuntimeError):
                for _ in range(min(waiting, self._max_extra - len(self._extra))):
                    self._extra.append(resources.start_thread("pool", self._run_once))

    def _run(self) -> None:
        self._current.is_replaced = False
        while not self._current.is_replaced:
            job = self._jobs.get()
            self._begun_at = time.monotonic()
            _respond(*job)

    def _run_once(self) -> None:
        self._current.is_replaced = True
        with suppress(Empty):
            _respond(*self._jobs.get_nowait())


def _respond(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


class RequestReader(SocketUnreader):
    """Reads a request, which must arrive before `deadline`, a monotonic time."""

    deadline = inf
    has_head = False

    def chunk(self, size_hint: int | None = None) -> bytes:
        """The next bytes; empty if the client disconnected. Raises a Problem: 400, 408 or 503."""
        while time.monotonic() < self.deadline:
            # BlockingIOError: no bytes have arrived for CHECK_SECONDS.
            with suppress(BlockingIOError):
                data: bytes = super().chunk(size_hint)
                if not data and self.has_head:
                    raise refusals.short()
                return data
            if resources.stopping.is_set():
                break
        raise refusals.late()


class ClientSocket(socket.socket):
    """A client's socket, whose `sendall` fails if the client takes nothing for `send_seconds`."""

    send_seconds = inf

    def sendall(self, data: Any, flags: int = 0) -> None:
        sent, taken, taken_at = 0, -inf, time.monotonic()
        while True:
            # BlockingIOError: the kernel's buffer has been full for CHECK_SECONDS.
            with suppress(BlockingIOError):
                sent += self.send(memoryview(data)[sent:], flags)
            if sent == len(data):
                return
            # The bytes in the kernel's buffer are sent, but the client has not taken them.
            buffered = ioctl(self, termios.TIOCOUTQ, bytes(4))
            before, taken = taken, sent - int.from_bytes(buffered, sys.byteorder)
            if taken > before:
                taken_at = time.monotonic()
            elif time.monotonic() - taken_at > self.send_seconds:
                raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing")


class Connection(TConn):
    """A client's connection."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # The kernel applies these timeouts: with Python's own timeout, a check for data would wait.
        timeout = struct.pack("ll", 0, int(CHECK_SECONDS * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.sock.setsockopt(socket.SOL_SOCKET, option, timeout)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.parser = get_parser(self.cfg, self.sock, self.client)
        self.parser.unreader = self.reader = RequestReader(self.sock)

    def has_news(self) -> bool:
        """Whether bytes have arrived, or the client has disconnected."""
        try:
            self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


class Worker(ThreadWorker):
    """Serves requests in THREADS threads, and each request that waits in a separate thread.

    Only tests change `request_seconds`, `response_seconds` and `linger_seconds`.
    """

    # The signals that arrived before this process had its own handlers; the handlers inherited from
    # its parent process add signals to this queue.
    early_signals: SimpleQueue[int] = SimpleQueue()
    # The slot for the metrics of this process; each running worker has a different slot.
    slot = 0
    worker_connections: int
    # The maximum number of threads in addition to THREADS, for requests that are held up.
    more_threads = 200
    background_threads: Sequence[Thread] = ()
    request_seconds = 30.0
    response_seconds = 30.0
    linger_seconds = UNREAD_SECONDS

    @classmethod
    def check_config(cls, cfg: Config, _log: object) -> None:
        if cfg.is_ssl:
            raise RuntimeError("remove certfile and keyfile: a reverse proxy terminates TLS")

    def get_thread_pool(self) -> ThreadPool:
        pool = ThreadPool(self.cfg.threads, self.more_threads)
        resources.replace_thread = pool.replace_thread
        return pool

    def init_process(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # The other half is for the database.
        self.worker_connections = min(self.worker_connections, hard // 2)
        # Connections whose last response was sent, and whose clients have not yet closed them.
        self.closing_conns: deque[Connection] = deque()
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        while not self.early_signals.empty():
            if self.early_signals.get() in {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}:
                self.alive = False

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        # gunicorn would end the process at once, in the middle of its responses.
        self.cfg.set("graceful_timeout", 2)
        self.handle_exit(sig, frame)

    # The thread of the event loop calls these methods.

    def accept(self, listener: socket.socket) -> bool:
        """Accept a connection; returns whether there was one."""
        # If no file descriptor is free, `accept` raises an error, which would end the event loop.
        with suppress(OSError):
            accepted, client = listener.accept()
            kind = accepted.family, accepted.type, accepted.proto
            sock = ClientSocket(*kind, accepted.detach())
            sock.send_seconds = self.response_seconds
            connection = Connection(self.cfg, sock, client, listener.getsockname())
            self.nr_conns += 1
            # gunicorn would let a thread wait for the first bytes.
            connection.set_timeout()
            self.watch(connection, self.pending_conns, self.on_pending_socket_readable)
            return True
        return False

    def watch(
        self, conn: Connection, queue: deque[Connection], on_readable: Callable[..., None]
    ) -> None:
        """Call `on_readable` when bytes arrive or the client disconnects."""
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(on_readable, conn))
        queue.append(conn)

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        if fs.exception() or fs.result():
            super().finish_request(conn, fs)
            return
        # gunicorn would wait here until the client closes the connection.
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client has disconnected.
            self.nr_conns -= 1
            conn.close()
        else:
            seconds = STOP_SECONDS if resources.stopping.is_set() else self.linger_seconds
            conn.timeout = time.monotonic() + seconds
            self.watch(conn, self.closing_conns, self.discard)

    def discard(self, conn: Connection, sock: socket.socket) -> None:
        """Discard what a client sends after its last response, or close the connection."""
        with suppress(OSError):
            if sock.recv(PIECE):
                return
        self.closing_conns.remove(conn)
        self.drop(conn)

    def drop(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def close_idle(self) -> None:
        """Close connections after `linger_seconds`, and an idle one if there are too many.

        This is the oldest of the most frequent kind, so that silent clients cost no connection that
        is in use. No connection is closed on which a request has begun to arrive.
        """
        while self.closing_conns and self.closing_conns[0].timeout < time.monotonic():
            self.drop(self.closing_conns.popleft())
        if self.nr_conns >= self.worker_connections:
            queues = [self.closing_conns, self.keepalived_conns, self.pending_conns]
            idle = [queue for queue in queues if queue and not queue[0].has_news()]
            if idle:
                self.drop(max(idle, key=len).popleft())

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self.tpool.waiting() or self.closing_conns:
            timeout = min(timeout, HELD_UP_SECONDS)
        super().wait_for_and_dispatch_events(timeout)

    def notify(self) -> None:
        """The event loop calls this after each event, and at least once a second."""
        super().notify()
        self.tpool.relieve()
        self.close_idle()
        # A worker stops when its parent has ended.
        self.alive = self.alive and self.ppid == os.getppid()
        if self.alive and not all(thread.is_alive() for thread in self.background_threads):
            # gunicorn replaces a worker that has ended.
            self.log.critical("A background thread has died: the worker restarts")
            self.alive = False
        if not self.alive and not resources.stopping.is_set():
            resources.begin_stop()
            # Clients that have connected may have sent requests.
            for listener in self.sockets:
                while self.accept(listener):
                    pass
            until = time.monotonic() + STOP_SECONDS
            for connections in (self.keepalived_conns, self.pending_conns, self.closing_conns):
                for connection in connections:
                    connection.timeout = min(connection.timeout, until)

    def run(self) -> None:
        super().run()
        # If there are no connections, the loop ends without another call of `notify`.
        resources.begin_stop()

    # The threads of the pool call these methods.

    def handle(self, conn: Connection) -> object:
        conn.reader.deadline = time.monotonic() + self.request_seconds
        conn.reader.has_head = False
        return super().handle(conn)

    def handle_request(self, req: Request, conn: Connection) -> bool:
        refusals.check_head(req)
        conn.reader.has_head = True
        if isinstance(req.body.reader, ChunkedReader):
            req.body.reader.parser = refusals.checked_chunks(req.body.reader.parser)
        is_kept: bool = super().handle_request(req, conn)
        # Read the part of the body that the application has not read. gunicorn would read less of
        # it, and would send a second response if this part is malformed.
        conn.reader.deadline = time.monotonic() + UNREAD_SECONDS
        with suppress(Exception):
            while is_kept and req.body.read(PIECE):
                pass
            return is_kept
        return False

    def handle_error(self, req: Request, client: socket.socket, addr: Any, exc: Exception) -> None:
        refusals.refuse(client, addr, exc, req)
