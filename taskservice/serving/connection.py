"""One client, and what it may still do."""

import math
import socket

from taskservice.serving.incoming import Intake, Request, Steps

NEVER = math.inf


class Connection:
    """A client's socket with the request that comes in on it.

    It is `answering` while a thread has it, `lingering` when its last answer is out and the
    client has yet to close, and else takes in a request, of which some is here if `begun`.
    At its `deadline` (monotonic) the worker stops waiting for the client. At its `request_deadline`
    all of the request must be here, also if it has been refused.
    """

    def __init__(self, sock: socket.socket, client: object, server: object, intake: Intake) -> None:
        self.sock = sock
        self.client = client
        self.server = server
        self.intake = intake
        self.deadline = NEVER
        self.request_deadline = NEVER
        self.watched = False
        self.lingering = False
        self.has_stand_in = False
        self.expect_request()

    def expect_request(self) -> None:
        self.steps: Steps[Request] = self.intake.request()
        self.answering = False
        self.begun = False
