"""Webhooks for local development: received and verified, or posted to a local address."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from threading import Event
from typing import Any
from uuid import UUID, uuid5

import requests

from taskservice import terms
from taskservice.client import Client, NotFound
from taskservice.client.answers import CALLBACK_SECRET, RETRYABLE, USER, NotTheService
from taskservice.terms import WEBHOOK_LINES, WEBHOOK_LOG_BYTES
from taskservice.webhooks import signing

POLL_SECONDS = 1.0
# A task that ended a little before another may become visible after it.
OVERLAP = timedelta(seconds=60)
# Seconds after each failure until the same webhook is posted again.
RETRY_DELAYS = (1, 2, 5, 10, 30, 60)
ATTEMPT_SECONDS = 10.0
# The address that receives webhooks, and the maximum size of one in bytes.
HOST = "127.0.0.1"
MAX_WEBHOOK = 16 * 1024 * 1024
_LENGTH_DIGITS = 20
# The page of another program comes from a proxy: at its start the listener reached the service.
_SERVICE_IS_AWAY = (*RETRYABLE, NotTheService)
_NAMES = UUID("7d6f0c4e-7b39-4d4e-9a57-0f6c2c6a8f11")


class Listener:
    """Posts each task that finishes after now to `url`, signed with the user's secret."""

    def __init__(self, client: Client, url: str, print_line: Callable[[str], None]) -> None:
        """Raises TaskServiceError. `print_line` is called for each attempt."""
        self._client, self._url, self._print_line = client, url, print_line
        self._since = self._now()
        self._seen: dict[str, datetime] = {}
        # By webhook-id: when to post it, how often that has failed, and the task's id.
        self._due: dict[str, tuple[float, int, str]] = {}
        _secret(client)  # fail now if the key may not read it

    def listen(self, stopped: Event) -> None:
        """Run until `stopped`; retry while the service is away."""
        while not stopped.is_set():
            try:
                self.poll()
            except _SERVICE_IS_AWAY as error:
                self._print_line(str(error))
            stopped.wait(POLL_SECONDS)

    def poll(self) -> None:
        """Ask once for finished tasks, and post the webhooks that are due."""
        for webhook_id, task_id in self._finished():
            self._due[webhook_id] = (0.0, 0, task_id)
        now = time.monotonic()
        for webhook_id, (due_at, failures, task_id) in list(self._due.items()):
            if due_at <= now:
                self._post(webhook_id, task_id, failures)

    def _finished(self) -> Iterator[tuple[str, str]]:
        """The webhook-id and task id of each end that was not seen before."""
        since = self._since
        for task in self._client.tasks(
            finished_after=_rfc3339(since), sort="finishedAt", fields="id,finishedAt"
        ):
            finished_at = task.data["finishedAt"]
            # A task can finish twice: by a timeout, and then by a late report.
            webhook_id = str(uuid5(_NAMES, f"{task.id} {finished_at}"))
            if webhook_id not in self._seen:
                moment = datetime.fromisoformat(finished_at)
                self._seen[webhook_id] = moment
                self._since = max(self._since, moment - OVERLAP)
                yield webhook_id, task.id
        self._seen = {name: at for name, at in self._seen.items() if at >= self._since}

    def _post(self, webhook_id: str, task_id: str, failures: int) -> None:
        try:
            task = self._client.task(task_id)
            after = max(task.data["logCount"] - WEBHOOK_LINES, 0)
            text = webhook_body(task.data, [line.text for line in task.lines(after)])
        except NotFound:
            del self._due[webhook_id]
            return
        headers = signing.sign([_secret(self._client)], webhook_id, int(time.time()), text)
        result = _send(self._url, headers, text)
        self._print_line(f"{task_id} {task.name}: {result}")
        del self._due[webhook_id]
        if not result.startswith("2") and failures < len(RETRY_DELAYS):
            retry_at = time.monotonic() + RETRY_DELAYS[failures]
            self._due[webhook_id] = (retry_at, failures + 1, task_id)

    def _now(self) -> datetime:
        """The time of the service's clock, from which this machine's may differ."""
        answer = self._client.connection.call("GET", "/user", USER)
        # A proxy may have removed or damaged the header.
        return terms.moment(answer.headers.get("Date", "")) or datetime.now(UTC)


