"""What the responses of the service must be; any other becomes an error with one sentence."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from taskservice import terms
from taskservice.terminal import without_user_info
from taskservice.terms import (
    ANSWERED,
    CANCELLED,
    MAX_LOG,
    NOT_FOUND,
    PROBLEM_TYPE,
    QUESTION_STATES,
    STATUSES,
)

# The errors of the client: one class for each kind.


class TaskServiceError(Exception):
    """The base class of all errors here; its text is one line for a person."""


class SettingError(TaskServiceError):
    """TASKSERVICE_URL or TASKSERVICE_APIKEY is missing or can't be used."""


class Unreachable(TaskServiceError):
    """No complete answer came."""


class NotTheService(TaskServiceError):
    """Another program than this service answers at that URL."""


class UnexpectedAnswer(NotTheService):
    """An answer that this service does not give, such as a proxy's page while it is away.

    What was sent does not count as stored.
    """


class OtherVersion(UnexpectedAnswer):
    """The service is older or newer than this client, and they do not understand each other."""


class Refused(TaskServiceError):
    """The service refused: `status` is the HTTP status, `problem` the answer's JSON."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.detail = str(problem.get("detail") or f"The service answered {status}")
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pool of processes pickles the errors of its workers.
        return type(self), (self.status, self.problem), self.__dict__ | {"args": self.args}


class Unreadable(Refused):
    """400: the request could not be read."""


class InvalidKey(Refused):
    """401: the API key is unknown, revoked, expired or mistyped."""


class Forbidden(Refused):
    """403: the key may not do this; an agent key can neither cancel nor delete."""


class NotFound(Refused):
    """404: it does not exist, was deleted, or the key may not see it."""


class Conflict(Refused):
    """409: the present state does not allow it."""


class TaskFinished(Conflict):
    """409: the task has ended; `task` is its id, status and error."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.task: Mapping[str, Any] = problem["task"]


class TaskCancelled(TaskFinished):
    """409: the task's user has cancelled it; its agent should stop."""


class LinesMissing(Conflict):
    """409: lines before these are missing; `expected` is the number of the next line."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.expected: int = problem["expected"]


class TooLarge(Refused):
    """413: the request, or what it would add to, is too large."""


class Invalid(Refused):
    """422: the request is invalid; `errors` maps fields to messages."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.errors: Mapping[str, Any] = problem.get("errors") or {}
        if self.errors:
            self.args = ("; ".join(f"{name}: {_text(said)}" for name, said in self.errors.items()),)


