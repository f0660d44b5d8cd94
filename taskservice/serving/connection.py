"""One client's connection and its state."""

import math
import socket

from taskservice.serving.request_parser import Request, RequestParser, Steps
from taskservice.serving.thread_pool import ThreadPool

NEVER = math.inf


class Connection:
    """A client's socket and the request that arrives on it.

    It is `in_pool` while a thread of its `pool` has it, and `lingering` after its last response,
    until the client closes it. Otherwise it receives a request; `begun` means that the first bytes
    have arrived. At its `deadline` (monotonic) the worker stops waiting for the client; the whole
    request, refused or not, must arrive before the `request_deadline`.
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
        self.deadline = NEVER
        self.request_deadline = NEVER
        self.watched = False
        self.lingering = False
        # Whether the pool started a thread in place of the one that sends to this slow client.
        self.has_replacement = False
        self.expect_request()

    def expect_request(self) -> None:
        self.steps: Steps[Request] = self.parser.request()
        self.in_pool = False
        self.begun = False
