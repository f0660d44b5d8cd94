"""The responses of the server to requests that fail or do not reach the application."""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from gunicorn.http import errors
from gunicorn.http.message import Request
from gunicorn.util import http_date

from taskservice import resources
from taskservice.auth import KEY_HEADERS
from taskservice.errors import Problem, body, stopping
from taskservice.operations import metrics, request_log
from taskservice.terms import PROBLEM_TYPE

logger = logging.getLogger(__name__)

_HOST = re.compile(r"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?", re.ASCII)

_INTERNAL = (500, "Internal error; see the service's log")
_BAD_HEADER = (400, "A header is malformed, missing, duplicated or contradictory")
_BAD_CHUNK = (400, "The chunks of the request's body are malformed")

# Error of gunicorn -> the status, and a fixed text, since gunicorn's text can contain a secret of
# the request.
_REFUSALS: dict[type[BaseException], tuple[int, str]] = {
    errors.ParseException: (400, "The request is not valid HTTP"),
    errors.InvalidRequestLine: (400, "The request line is malformed"),
    errors.InvalidRequestMethod: (400, "The method is malformed"),
    errors.InvalidHTTPVersion: (400, "Only HTTP/1.1 and HTTP/1.0 are supported"),
    errors.InvalidHeader: _BAD_HEADER,
    errors.InvalidHeaderName: _BAD_HEADER,
    errors.ObsoleteFolding: _BAD_HEADER,
    errors.InvalidChunkSize: _BAD_CHUNK,
    errors.InvalidChunkExtension: _BAD_CHUNK,
    errors.ChunkMissingTerminator: _BAD_CHUNK,
    errors.LimitRequestLine: (414, "The request line is too long"),
    errors.ExpectationFailed: (417, "The only supported expectation is 100-continue"),
    errors.LimitRequestHeaders: (431, "The headers are too many or too long"),
    errors.UnsupportedTransferCoding: (501, "The only supported transfer coding is chunked"),
    # The application sent the malformed headers, not the client.
    errors.InvalidResponseHeader: _INTERNAL,
    errors.InvalidResponseHeaderName: _INTERNAL,
    errors.ConfigurationProblem: _INTERNAL,
    BaseException: _INTERNAL,
}


def check_head(request: Request) -> None:
    """Raise ParseException for an invalid Host or Transfer-Encoding that gunicorn accepts."""
    host = None
    for name, value in request.headers:
        if name == "HOST":
            host = value
        elif name == "TRANSFER-ENCODING":
            codings = {coding.strip(" \t").lower() for coding in value.split(",")}
            if codings - {"chunked", "identity"}:
                raise errors.UnsupportedTransferCoding(value)
    if host is None and request.version == (1, 0):
        return
    if host is None or not _HOST.fullmatch(host):
        raise errors.InvalidHeader("HOST", req=request)


def late() -> Problem:
    """The problem for a request that has not arrived in time."""
    is_stopping = resources.stopping.is_set()
    return stopping() if is_stopping else Problem(408, "The request did not arrive in time")


def short() -> Problem:
    """The problem for a request whose client has closed the connection too early."""
    return Problem(400, "The request's body ends early")


def problem_of(error: BaseException) -> Problem:
    """The problem for the client; a 500 if `error` is not the client's fault."""
    if isinstance(error, Problem):
        return error
    return Problem(*next(_REFUSALS[kind] for kind in type(error).__mro__ if kind in _REFUSALS))


def checked_chunks(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks of a request's body. Raises a Problem if a chunk is malformed."""
    try:
        yield from chunks
    except errors.ParseException as error:
        raise problem_of(error) from None


def as_response(problem: Problem, method: str | None, request_id: str) -> bytes:
    """The bytes of the response, which closes the connection. There is no body for HEAD."""
    content = body(problem, request_id)
    headers = {
        "Date": http_date(),
        "Connection": "close",
        "Cache-Control": "no-store",
        "Vary": KEY_HEADERS,
        "Content-Type": PROBLEM_TYPE,
        "Content-Length": len(content),
        "X-Request-Id": request_id,
        **problem.headers,
    }
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else content)


def refuse(sock: socket.socket, client: Any, error: BaseException, request: Request | None) -> None:
    """Refuse a request because of `error`, without calling the application."""
    problem = problem_of(error)
    method = request.method if request else None
    # Count the request here, since the application counts only requests to which it responds.
    metrics.requests.add(None, method or "", problem.status, 0.0)
    extra = request_log.log_extra(request.headers if request else ())
    if problem.status == 500:
        name = f"{request.method} {request.path}" if request else "a request"
        logger.error("Could not respond to %s", name, exc_info=error, extra=extra)
    else:
        # The client of a unix socket has no address.
        why = client[0] if client else "a local socket", problem.status, problem.detail
        logger.info("Refused a request from %s: %s %s", *why, extra=extra)
    with suppress(OSError):
        sock.sendall(as_response(problem, method, extra["details"]["requestId"]))
