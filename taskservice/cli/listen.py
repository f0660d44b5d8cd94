"""`taskservice listen`: post webhooks of finished tasks to a local address."""

import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.cookiejar import DefaultCookiePolicy
from itertools import accumulate
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import click

from taskservice import terms
from taskservice.bounded_http import Limits, Session
from taskservice.cli import options
from taskservice.cli.service_client import program_client
from taskservice.client import Client, NotFound
from taskservice.client.responses import (
    CALLBACK_SECRET,
    RETRYABLE,
    USER,
    NotTheService,
    UnexpectedResponse,
)
from taskservice.terminal import notice, print_line
from taskservice.webhooks import signing

POLL_SECONDS = 1.0
# How far each poll looks back, since tasks that end at nearly the same time can become visible in a
# different order.
OVERLAP = timedelta(seconds=60)
# Seconds from each failure of a webhook to the next attempt.
RETRY_DELAYS = (1, 2, 5, 10, 30, 60)
ATTEMPT_SECONDS = 10.0
MAX_RESPONSE_BYTES = 64 * 1024
_HEADERS = {"Content-Type": "application/json", "User-Agent": "taskservice", "Connection": "close"}
# Retry after NotTheService too: the service has responded before, so this response is from a proxy.
_UNAVAILABLE = (*RETRYABLE, NotTheService)
_NAMES = UUID("7d6f0c4e-7b39-4d4e-9a57-0f6c2c6a8f11")


@options.command(
    "taskservice listen",
    "--forward http://127.0.0.1:3000/webhook",
    short_help="Receive webhooks on this machine.",
)
@options.text_option(
    "--forward",
    metavar="URL",
    required=True,
    help="Address to which the webhook of each finished task is posted.",
)
def command(forward: str) -> None:
    """Receive webhooks on this machine, even if the service can't reach it.

    The command polls the service for finished tasks, with or without a callback. For each task, it
    posts the webhook that the service would send, signed with your callback secret.
    If the receiver does not return 2xx, the webhook is sent again, with the same webhook-id, up to
    six times.
    """
    if not _is_url(forward):
        raise click.BadParameter("must be a URL such as http://127.0.0.1:9000/", param_hint="URL")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with program_client() as client:
            _secret(client)  # fail now if the key cannot read the secret
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


class Forwarder:
    """Posts the webhook of each task that finishes from now on to `url`, signed with the secret."""

    def __init__(self, client: Client, url: str) -> None:
        self._client, self._url = client, url
        # Use one session for all requests, since Python loses a signal that arrives while a session
        # is being finalized.
        self._session = Session(Limits(MAX_RESPONSE_BYTES))
        # Like the service, use no cookies, and no proxies or passwords from the environment.
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update(_HEADERS)
        response = client.connection.call("GET", "/user", USER)
        # Use the service's clock, since this machine's clock can differ. A proxy may have removed
        # or damaged the `Date` header.
        self._since = terms.http_date(response.headers.get("Date", "")) or datetime.now(UTC)
        self._seen: dict[str, datetime] = {}
        # By webhook-id: the time of the next attempt, the number of failures, and the task's ID.
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
        """The receiver's response, or the type of the error if there is no response."""
        try:
            response = self._session.post(
                self._url, text, headers=headers, timeout=ATTEMPT_SECONDS, stream=True
            )
        # `requests` and urllib3 raise many types of errors for malformed responses.
        except Exception as error:
            return type(error).__name__
        # As in the service, only the status of the response matters, even if its body is
        # unreadable.
        with suppress(Exception), response:
            _ = response.content
        return f"{response.status_code} {response.reason}".rstrip()


def _webhook_body(task: Mapping[str, Any], lines: Sequence[str]) -> bytes:
    """The body of a finished task's webhook; `lines` are the last lines of its log."""
    sizes = accumulate(len(line.encode()) for line in reversed(lines))
    count = sum(size <= terms.WEBHOOK_LOG_BYTES for size in sizes)
    log = {"logs": lines[len(lines) - count :], "firstLog": task["logCount"] - count + 1}
    members = list(task.items())
    # In the service's webhooks, the log follows the input.
    position = list(task).index("input") + 1
    body = dict(members[:position]) | log | dict(members[position:]) | log
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
