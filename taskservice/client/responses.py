"""Parses and checks the responses of the service, and raises their errors."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    is_typeddict,
)  # fmt: skip
from urllib.parse import unquote

import requests

from taskservice import terms
from taskservice.error_codes import NO_GOOD_RUN, NO_SUCH_PATH, NOT_FOUND
from taskservice.exact_json import is_deeper
from taskservice.terminal import without_user_info
from taskservice.terms import CANCELLED, PROBLEM_TYPE, ErrorType


class TaskServiceError(Exception):
    """The base class of all errors of the client. `str(error)` is a message of one line.

    - Stop working: TaskCancelled, TaskFinished, and NotFound if the task was deleted.
    - Try again later: Unreachable, Unavailable, UnexpectedResponse.
    - Fix the call or the setting: Invalid, TooLarge, BadRequest, InvalidKey, Forbidden, Conflict,
      SettingError, NotTheService.
    - Continue without an answer: QuestionDeclined, QuestionExpired, QuestionWithdrawn.
    """


class SettingError(TaskServiceError):
    """TASKSERVICE_URL or TASKSERVICE_APIKEY is missing or invalid, or there is no current task."""


class Unreachable(TaskServiceError):
    """The service could not be reached, or its response was incomplete."""


class NotTheService(TaskServiceError):
    """The server at this URL is not taskservice."""


class UnexpectedResponse(NotTheService):
    """The response is from another program, for example the error page of a proxy.

    It is unknown whether the service has processed the request.
    """


class Refused(TaskServiceError):
    """The service refused a request.

    `status` is the HTTP status, `problem` the JSON of the response (RFC 9457), and `detail`
    describes the error.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.detail = str(problem.get("detail") or f"The service returned status {status}")
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process pool pickles the errors of its workers. By default, unpickling would pass only
        # `args` to `__init__`.
        return type(self), (self.status, self.problem), self.__dict__ | {"args": self.args}


class BadRequest(Refused):
    """HTTP 400: the service could not parse the request."""


class InvalidKey(Refused):
    """HTTP 401: the API key is unknown, revoked, expired or mistyped."""


class Forbidden(Refused):
    """HTTP 403: the key lacks a permission; for example, an agent key can't delete a task."""


class NotFound(Refused):
    """HTTP 404: the resource does not exist or was deleted, or the key has no access to it."""


class Conflict(Refused):
    """HTTP 409: the state does not allow the request, such as deleting an agent that has tasks."""


class TaskFinished(Conflict):
    """HTTP 409: the task has ended; `task` contains its ID, status and error."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.task: Mapping[str, Any] = problem["task"]


class TaskCancelled(TaskFinished):
    """HTTP 409: the task was cancelled; its program should stop."""


class LineGap(Conflict):
    """HTTP 409: earlier lines are missing; `expected` is the number of the first missing line."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.expected: int = problem["expected"]


class TooLarge(Refused):
    """HTTP 413: the request is too large, or the log is full."""


class Invalid(Refused):
    """HTTP 422: a value was rejected; `errors` maps each field to a list of messages."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.errors: Mapping[str, Any] = problem.get("errors") or {}
        if self.errors:
            texts = [f"{name}: {_text(value)}" for name, value in self.errors.items()]
            self.args = ("; ".join(texts),)


class Unavailable(Refused):
    """HTTP 429 or 5xx: try again later. `retry_after` is the number of seconds to wait, or None."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(status, problem)
        self.retry_after = retry_after


class QuestionNotAnswered(TaskServiceError):
    """The question was not answered; `question` is the question as the API returns it."""

    sentence = "The question was not answered"

    def __init__(self, question: Mapping[str, Any]) -> None:
        super().__init__(self.sentence)
        self.question = question


class QuestionDeclined(QuestionNotAnswered):
    """A person declined the question."""

    sentence = "The question was declined"


class QuestionExpired(QuestionNotAnswered):
    """The question expired before a person answered it."""

    sentence = "The question expired without an answer"


class QuestionWithdrawn(QuestionNotAnswered):
    """Another program withdrew the question; the task is still running."""

    sentence = "The question was withdrawn"


_ID_IN_PATH = re.compile(r"/(task|agent|question|hook|key|link)/([^/?]+)")

RETRYABLE = (Unreachable, UnexpectedResponse, Unavailable)  # another attempt can succeed


def _text(messages: Any) -> str:
    if isinstance(messages, dict):  # the messages of nested fields
        return ", ".join(f"{name}: {_text(value)}" for name, value in messages.items())
    return " ".join(map(str, messages)) if isinstance(messages, list) else str(messages)


JSON = "application/json"

