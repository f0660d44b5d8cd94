"""The threads that run the application, and the state of a client's connection."""

import logging
import math
import select
import socket
import time
from collections.abc import Callable
from queue import SimpleQueue

from taskservice.serving.request_parser import Request, RequestParser, Steps
from taskservice.threads import start_thread

logger = logging.getLogger(__name__)


class ThreadPool:
    """Threads that run the `jobs`; a thread ends when its job returns False."""

    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        for _ in range(size):
            self.add_thread()

    def add_thread(self) -> None:
        # A daemon: a request that never ends must not keep the process from ending.
        start_thread("pool", self._run)

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


class Connection:
    """A client's socket and the request that arrives on it.

    It is `in_pool` while a thread of its `pool` has it, and `lingering` after its last response,
    until the client closes it. Otherwise it receives a request; `begun` means that the first bytes
    have arrived. At its `deadline` (monotonic) the worker stops waiting for the client; the whole
    request, refused or not, must arrive before the `request_deadline`. The `owner` is the user
    whose key was in the latest request, if known.
    """

    def __init__(
        self,
        sock: socket.socket,
        client: object,
        server: object,
        parser: RequestParser,
        pool: ThreadPool,
    ) -> None:
        self.sock = sock
        self.client = client
        self.server = server
        self.parser = parser
        self.pool = pool
        self.owner: str | None = None
        self.active_at = time.monotonic()
        self.deadline = NEVER
        self.request_deadline = NEVER
        self.watched = False
        self.lingering = False
        # Whether the pool started a thread in place of the one that has this connection.
        self.has_replacement = False
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
