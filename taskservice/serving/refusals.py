"""Requests that the server itself refuses, and the problem+json that it sends for them."""

from http import HTTPStatus
from typing import NamedTuple

from flask import Response
from gunicorn.http import errors
from gunicorn.util import http_date

from taskservice import errors as problems
from taskservice.auth import KEY_HEADERS
from taskservice.errors import Problem
from taskservice.terms import OVERLOADED, PROBLEM_TYPE, STOPPING

RETRY_SECONDS = 2


class Refusal(NamedTuple):
    """A response of the server itself; `detail` is a fixed sentence, so it can't echo a secret."""

    status: int
    detail: str
    code: str | None = None


class RefusedError(Exception):
    """A request that the server refuses, in addition to those that gunicorn's parser refuses."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class RefusedByApplicationError(Exception):
    """The application refuses the request because of its headers, with `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


INTERNAL = Refusal(500, "Internal error; see the service's log")
BODY_TOO_LARGE = Refusal(413, "The request's body is too large")
TOO_MANY_CHUNKS = Refusal(413, "The request's body has too many chunks")
REQUEST_TOO_SLOW = Refusal(408, "The request did not arrive in time")
TOO_MUCH_AT_ONCE = Refusal(503, "Too many large requests at once; try again later", OVERLOADED)
SERVICE_STOPS = Refusal(503, "The service is stopping", STOPPING)
_UNREADABLE = Refusal(400, "The request is not valid HTTP")
_BAD_HEADER = Refusal(400, "A header is malformed, missing, duplicated or contradictory")
_BAD_CHUNK = Refusal(400, "The chunks of the request's body are malformed")

_REFUSALS: dict[type[BaseException], Refusal] = {
    errors.ParseException: _UNREADABLE,
    errors.InvalidRequestLine: Refusal(400, "The request line is malformed"),
    errors.InvalidRequestMethod: Refusal(400, "The method is malformed"),
    errors.InvalidHTTPVersion: Refusal(400, "Only HTTP/1.1 and HTTP/1.0 are supported"),
    errors.InvalidHeader: _BAD_HEADER,
    errors.InvalidHeaderName: _BAD_HEADER,
    errors.ObsoleteFolding: _BAD_HEADER,
    errors.InvalidChunkSize: _BAD_CHUNK,
    errors.InvalidChunkExtension: _BAD_CHUNK,
    errors.ChunkMissingTerminator: _BAD_CHUNK,
    errors.LimitRequestLine: Refusal(414, "The request line is too long"),
    errors.ExpectationFailed: Refusal(417, "The only supported expectation is 100-continue"),
    errors.LimitRequestHeaders: Refusal(431, "The headers are too many or too long"),
    errors.UnsupportedTransferCoding: Refusal(501, "The only supported transfer coding is chunked"),
    # An application's own malformed headers are not the client's fault.
    errors.InvalidResponseHeader: INTERNAL,
    errors.InvalidResponseHeaderName: INTERNAL,
    errors.ConfigurationProblem: INTERNAL,
}


def refusal_for(error: BaseException) -> Refusal:
    """The refusal for the client; `INTERNAL` if `error` is not the client's fault."""
    if isinstance(error, RefusedError):
        return error.refusal
    for kind in type(error).__mro__:
        if kind in _REFUSALS:
            return _REFUSALS[kind]
    return INTERNAL


def as_response(refusal: Refusal, method: str | None, request_id: str) -> bytes:
    """The bytes of the response, after which the connection closes; no body for HEAD."""
    problem = Problem(refusal.status, refusal.detail, code=refusal.code)
    body = problems.body(problem, request_id)
    lines = [
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
        f"Date: {http_date()}",
        "Connection: close",
        "Cache-Control: no-store",
        f"Vary: {KEY_HEADERS}",
        f"Content-Type: {PROBLEM_TYPE}",
        f"Content-Length: {len(body)}",
        f"X-Request-Id: {request_id}",
    ]
    if refusal.status == 503:
        lines.append(f"Retry-After: {RETRY_SECONDS}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
