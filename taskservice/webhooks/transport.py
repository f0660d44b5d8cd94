"""Sends one webhook once, and says in one plain sentence how that went."""

import contextlib
import http.client
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from taskservice.contract import http_headers
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
from taskservice.webhooks.interrupt import Interrupt

MAX_RETRY_AFTER = 86_400.0

_HEADERS = {
    "User-Agent": "taskservice",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Outcome(NamedTuple):
    """How one attempt ended."""

    message: str  # one sentence for a person, without secrets and without path or query
    delivered: bool = False  # the receiver answered 2xx
    permanent: bool = False  # another attempt would change nothing: refused, or answered 410
    status_code: int | None = None  # None if there was no answer
    retry_after: float | None = None  # seconds the receiver asks for, over 0, at most a day
    duration_ms: int = 0


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
    """POST `body` to `url` in `deadline` seconds at most; raises for nothing that happens there.

    The answer is its status and headers: what its body does after them, such as drip,
    changes nothing but the duration. `headers` go before our own few, User-Agent too.
    Raises Interrupted when `interrupt` was set before there was an answer.

    `confirm` is called when the connection is made, which may take long, and before any of the
    request is sent: what it raises ends the attempt, and is raised here.
    """
    clock, interrupt = Deadline(deadline), interrupt or Interrupt()
    try:
        response = _post(url, headers, body, allowed, clock, resolve, interrupt, confirm)
    except RefusedError as refusal:
        outcome = Outcome(str(refusal), permanent=True)
    except (NoAnswerError, OSError, http.client.HTTPException) as error:
        outcome = Outcome(_explain(error, deadline))
    else:
        outcome = _outcome_of_answer(response)
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
) -> requests.Response:
    """The answer, its body read as far as we go and its connection closed."""
    target = check_url(url, allowed)
    kind = SecureConnection if target.scheme == "https" else Connection
    request = requests.Request("POST", url, headers={**_HEADERS, **headers}, data=body)
    connection = kind(target, allowed, clock, resolve, interrupt)
    with contextlib.closing(_Adapter(connection, interrupt, confirm)) as adapter:
        # No Session: it would follow the environment (proxies, .netrc), and read all of a
        # redirect's body, decoded, even when told not to follow it.
        response = adapter.send(request.prepare())
        # Whatever its body does (a chunk of -5 bytes is a ValueError), it has answered.
        with contextlib.suppress(Exception):
            response.raw.read(MAX_ANSWER_BYTES)
    return response


class _Adapter(BaseAdapter):
    """Lets requests speak over one connection, once."""

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
        # A receiver may answer, and hang up, before it has read everything.
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
        except Exception as error:  # the parsers' own, for what they did not think of
            raise http.client.HTTPException from error


def _outcome_of_answer(response: requests.Response) -> Outcome:
    status = response.status_code
    phrase = http.client.responses.get(status, "")  # the receiver's own may be anything
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
    seconds = http_headers.seconds(response.headers.get("Retry-After", ""))
    return min(seconds, MAX_RETRY_AFTER) if seconds else None


def _explain(error: Exception, deadline: float) -> str:
    if isinstance(error, NoAnswerError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"No answer within {deadline:g} s."
    if isinstance(error, OSError):
        return "The receiver closed the connection before it had answered."
    return "The receiver's answer is not HTTP."