class Receiver(TCPServer):
    """Receives webhooks on this machine, one at a time, and keeps the signed ones."""

    allow_reuse_address = True
    # How long `handle_request` waits.
    timeout = POLL_SECONDS

    def __init__(self, client: Client, port: int, print_line: Callable[[str], None]) -> None:
        """Raises TaskServiceError, and OSError for a port that is taken.

        `print_line` is called for each request that is refused.
        """
        self._client, self._print_line = client, print_line
        self._received: list[bytes] = []
        _secret(client)  # fail now if the key may not read it
        super().__init__((HOST, port), _Request)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def webhooks(self, stopped: Event) -> Iterator[bytes]:
        """The body of each webhook that is signed with the user's secret, until `stopped`."""
        while not stopped.is_set():
            self.handle_request()
            while self._received:
                yield self._received.pop(0)

    def receive(self, headers: Mapping[str, str], body: bytes) -> HTTPStatus:
        """Keep a webhook that is signed; returns what to answer."""
        try:
            # Read each time, because it may have been rotated.
            secret = _secret(self._client)
        except _SERVICE_IS_AWAY as error:
            self._print_line(str(error))
            return HTTPStatus.SERVICE_UNAVAILABLE
        if not signing.is_signed([secret], headers, body, time.time()):
            self._print_line("refused a request that is not signed with your callback secret")
            return HTTPStatus.BAD_REQUEST
        self._received.append(body)
        return HTTPStatus.NO_CONTENT

    def handle_error(self, *_: Any) -> None:
        """Ignore a sender that closed the connection; raise any other error."""
        if not isinstance(sys.exception(), OSError):
            raise


class _Request(BaseHTTPRequestHandler):
    server: Receiver
    timeout = ATTEMPT_SECONDS

    def do_POST(self) -> None:
        status = self._refusal(self.headers.get("content-length", ""))
        if status is None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = self.server.receive(headers, self._body())
        self.send_response(status)
        self.end_headers()

    def _refusal(self, length: str) -> HTTPStatus | None:
        if not length:
            return HTTPStatus.LENGTH_REQUIRED
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.BAD_REQUEST
        # Python refuses to read a number of thousands of digits.
        is_large = len(length) > _LENGTH_DIGITS or int(length) > MAX_WEBHOOK
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE if is_large else None

    def _body(self) -> bytes:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("The sender closed the connection")
        return body

    def log_message(self, *_: Any) -> None:
        """Only what was received is shown."""


def _secret(client: Client) -> str:
    answer = client.connection.call("GET", "/callback-secret", CALLBACK_SECRET)
    return str(answer.data["secret"])


def webhook_body(task: Mapping[str, Any], lines: Sequence[str]) -> bytes:
    """The body of a finished task's webhook; `lines` are the last lines of its log."""
    kept, size = 0, 0
    for line in reversed(lines):
        size += len(line.encode())
        if size > WEBHOOK_LOG_BYTES:
            break
        kept += 1
    log = {"logs": lines[len(lines) - kept :], "firstLog": task["logCount"] - kept + 1}
    members = list(task.items())
    # The log has its place after the input.
    place = list(task).index("input") + 1
    cut = dict(members[:place]) | log | dict(members[place:]) | log
    return json.dumps(cut, ensure_ascii=False, separators=(",", ":")).encode()


def _send(url: str, headers: Mapping[str, str], text: bytes) -> str:
    """What the receiver answered, or why there was no answer."""
    own = {"Content-Type": "application/json", "User-Agent": "taskservice"}
    with requests.Session() as session:
        # Like the service: without the proxies and passwords of the environment.
        session.trust_env = False
        try:
            answer = session.post(
                url, data=text, headers={**own, **headers},
                timeout=ATTEMPT_SECONDS, allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as error:
            return type(error).__name__
    return f"{answer.status_code} {answer.reason}".rstrip()


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
