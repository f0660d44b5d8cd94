"""gunicorn's `gthread` worker, with time limits for slow clients and extra threads for waits."""

import errno
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread, local
from types import FrameType
from typing import Any

from gunicorn import util
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
# The interval at which a thread that waits for the bytes of a request checks the deadline.
READ_SECONDS = 0.25
# If no thread has begun a request for this many seconds, all threads count as held up.
HELD_UP_SECONDS = 0.25
# The maximum number of bytes that a client may still send after its response, and the number of
# seconds in which it may send them. Closing the connection earlier would reset it, and the client
# could not read the response.
MAX_UNREAD = 64 * 1024 * 1024
UNREAD_SECONDS = 2.0
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

    def relieve(self) -> None:
        """If all threads are held up, start a thread for each request that waits for a thread."""
        waiting = self._jobs.qsize()
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
            # BlockingIOError: no bytes have arrived for READ_SECONDS.
            with suppress(BlockingIOError):
                data: bytes = super().chunk(size_hint)
                if not data and self.has_head:
                    raise refusals.short()
                return data
            if resources.stopping.is_set():
                break
        raise refusals.late()


class Connection(TConn):
    """A client's connection."""

    def __init__(self, send_seconds: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        # The kernel applies these timeouts: with Python's own timeout, a check for data would wait.
        for option, seconds in (
            (socket.SO_RCVTIMEO, READ_SECONDS), (socket.SO_SNDTIMEO, send_seconds),
        ):  # fmt: skip
            timeout = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            self.sock.setsockopt(socket.SOL_SOCKET, option, timeout)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.parser = get_parser(self.cfg, self.sock, self.client)
        self.parser.unreader = self.reader = RequestReader(self.sock)

    def wait_for_data(self, timeout: float) -> bool:
        # gunicorn would let a thread wait for a client that sends nothing.
        return bool(super().wait_for_data(0))

    def close(self, graceful: bool = False) -> None:
        # gunicorn would wait for the client in its event loop; `Worker.handle` has already waited.
        super().close()


class Worker(ThreadWorker):
    """Serves requests in THREADS threads, and each request that waits in a separate thread.

    Only tests change `request_seconds` and `response_seconds`.
    """

    # The signals that arrived before this process had its own handlers; the handlers inherited from
    # its parent process add signals to this queue.
    early_signals: SimpleQueue[int] = SimpleQueue()
    # The slot for the metrics of this process; each running worker has a different slot.
    slot = 0
    # The maximum number of threads in addition to THREADS, for requests that are held up.
    more_threads = 200
    background_threads: Sequence[Thread] = ()
    request_seconds = 30.0
    response_seconds = 30.0

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

    def accept(self, listener: socket.socket) -> None:
        # If no file descriptor is free, `accept` raises an error, which would end the event loop.
        with suppress(OSError):
            sock, client = listener.accept()
            arguments = self.cfg, sock, client, listener.getsockname()
            connection = Connection(self.response_seconds, *arguments)
            self.nr_conns += 1
            self.enqueue_req(connection)

    def notify(self) -> None:
        """The event loop calls this after each event, and at least once a second."""
        super().notify()
        self.tpool.relieve()
        # A worker stops when its parent has ended.
        self.alive = self.alive and self.ppid == os.getppid()
        if self.alive and not all(thread.is_alive() for thread in self.background_threads):
            # gunicorn replaces a worker that has ended.
            self.log.critical("A background thread has died: the worker restarts")
            self.alive = False
        if not self.alive and not resources.stopping.is_set():
            resources.begin_stop()
            # Connections without a request are closed after half a second.
            until = time.monotonic() + 0.5
            for connection in [*self.keepalived_conns, *self.pending_conns]:
                connection.timeout = min(connection.timeout, until)

    def run(self) -> None:
        super().run()
        # If there are no connections, the loop ends without another call of `notify`.
        resources.begin_stop()

    # The threads of the pool call these methods.

    def handle(self, conn: Connection) -> object:
        conn.reader.deadline = time.monotonic() + self.request_seconds
        conn.reader.has_head = False
        result = super().handle(conn)
        if not result:
            util.close_graceful(conn.sock, UNREAD_SECONDS, MAX_UNREAD)
        return result

    def handle_request(self, req: Request, conn: Connection) -> bool:
        refusals.check_head(req)
        conn.reader.has_head = True
        if isinstance(req.body.reader, ChunkedReader):
            req.body.reader.parser = refusals.checked_chunks(req.body.reader.parser)
        try:
            is_kept: bool = super().handle_request(req, conn)
        except BlockingIOError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing") from error
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
