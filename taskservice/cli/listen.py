"""`taskservice listen`: print webhooks, or post them to a local address."""

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from http.server import BaseHTTPRequestHandler
from itertools import accumulate
from socketserver import TCPServer
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import click

from taskservice import terms
from taskservice.bounded_http import Limits, Session
from taskservice.cli import options
from taskservice.cli.service_client import service_client
from taskservice.client import Client, NotFound
from taskservice.client.responses import (
    CALLBACK_SECRET,
    RETRYABLE,
    USER,
    NotTheService,
    UnexpectedResponse,
)
from taskservice.terminal import exit_with_error, notice, print_line
from taskservice.webhooks import signing

HOST = "127.0.0.1"
DEFAULT_PORT = 9000
# Of a webhook in bytes.
_LENGTH = re.compile("[0-9]{1,7}")
POLL_SECONDS = 1.0
# A task that ended shortly before another one can become visible after it.
OVERLAP = timedelta(seconds=60)
# Seconds after each failure until the same webhook is posted again.
RETRY_DELAYS = (1, 2, 5, 10, 30, 60)
ATTEMPT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 64 * 1024
_HEADERS = {"Content-Type": "application/json", "User-Agent": "taskservice", "Connection": "close"}
# The command reached the service at its start, so other programs' responses come from a proxy.
_UNAVAILABLE = (*RETRYABLE, NotTheService)
_NAMES = UUID("7d6f0c4e-7b39-4d4e-9a57-0f6c2c6a8f11")


@options.command(
    "taskservice listen",
    "",
    "--forward http://127.0.0.1:3000/webhook",
    short_help="Receive webhooks on this machine.",
)
@options.text_option(
    "--forward", metavar="URL", help="Post the webhook of each task that finishes to this address."
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help=f"Port to listen on (default: {DEFAULT_PORT})."
)
@options.flag("--json", "as_json", help="Print each webhook as JSON on one line.")
def command(forward: str | None, port: int | None, as_json: bool) -> None:
    """Receive webhooks on this machine, verify their signatures and print each.

    Start a task with the callback http://127.0.0.1:9000/ and wait until it ends. The service
    must be able to reach that address, and TASKSERVICE_CALLBACK_ALLOWED must contain `loopback`,
    as it does with `make run`.

    With --forward the service does not need to reach this machine: the command requests
    finished tasks, with any callback, and posts them to the address as the service would,
    signed with your callback secret. If the receiver does not return 2xx, the same webhook is
    sent again, with the same webhook-id, up to six times.
    """
    if forward is not None and (port or as_json):
        raise click.UsageError("--forward can't be used with --port or --json.")
    if forward is not None and not _is_url(forward):
        raise click.BadParameter("must be a URL such as http://127.0.0.1:9000/", param_hint="URL")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with service_client() as client:
            _secret(client)  # fail now if the key cannot read it
            if forward is None:
                _receive(client, port or DEFAULT_PORT, bytes.decode if as_json else _described)
            else:
                Forwarder(client, forward).forward()
    except KeyboardInterrupt:
        sys.exit(0)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _secret(client: Client) -> str:
    response = client.connection.call("GET", "/callback-secret", CALLBACK_SECRET)
    secret = str(response.data["secret"])
    if not signing.is_secret(secret):
        raise UnexpectedResponse("the service has no valid callback secret")
    return secret


def _receive(client: Client, port: int, show: Callable[[bytes], str]) -> NoReturn:
    """Receive webhooks, one at a time, and print each one with a valid signature."""
    try:
        receiver = Receiver((HOST, port), _Request)
    except OSError as error:
        problem = f"can't listen on {HOST}:{port}: {error.strerror}"
        exit_with_error(f"{problem}; choose another port with --port")
    with receiver:
        receiver.client, receiver.received = client, []
        notice(f"listening on http://{HOST}:{port}/")
        while True:
            receiver.handle_request()
            while receiver.received:
                print_line(show(receiver.received.pop()))


class Receiver(TCPServer):
    allow_reuse_address = True
    client: Client
    received: list[bytes]

    def handle_error(self, *_: Any) -> None:
        """Ignore a sender that closed the connection; raise any other error."""
        if not isinstance(sys.exception(), OSError):
            raise


class _Request(BaseHTTPRequestHandler):
    server: Receiver
    timeout = ATTEMPT_SECONDS

    def do_POST(self) -> None:
        self.send_response(self._receive())
        self.end_headers()

    def _receive(self) -> HTTPStatus:
        """Store a webhook with a valid signature; returns the status of the response."""
        length = self.headers.get("content-length", "")
        if not _LENGTH.fullmatch(length):
            return HTTPStatus.BAD_REQUEST
        body = self.rfile.read(int(length))
        try:
            # Read each time, because it can have been rotated.
            secret = _secret(self.server.client)
        except _UNAVAILABLE as error:
            notice(str(error))
            return HTTPStatus.SERVICE_UNAVAILABLE
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not signing.is_signed([secret], headers, body, time.time()):
            notice("refused a request without a valid signature of your callback secret")
            return HTTPStatus.BAD_REQUEST
        self.server.received.append(body)
        return HTTPStatus.NO_CONTENT

    def log_message(self, *_: Any) -> None:
        """Print no access log."""