class Unavailable(Refused):
    """429 or 5xx: try again, after `retry_after` seconds if that is not None."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(status, problem)
        self.retry_after = retry_after


class NoAnswer(TaskServiceError):
    """A question that will get no answer; `question` is its JSON."""

    sentence = "The question got no answer"

    def __init__(self, question: Mapping[str, Any]) -> None:
        super().__init__(question)
        self.question = question

    def __str__(self) -> str:
        return self.sentence


class QuestionDeclined(NoAnswer):
    """A person has declined the question."""

    sentence = "The question was declined"


class QuestionExpired(NoAnswer):
    """Nobody has answered the question within its timeout."""

    sentence = "Nobody has answered the question in time"


class QuestionWithdrawn(NoAnswer):
    """The question was withdrawn by another program; the task runs on."""

    sentence = "The question was withdrawn"


# Another attempt may succeed.
RETRYABLE = (Unreachable, UnexpectedAnswer, Unavailable)


def _text(said: Any) -> str:
    if isinstance(said, dict):  # of a field with members
        return ", ".join(f"{name}: {_text(each)}" for name, each in said.items())
    return " ".join(map(str, said)) if isinstance(said, list) else str(said)


# What the responses must be.

JSON = "application/json"
# The largest body that is read, in bytes. A task has two objects of 1 MiB, and no other single
# thing is larger.
MAX_BYTES = 16 * 1024 * 1024
# The same for lists and logs: a page may have a whole log, and JSON makes six bytes of some.
MAX_LIST_BYTES = 8 * MAX_LOG

Check: TypeAlias = Callable[[Any], bool]


def _number(low: int, high: float, *types: type) -> Check:
    # `type`, because a bool is an int too.
    return lambda value: type(value) in types and low <= value <= high


def _is_time(value: Any) -> bool:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    # In the last hours of the year 9999 it may have no local time.
    return moment.tzinfo is not None and 1970 <= moment.year < 9999


# A shape of JSON is a type, None, a function or an expression that it must match, a set of texts, a
# list with the shape of each member, a tuple of alternatives, or the members of an object: "name",
# "name?" if it may be missing, "*" for each. An object may have more members.
Shape: TypeAlias = Any


def _check(shape: Shape) -> Check:
    """A function that tells whether JSON has this shape."""
    if isinstance(shape, type):
        return lambda value: isinstance(value, shape)
    if isinstance(shape, set):
        return lambda value: isinstance(value, str) and value in shape
    if isinstance(shape, re.Pattern):
        return lambda value: isinstance(value, str) and shape.fullmatch(value) is not None
    if isinstance(shape, tuple):
        checks = [_check(each) for each in shape]
        return lambda value: any(fits(value) for fits in checks)
    if isinstance(shape, list):
        fits = _check(shape[0])
        return lambda value: isinstance(value, list) and all(map(fits, value))
    if isinstance(shape, dict):
        return _check_of_object(shape)
    return shape or (lambda value: value is None)


def _check_of_object(shape: dict[str, Shape]) -> Check:
    if "*" in shape:
        fits_each = _check(shape["*"])
        return lambda value: isinstance(value, dict) and all(map(fits_each, value.values()))
    members = [(key.removesuffix("?"), key[-1] == "?", _check(each)) for key, each in shape.items()]
    return lambda value: (
        isinstance(value, dict)
        and all(
            fits(value[name]) if name in value else may_be_missing
            for name, may_be_missing, fits in members
        )
    )


_COUNT = _number(0, (1 << 53) - 1, int)
_SHARE = _number(0, 1, int, float)
_SECONDS_OR_NULL = (_number(0, sys.float_info.max, int, float), None)
_VERSION = re.compile("[0-9][0-9A-Za-z.+]{0,63}")
_SECRET = re.compile(
    "(whsec_)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)"
)
_STATUS = set(STATUSES)
_TIME_OR_NULL = (_is_time, None)
_TEXT_OR_NULL = (str, None)
_CHOICES: Shape = {"enum?": [object], "oneOf?": [{"const": object}], "anyOf?": [{"const": object}]}
_PROPERTY: Shape = {
    "type": str, "title?": str, "description?": str, "items?": _CHOICES, **_CHOICES,
}  # fmt: skip
_QUESTION = _check({
    "id": str,
    "message": str,
    "state": set(QUESTION_STATES),
    "schema": {"properties": {"*": _PROPERTY}, "required?": [str]},
    "askedAt": _is_time,
    "expiresAt": _TIME_OR_NULL,
    "answer": (dict, None),
    "answeredBy": _TEXT_OR_NULL,
})  # fmt: skip


def _is_question(value: Any) -> bool:
    return _QUESTION(value) and (value["state"] == ANSWERED) == (value["answer"] is not None)


_ERROR: Shape = ({"type": str, "message": str}, None)
_TASK: Mapping[str, Shape] = {
    "id": str,
    "name": str,
    "agentId": str,
    "userId": str,
    "createdAt": _is_time,
    "updatedAt": _is_time,
    "claimedAt": _TIME_OR_NULL,
    "finishedAt": _TIME_OR_NULL,
    "firstLog": _COUNT,
    "logCount": _COUNT,
    "input": dict,
    "output": dict,
    "logs": [str],
    "status": _STATUS,
    "error": _ERROR,
    "progress": (_SHARE, None),
    "labels": {"*": str},
    "questions": [_is_question],
    "startedBy": _TEXT_OR_NULL,
    "endedBy": _TEXT_OR_NULL,
    "note": _TEXT_OR_NULL,
    "parentId": _TEXT_OR_NULL,
    "rerunOf": _TEXT_OR_NULL,
    "callback": _TEXT_OR_NULL,
}
# All fields but the log, which can be long.
SHORT_FIELDS = ",".join(name for name in _TASK if name != "logs")
_PAGE = _check({"logs": [str], "next": _COUNT, "status": _STATUS, "times?": [_TIME_OR_NULL]})


def _is_page(value: Any) -> bool:
    if not _PAGE(value) or value["next"] < len(value["logs"]):
        return False
    return len(value.get("times", value["logs"])) == len(value["logs"])


_AGENT: Shape = {"id": str, "name": str, "description": str, "userId": str, "createdAt": _is_time}
_HEALTH: Shape = {
    "recent": [
        {
            "id": str,
            "status": _STATUS,
            "finishedAt": _is_time,
            "seconds": _SECONDS_OR_NULL,
        }
    ],
    "successRate": (_SHARE, None),
    "lastSuccessAt": _TIME_OR_NULL,
    "medianSeconds": _SECONDS_OR_NULL,
}


class Expected:
    """What a response must have: one of these statuses, and JSON of this shape."""

    def __init__(self, statuses: tuple[int, ...], shape: Shape, max_bytes: int = MAX_BYTES) -> None:
        self.statuses = statuses
        self.fits = _check(shape)
        self.max_bytes = max_bytes


def _list_of(shape: Shape) -> Expected:
    return Expected((200,), [shape], MAX_LIST_BYTES)


APPENDED = Expected((201,), {"logCount": _COUNT, "status": _STATUS})
LOG_PAGE = Expected((200,), _is_page, MAX_LIST_BYTES)
QUESTION = Expected((200, 201), _is_question)
QUESTIONS = _list_of(_is_question)
AGENT = Expected((200, 201), {"id": str})
AGENTS = _list_of({"id": str})
FULL_AGENTS = _list_of(_AGENT)
AGENTS_WITH_HEALTH = _list_of(_AGENT | {"health": _HEALTH})
USER = Expected((200,), {"id": str, "key": {"agentId": _TEXT_OR_NULL}})
OPENAPI = Expected((200,), {"info": {"version": _VERSION}})
CALLBACK_SECRET = Expected((200,), {"secret": _SECRET})


def task(fields: str, *statuses: int) -> Expected:
    """A task with these fields, which are separated by commas."""
    return Expected(statuses or (200,), _task_with(fields))


def tasks(fields: str) -> Expected:
    """A list of such tasks."""
    return _list_of(_task_with(fields))


def _task_with(fields: str) -> Shape:
    return {name: _TASK.get(name, object) for name in fields.split(",")}


# The first of these that a problem fits is raised; Refused for a status that none has. A 404 stops
# a program, so it must be certain: for an unknown path the service has another code, and so have
# other programs that send problems. An empty tuple stands for a member that is missing.
_FINISHED: Shape = {"id": str, "status": str, "error": _ERROR}
_CANCELLED: Shape = {"type": {CANCELLED}, "message": str}
_REFUSALS: list[tuple[int, type[Refused], Check]] = [
    (400, Unreadable, _check({})),
    (401, InvalidKey, _check({})),
    (403, Forbidden, _check({})),
    (404, NotFound, _check({"code": {NOT_FOUND}})),
    (409, LinesMissing, _check({"expected": _number(1, 1 << 53, int)})),
    (409, TaskCancelled, _check({"task": _FINISHED | {"error": _CANCELLED}})),
    (409, TaskFinished, _check({"task": _FINISHED})),
    (409, Conflict, _check({"expected?": (), "task?": ()})),
    (422, Invalid, _check({"errors?": dict})),
]
_PROBLEM = _check({"title": str, "status": _COUNT, "detail": str})


# Reads the responses; any other one becomes an error with one sentence.


class Response(NamedTuple):
    """What came from the URL of the service, or from another program there.

    `data` is the JSON of a response that was read, None for a 204.
    """

    url: str
    status_code: int
    headers: Mapping[str, str]
    content: bytes
    data: Any = None


def read(received: Response, expected: Expected) -> Response:
    """The response, if it is as expected. Raises TaskServiceError for any other."""
    status = received.status_code
    if not 200 <= status < 300:
        raise _error(received)
    if status not in expected.statuses:
        raise _not_ours(received)
    if status == 204:
        return received
    data = _json(received, JSON)
    if not expected.fits(data):
        raise _not_ours(received)
    return received._replace(data=data)


def may_be_of_another_version(received: Response, error: TaskServiceError) -> bool:
    """Whether a service of another version may have sent this response, of which `error` tells."""
    if isinstance(error, Invalid):
        return "Unknown " in str(error)  # a field or a parameter
    return isinstance(error, UnexpectedAnswer) and _media_type(received) == JSON


def _error(received: Response) -> TaskServiceError:
    """The error for a response that is not 2xx."""
    status = received.status_code
    problem = _problem(received)
    if status == 429 or status >= 500:
        retry_after = terms.seconds(received.headers.get("Retry-After", ""))
        return Unavailable(status, problem or {}, retry_after)
    if status == 413:
        # A proxy may have a limit of its own; its response is no problem of this service.
        return TooLarge(413, problem or {})
    if problem is not None:
        refusals = [(error, fits) for code, error, fits in _REFUSALS if code == status]
        for error, fits in refusals or [(Refused, _PROBLEM)]:
            if fits(problem):
                return error(status, problem)
    if 300 <= status < 400 and "Location" in received.headers:
        target = without_user_info(received.headers["Location"])
        return NotTheService(f"{received.url} redirects to {target}; use that URL")
    return _not_ours(received, NotTheService)


def _problem(received: Response) -> dict[str, Any] | None:
    """The problem in a response; None if it is not a problem of this service."""
    try:
        problem: dict[str, Any] = _json(received, PROBLEM_TYPE)
    except UnexpectedAnswer:
        return None
    is_ours = _PROBLEM(problem) and problem["status"] == received.status_code
    return problem if is_ours else None


def _not_ours(received: Response, kind: type[NotTheService] = UnexpectedAnswer) -> NotTheService:
    url = received.url.partition("?")[0]
    return kind(f"{url} answered {received.status_code}, but not as taskservice does")


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _json(received: Response, media_type: str) -> Any:
    """The JSON of a response. Raises UnexpectedAnswer where it has none of this type."""
    if _media_type(received) != media_type:
        raise _not_ours(received)
    try:
        value = json.loads(received.content.decode(), parse_constant=int)  # no Infinity
        if _SURROGATE.search(received.content):
            json.dumps(value, ensure_ascii=False).encode()  # fails where one stands alone
    except (ValueError, RecursionError):
        raise _not_ours(received) from None
    return value


def _media_type(received: Response) -> str:
    return received.headers.get("Content-Type", "").partition(";")[0].strip().lower()
