"""Sends one webhook once, and describes the outcome in one sentence."""

import contextlib
import http.client
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from taskservice import terms
from taskservice.webhooks.attempt import Interrupt
from taskservice.webhooks.connection import (
    MAX_ANSWER_BYTES,
    Connection,
    Deadline,
    NoAnswerError,
    Resolver,
    SecureConnection,
    system_addresses,
)
from taskservice.webhooks.destinations import Destinations, RefusedError, check_url
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.schedule import MAX_RETRY_AFTER

# How much of an answer is kept, and the bytes that its last character may have in all.
KEPT_BYTES = 1024
LONGEST_CHARACTER = 4

_HEADERS = {
    "User-Agent": "taskservice",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


def send(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Destinations,
    deadline: float,
    resolve: Resolver = system_addresses,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    """POST `body` to `url` within `deadline` seconds; failures of the receiver are outcomes.

    Status and headers are the answer; a slow or broken body only adds to the duration. `headers`
    override the default ones. Raises Interrupted when `interrupt` was set before the answer.

    `confirm` is called after the connection is made, which may take long, and before anything is
    sent. What it raises ends the attempt and is raised here.
    """
    clock, interrupt = Deadline(deadline), interrupt or Interrupt()
    try:
        response, beginning = _post(url, headers, body, allowed, clock, resolve, interrupt, confirm)
    except RefusedError as refusal:
        outcome = Outcome(str(refusal), permanent=True)
    except (NoAnswerError, OSError, http.client.HTTPException) as error:
        outcome = Outcome(_explain(error, deadline))
    else:
        outcome = _outcome_of_answer(response)._replace(answer=_text(beginning))
    if outcome.status_code is None:
        interrupt.check()
    return outcome._replace(duration_ms=round(clock.elapsed() * 1000))


def _post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    allowed: Destinations,
    clock: Deadline,
    resolve: Resolver,
    interrupt: Interrupt,
    confirm: Callable[[], None],
) -> tuple[requests.Response, bytes]:
    """The answer and the beginning of its body, which is read up to a limit."""
    target = check_url(url, allowed)
    kind = SecureConnection if target.scheme == "https" else Connection
    request = requests.Request("POST", url, headers={**_HEADERS, **headers}, data=body)
    connection = kind(target, allowed, clock, resolve, interrupt)
    with contextlib.closing(_Adapter(connection, interrupt, confirm)) as adapter:
        # Not a Session, which would use proxies and .netrc, and read the whole decoded body of a
        # redirect even without following it.
        response = adapter.send(request.prepare())
        return response, _read(response.raw)


def _read(answer: Any) -> bytes:
    """Read a body up to the limit of its connection; returns its beginning."""
    beginning = b""
    # A broken body, such as a chunk of -5 bytes, does not change the answer.
    with contextlib.suppress(Exception):
        while part := answer.read1(MAX_ANSWER_BYTES):
            beginning += part[: KEPT_BYTES + LONGEST_CHARACTER - len(beginning)]
    return beginning


def _text(beginning: bytes) -> str | None:
    """At most KEPT_BYTES of UTF-8, with no half of a character at the end; None for nothing."""
    # NUL too, which PostgreSQL cannot store.
    text = beginning.decode(errors="replace").replace("\0", "\ufffd")
    return text.encode()[:KEPT_BYTES].decode(errors="ignore") or None


class _Adapter(BaseAdapter):
    """Sends one request of requests over our connection."""

    def __init__(
        self, connection: Connection, interrupt: Interrupt, confirm: Callable[[], None]
    ) -> None:
        super().__init__()
        self._connection = connection
        self._interrupt = interrupt
        self._confirm = confirm

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self._connection.connect()
        self._confirm()
        # A receiver may answer and close the connection before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(
                str(request.method), request.path_url, request.body, request.headers
            )
        answer = self._answer()
        response = requests.Response()
        response.request = request
        response.status_code = answer.status
        response.headers = CaseInsensitiveDict(answer.getheaders())
        response.raw = answer
        return response

    def close(self) -> None:
        self._interrupt.release()
        self._connection.close()

    def _answer(self) -> http.client.HTTPResponse:
        try:
            return self._connection.getresponse()
        except (NoAnswerError, OSError, http.client.HTTPException):
            raise
        except Exception as error:  # an unexpected error of the parsers
            raise http.client.HTTPException from error


def _outcome_of_answer(response: requests.Response) -> Outcome:
    status = response.status_code
    phrase = http.client.responses.get(status, "")  # the receiver's own phrase is not trusted
    sentence = f"The receiver answered {status} {phrase}".rstrip()
    if 200 <= status < 300:
        return Outcome(f"{sentence}.", delivered=True, status_code=status)
    if 300 <= status < 400:
        sentence += "; redirects are not followed"
    return Outcome(
        f"{sentence}.",
        permanent=status == HTTPStatus.GONE,
        status_code=status,
        retry_after=_retry_after(response),
    )


def _retry_after(response: requests.Response) -> float | None:
    seconds = terms.seconds(response.headers.get("Retry-After", ""))
    return min(seconds, MAX_RETRY_AFTER) if seconds else None


def _explain(error: Exception, deadline: float) -> str:
    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"No answer within {deadline:g} s."
    if isinstance(error, OSError):
        return "The receiver closed the connection before it answered."
    return "The receiver's answer is not HTTP."