def _described(webhook: bytes) -> str:
    """A task in one line: its id and name, and its outcome; or the event of a hook."""
    task: dict[str, Any] = json.loads(webhook)
    if "type" in task:
        event = f"{task['timestamp']} {task['type']} {task['data']['url'] or '-'}"
        return f"{event}, signature verified"
    error, output = task.get("error"), json.dumps(task["output"], ensure_ascii=False)
    result = f"{error['type']}: {error['message']}" if error else output
    return f"{task['id']} {task['name']}: {task['status']} {result}, signature verified"


class Forwarder:
    """Posts each task that finishes after now to `url`, signed with the user's secret."""

    def __init__(self, client: Client, url: str) -> None:
        self._client, self._url = client, url
        # One for all: Python loses a signal that arrives while a session is being finalized.
        self._session = Session(Limits(MAX_RESPONSE_BYTES))
        # Like the service: without the proxies and passwords of the environment, and cookies.
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update(_HEADERS)
        response = client.connection.call("GET", "/user", USER)
        # The clock of this machine can differ, and a proxy can have removed or damaged the header.
        self._since = terms.http_date(response.headers.get("Date", "")) or datetime.now(UTC)
        self._seen: dict[str, datetime] = {}
        # By webhook-id: the time of the next attempt, the number of failures, and the task's id.
        self._due: dict[str, tuple[float, int, str]] = {}

    def forward(self) -> NoReturn:
        """Post the webhooks of tasks as they finish; retry while the service is unavailable."""
        notice(f"forwarding finished tasks to {self._url}")
        while True:
            try:
                self._find_finished()
                now = time.monotonic()
                for webhook_id, (due_at, failures, task_id) in list(self._due.items()):
                    if due_at <= now:
                        self._post(webhook_id, task_id, failures)
            except _UNAVAILABLE as error:
                print_line(str(error))
            time.sleep(POLL_SECONDS)

    def _find_finished(self) -> None:
        since = self._since.isoformat(timespec="milliseconds")
        fields = "id,finishedAt"
        for task in self._client.tasks(finished_after=since, sort="finishedAt", fields=fields):
            finished_at = task.data["finishedAt"]
            # A task can finish twice: by a timeout, and then by a late report.
            webhook_id = str(uuid5(_NAMES, f"{task.id} {finished_at}"))
            if webhook_id not in self._seen:
                ended = datetime.fromisoformat(finished_at)
                self._seen[webhook_id] = ended
                self._since = max(self._since, ended - OVERLAP)
                self._due[webhook_id] = (0.0, 0, task.id)
        self._seen = {name: at for name, at in self._seen.items() if at >= self._since}

    def _post(self, webhook_id: str, task_id: str, failures: int) -> None:
        try:
            task = self._client.task(task_id)
            after = max(task.data["logCount"] - terms.WEBHOOK_LINES, 0)
            text = _webhook_body(task.data, [line.text for line in task.lines(after)])
        except NotFound:
            del self._due[webhook_id]
            return
        headers = signing.sign([_secret(self._client)], webhook_id, int(time.time()), text)
        result = self._send(headers, text)
        print_line(f"{task_id} {task.name}: {result}")
        del self._due[webhook_id]
        if not result.startswith("2") and failures < len(RETRY_DELAYS):
            retry_at = time.monotonic() + RETRY_DELAYS[failures]
            self._due[webhook_id] = (retry_at, failures + 1, task_id)

    def _send(self, headers: Mapping[str, str], text: bytes) -> str:
        """The receiver's response, or why there was none."""
        try:
            response = self._session.post(
                self._url, text, headers=headers, timeout=ATTEMPT_SECONDS, stream=True
            )
        # For a malformed response, the libraries below raise errors of many kinds.
        except Exception as error:
            return type(error).__name__
        # Status and headers decide, as in the service.
        with suppress(Exception), response:
            _ = response.content
        return f"{response.status_code} {response.reason}".rstrip()


def _webhook_body(task: Mapping[str, Any], lines: Sequence[str]) -> bytes:
    """The body of a finished task's webhook; `lines` are the last lines of its log."""
    sizes = accumulate(len(line.encode()) for line in reversed(lines))
    count = sum(size <= terms.WEBHOOK_LOG_BYTES for size in sizes)
    log = {"logs": lines[len(lines) - count :], "firstLog": task["logCount"] - count + 1}
    members = list(task.items())
    # The log follows the input.
    position = list(task).index("input") + 1
    body = dict(members[:position]) | log | dict(members[position:]) | log
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
