"""Converts every error to a response of type `application/problem+json` (RFC 9457)."""

import errno
import logging
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from flask import Flask, Response, current_app
from marshmallow import ValidationError
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError
from werkzeug.exceptions import HTTPException

from taskservice import error_codes
from taskservice.http_request import request
from taskservice.terms import PROBLEM_TYPE

logger = logging.getLogger(__name__)

R = TypeVar("R")

RETRY_SECONDS = 2
# No file can be opened or written: too many files are open, or a disk or a quota is full.
NO_MORE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)
# PostgreSQL error codes of problems that the operator can fix: no connection, a read-only server,
# no disk space or memory, a lock timeout, an operator's intervention, and a missing privilege,
# column or table.
UNAVAILABLE_STATES = ("08", "25", "53", "55P03", "57", "42501", "42703", "42P01")


@dataclass(eq=False)
class Problem(Exception):
    """An error of a request, with its status and a message for the caller."""

    status: int
    detail: str
    _: KW_ONLY
    code: str = ""  # one of `error_codes.CODES`, by default the first code with this status
    # Additional members of the JSON object.
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.detail)
        self.code = self.code or error_codes.default(self.status)


def not_found(thing: str) -> Problem:
    """A 404: there is no such task, agent or key, or the caller has no access to it."""
    # The specification of the API prescribes the message for an unknown task.
    return Problem(404, "Task's ID is not found" if thing == "task" else f"No such {thing}")


def require(row: R | None, thing: str) -> R:
    """The row of a task, agent or key; raises 404 if it is None."""
    if row is None:
        raise not_found(thing)
    return row


def invalid_key() -> Problem:
    """A 401, which has the same text whatever is wrong with the key."""
    # If `WWW-Authenticate` contained `resource_metadata`, MCP clients would ignore the
    # `Authorization` header in their configuration.
    headers = {"WWW-Authenticate": 'Bearer realm="taskservice"'}
    return Problem(401, "API key is invalid", headers=headers)


def invalid(errors: Mapping[str, Any], code: str = "") -> Problem:
    """A 422 for an invalid request; `errors` maps fields, parameters and headers to messages."""
    members = {"errors": dict(errors)}
    return Problem(422, "The request is invalid: see `errors`", code=code, members=members)


def database_unavailable(detail: str = "The database is busy, full or unavailable") -> Problem:
    """A 503: the database is unavailable; the caller should retry the request."""
    return Problem(503, detail, headers={"Retry-After": str(RETRY_SECONDS)})


def overloaded(detail: str, seconds: int = RETRY_SECONDS) -> Problem:
    """A 503: the request can succeed after other requests have ended."""
    return Problem(503, detail, code=error_codes.OVERLOADED, headers={"Retry-After": str(seconds)})


def stopping() -> Problem:
    """A 503: this process is stopping; another process can handle the request."""
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return Problem(503, "The service is stopping", code=error_codes.STOPPING, headers=headers)


def sentences(errors: Mapping[str, Any]) -> Iterator[str]:
    """The `errors` of a 422 as text for people, such as `labels: env: Must be a string.`."""
    for name, inner in errors.items():
        yield f"{name}: {' '.join(sentences(inner) if isinstance(inner, dict) else inner)}"


def respond(problem: Problem) -> Response:
    response = Response(body(problem, request.id), problem.status, mimetype=PROBLEM_TYPE)
    response.headers.update(problem.headers)
    return response


def body(problem: Problem, request_id: str) -> bytes:
    """The JSON body of a problem."""
    members = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        **problem.members,
    }
    if problem.status != 401:
        # The body of a 401 is always the same, so it contains no request ID.
        members["requestId"] = request_id
    # The keys of an array's errors are numbers: the indexes of its items.
    return orjson.dumps(members, option=orjson.OPT_NON_STR_KEYS)


def init_app(app: Flask) -> None:
    app.register_error_handler(Exception, lambda error: respond(from_exception(error)))


def from_exception(error: Exception) -> Problem:
    """The problem for an exception; an unexpected exception is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationError):
        # The traceback would keep the request's body in memory, since it refers to a frame of
        # marshmallow.
        error.__traceback__ = None
        messages = error.messages
        return invalid(messages if isinstance(messages, dict) else {"_schema": messages})
    if isinstance(error, HTTPException):
        return _from_http_exception(error)
    if isinstance(error, DBAPIError):
        logger.error("The database rejected a statement: %s", error.orig)
        state = str(getattr(error.orig, "sqlstate", None) or "")
        # With SQLite, an unavailable database always raises OperationalError.
        if isinstance(error, OperationalError) or state.startswith(UNAVAILABLE_STATES):
            return database_unavailable()
        return _failure(error)
    if isinstance(error, TimeoutError):
        logger.error("No connection to the database in time: %s", error)
        return database_unavailable()
    if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
        logger.error("Unhandled error in a request: %s", error)
        return overloaded("The service is out of open files or disk space; try again later")
    logger.error("Unhandled error in a request", exc_info=error)
    return _failure(error)


def _from_http_exception(error: HTTPException) -> Problem:
    """The problem for an error of Flask or Werkzeug, such as 404, 405 and 413."""
    status, code = error.code or 500, ""
    detail = (error.description or HTTPStatus(status).phrase).partition(". ")[0].rstrip(".")
    if status == 413:
        detail = "The request's body is too large"
    if status == 404:
        detail, code = f"No such path: {request.path}", error_codes.NO_SUCH_PATH
    headers = dict(error.get_headers())
    del headers["Content-Type"]
    return Problem(status, detail, code=code, headers=headers)


def _failure(bug: Exception) -> Problem:
    """A 500; raises `bug` instead if Flask is configured to show it to a debugger or a test."""
    chosen = current_app.config["PROPAGATE_EXCEPTIONS"]
    if chosen or (chosen is None and (current_app.testing or current_app.debug)):
        raise bug
    return Problem(500, "Internal error; see the service's log")