# Maximum sizes, in bytes, of a response with one object, and of a response with a list or a log. A
# response can contain a whole log, and JSON represents some bytes of it with six characters.
MAX_OBJECT_BYTES = 4 * terms.MAX_OBJECT
MAX_LIST_BYTES = 8 * terms.MAX_LOG
MAX_DEPTH = 200  # maximum nesting levels of JSON; the service accepts fewer
MAX_NUMBER = 2**53

T = TypeVar("T")

Timestamp = Annotated[str, "RFC 3339"]


class Failure(TypedDict):
    """The reason why a task ended with the status `error`."""

    type: ErrorType
    message: str


class Choice(TypedDict):
    """A value that the schema of a question allows."""

    const: Any
    title: NotRequired[str]


class Choices(TypedDict):
    """The values that the schema of a question allows, in `enum`, `oneOf` or `anyOf`."""

    enum: NotRequired[list[Any]]
    oneOf: NotRequired[list[Choice]]
    anyOf: NotRequired[list[Choice]]


class AnswerField(Choices):
    """A field in the schema of a question."""

    type: str
    items: NotRequired[Choices]
    title: NotRequired[str]
    description: NotRequired[str]


class AnswerSchema(TypedDict):
    """The JSON Schema of the answer to a question."""

    properties: dict[str, AnswerField]
    required: NotRequired[list[str]]


class Question(TypedDict):
    """A question as the API returns it.

    `schema` is the JSON Schema of the answer. `state` is open, answered, declined, expired or
    withdrawn. Times are RFC 3339 strings; `expiresAt` is None if the question never expires.
    `answeredBy` is the name of the key that was used to answer. `answer` and `answeredBy` are None
    until the question is answered.
    """

    id: str
    message: str
    schema: AnswerSchema
    state: str
    askedAt: Timestamp
    expiresAt: Timestamp | None
    answer: dict[str, Any] | None
    answeredBy: str | None


# The types of the members that the client reads, as described in `is_of_type`.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("id", "name", "agentId", "userId", "status", "description"), str),
    **dict.fromkeys(("code", "message", "path", "secret", "taskId", "text", "url", "version"), str),
    **dict.fromkeys(
        ("callback", "endedBy", "note", "parentId", "rerunOf", "startedBy"), str | None
    ),
    **dict.fromkeys(("createdAt", "updatedAt"), Timestamp),
    **dict.fromkeys(("claimedAt", "finishedAt", "expiresAt", "hangingSince"), Timestamp | None),
    **dict.fromkeys(("done", "firstLog", "line", "logCount", "next"), int),
    **dict.fromkeys(("input", "output"), dict[str, Any]),
    **dict.fromkeys(("cut", "delivered"), bool),
    "against": "id",
    "error": Failure | None,
    "hits": ["taskId,agentId,name,status,line,text"],
    "info": "version",
    "key": "name",
    "labels": dict[str, str],
    "lines": ["line,text"],
    "logs": [str],
    "paths": ["path"],
    "progress": float | None,
    "seconds": float | None,
    "questions": [Question],
    "refused": ["id,code"],
    "times": [Timestamp | None],
}


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type `kind`.

    `kind` is a Python type, a list with the type of the items of an array, or a string with the
    names of the members of an object, separated by commas. An object can have additional members.
    """
    if isinstance(kind, str):
        members = {name: _TYPES.get(name, Any) for name in kind.split(",")}
        return _has_members(value, members, members)
    if is_typeddict(kind):
        return _has_members(value, kind.__annotations__, kind.__required_keys__)
    if kind is Timestamp:
        return isinstance(value, str) and _is_time(value)
    if kind in (int, float):  # NaN fails the comparison
        is_number = isinstance(value, int if kind is int else int | float)
        return is_number and -MAX_NUMBER <= value <= MAX_NUMBER
    origin, arguments = get_origin(kind), kind if isinstance(kind, list) else get_args(kind)
    if origin is list or isinstance(kind, list):
        return isinstance(value, list) and all(is_of_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and is_of_type([*value.values()], [arguments[1]])
    if origin in (Union, UnionType, NotRequired):
        return any(is_of_type(value, argument) for argument in arguments)
    # Any string is valid for a Literal, since a newer service may return new values.
    return kind is Any or isinstance(value, str if origin is Literal else kind)


def _has_members(value: Any, members: Mapping[str, Any], required: Collection[str]) -> bool:
    return isinstance(value, dict) and all(
        is_of_type(value[name], kind) if name in value else name not in required
        for name, kind in members.items()
    )


def _is_time(text: str) -> bool:
    """Whether the text is a time with an offset, which can be converted to any time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return False
    return time.tzinfo is not None and 1 < time.year < 9999


@dataclass(frozen=True)
class Expected(Generic[T]):
    """The expected response: an object or a list of objects; with `is_optional`, it can be empty.

    `members` is the type of each object, as described in `is_of_type`.
    """

    members: Any
    is_optional: bool = False
    is_list: bool = False
    is_log: bool = False

    @property
    def max_bytes(self) -> int:
        return MAX_LIST_BYTES if self.is_list or self.is_log else MAX_OBJECT_BYTES


Object = Expected[dict[str, Any]]
Objects = Expected[list[dict[str, Any]]]

APPENDED = Object("logCount,status")
AGENT = Object("id")
AGENTS = Objects("id", is_list=True)
NUMBERS = Object("paths")
FOUND = Object("hits,searched")
NEW_LINES = Object("against,lines,cut", is_log=True)
USER = Object("id,name,key")


class _FinishedTask(TypedDict):
    id: str
    status: str
    error: Failure | None


class _Problem(TypedDict):
    """The JSON of an error response (RFC 9457), with the members that some error codes add."""

    title: str
    status: int
    detail: str
    code: NotRequired[str]
    errors: NotRequired[dict[str, Any]]
    expected: NotRequired[int]
    task: NotRequired[_FinishedTask]


_REFUSALS: dict[int, type[Refused]] = {
    400: BadRequest, 401: InvalidKey, 403: Forbidden, 409: Conflict, 422: Invalid,
}  # fmt: skip


class Response(NamedTuple, Generic[T]):
    """A successful response; `data` is the parsed `content`, or None for status 204."""

    headers: Mapping[str, str]
    content: bytes
    data: T


def read(received: requests.Response, expected: Expected[T]) -> Response[T]:
    """Parse a response. Raises TaskServiceError if the response is not as expected."""
    status = received.status_code
    if not 200 <= status < 300:
        raise _error(received)
    data: Any = _json(received, JSON)
    is_empty = status == 204 and expected.is_optional
    kind = [expected.members] if expected.is_list else expected.members
    if not (is_empty or is_of_type(data, kind)):
        raise UnexpectedResponse(_not_ours(received))
    return Response(received.headers, received.content, data)


def _error(received: requests.Response) -> TaskServiceError:
    """The error for a response whose status is not 2xx."""
    status, problem = received.status_code, _json(received, PROBLEM_TYPE)
    is_problem = problem is not None
    if not (is_of_type(problem, _Problem) and problem["status"] == status) or (
        problem.get("expected", 1) < 1
    ):
        problem = {}  # the response is not from taskservice
    if status == 429 or status >= 500:
        retry_after = terms.seconds(received.headers.get("Retry-After", ""))
        return Unavailable(status, problem, retry_after)
    if status == 413:  # a proxy may have sent the response
        return TooLarge(413, problem)
    # Programs stop on NotFound, so raise it only for these error codes. Any other 404 means that
    # the path is unknown or that another program responded.
    if problem and (status != 404 or problem.get("code") in (NOT_FOUND, NO_GOOD_RUN)):
        error = _kind(status, problem)(status, problem)
        # The service does not repeat the ID; say which ID it was, and of what.
        if isinstance(error, NotFound) and (ids := dict(_ID_IN_PATH.findall(received.url))):
            noun = "task" if error.detail.startswith("Task") else [*ids][-1]
            error.args = (f"{error.detail}: {noun} {unquote(ids.get(noun, ''))}",)
        return error
    if problem.get("code") == NO_SUCH_PATH:
        return NotTheService(
            f"{received.url.partition('?')[0]} does not exist: the URL is wrong, or the service is "
            "older than this client"
        )
    if 300 <= status < 400 and "Location" in received.headers:
        target = without_user_info(received.headers["Location"])
        return NotTheService(f"{received.url} redirects to {target}; use that URL")
    kind = UnexpectedResponse if is_problem and not problem else NotTheService
    return kind(_not_ours(received))


def _kind(status: int, problem: Mapping[str, Any]) -> type[Refused]:
    if status == 404 and problem.get("code") == NOT_FOUND:
        return NotFound
    if status == 409 and "expected" in problem:
        return LineGap
    if status == 409 and "task" in problem:
        error = problem["task"]["error"]
        return TaskCancelled if error and error["type"] == CANCELLED else TaskFinished
    return _REFUSALS.get(status, Refused)


def _not_ours(received: requests.Response) -> str:
    url = received.url.partition("?")[0]
    return f"{url} returned {received.status_code}, but the response is not from taskservice"


def _json(received: requests.Response, media_type: str) -> Any:
    """The parsed JSON of a response; None if the JSON is invalid or has another media type."""
    try:
        if _media_type(received) != media_type:
            return None
        value = json.loads(received.content.decode())
        return None if is_deeper(value, MAX_DEPTH) else value
    except (ValueError, RecursionError):
        return None


def _media_type(received: requests.Response) -> str:
    return received.headers.get("Content-Type", "").partition(";")[0].strip().lower()
