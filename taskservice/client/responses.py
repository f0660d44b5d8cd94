"""Checks the responses of the service, and raises what it refused as errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import requests

from taskservice import terms
from taskservice.terminal import without_user_info
from taskservice.terms import CANCELLED, NO_GOOD_RUN, NOT_FOUND, PROBLEM_TYPE


class TaskServiceError(Exception):
    """The base class of all errors of the client; its text is one line for a person.

    - Stop working: TaskCancelled, TaskFinished, and NotFound if the task was deleted.
    - Try again later: Unreachable, Unavailable, UnexpectedResponse.
    - Fix the call or the setting: Invalid, TooLarge, BadRequest, InvalidKey, Forbidden, Conflict,
      SettingError, NotTheService, OtherVersion.
    - Continue without an answer: QuestionDeclined, QuestionExpired, QuestionWithdrawn.
    """


class SettingError(TaskServiceError):
    """TASKSERVICE_URL or TASKSERVICE_APIKEY is missing or invalid, or there is no current task."""


class Unreachable(TaskServiceError):
    """The service could not be reached, or its response was incomplete."""


class NotTheService(TaskServiceError):
    """The server at this URL is not taskservice."""


class UnexpectedResponse(NotTheService):
    """The response is not from taskservice, but for example a proxy's error page.

    The service has possibly not processed the request.
    """


class OtherVersion(UnexpectedResponse):
    """The service and this client have versions that do not work together."""


class Refused(TaskServiceError):
    """The service refused a request.

    `status` is the HTTP status, `problem` the JSON of the response (RFC 9457), and `detail` its
    sentence.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.detail = str(problem.get("detail") or f"The service returned status {status}")
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pool of processes pickles the errors of its workers.
        return type(self), (self.status, self.problem), self.__dict__ | {"args": self.args}


class BadRequest(Refused):
    """HTTP 400: the service could not read the request."""


class InvalidKey(Refused):
    """HTTP 401: the API key is unknown, revoked, expired or mistyped."""


class Forbidden(Refused):
    """HTTP 403: this kind of key must not do this; an agent key can neither cancel nor delete."""


class NotFound(Refused):
    """HTTP 404: the resource does not exist, was deleted, or the key has no access to it."""


class Conflict(Refused):
    """HTTP 409: the current state does not allow the request, such as deleting a used agent."""


class TaskFinished(Conflict):
    """HTTP 409: the task has ended; `task` contains its id, status and error."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.task: Mapping[str, Any] = problem["task"]


class TaskCancelled(TaskFinished):
    """HTTP 409: the task was cancelled; its program should stop."""


class LineGap(Conflict):
    """HTTP 409: earlier lines are missing; `expected` is the number of the next line."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.expected: int = problem["expected"]


class TooLarge(Refused):
    """HTTP 413: the request, or the log it would add to, is too large."""


class Invalid(Refused):
    """HTTP 422: a value was rejected; `errors` maps each field to a list of messages."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.errors: Mapping[str, Any] = problem.get("errors") or {}
        if self.errors:
            texts = [f"{name}: {_text(value)}" for name, value in self.errors.items()]
            self.args = ("; ".join(texts),)


class Unavailable(Refused):
    """HTTP 429 or 5xx: try again, after `retry_after` seconds unless that is None."""

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


RETRYABLE = (Unreachable, UnexpectedResponse, Unavailable)  # another attempt can succeed


def _text(messages: Any) -> str:
    if isinstance(messages, dict):  # of a field with members
        return ", ".join(f"{name}: {_text(value)}" for name, value in messages.items())
    return " ".join(map(str, messages)) if isinstance(messages, list) else str(messages)


JSON = "application/json"

T = TypeVar("T")


@dataclass(frozen=True)
class Expected(Generic[T]):
    """The expected response: one of these statuses, with a JSON object or a list of objects.

    Each object has at least these members: a text with commas between them, or a TypedDict.
    """

    members: str | type
    statuses: tuple[int, ...] = (200,)
    is_list: bool = False


def has(members: str | type, data: Any) -> bool:
    """Whether this is an object with these members."""
    names = members.split(",") if isinstance(members, str) else members.__annotations__
    return isinstance(data, dict) and data.keys() >= set(names)


Object = Expected[dict[str, Any]]
Objects = Expected[list[dict[str, Any]]]

APPENDED = Object("logCount,status", (201,))
AGENT = Object("id", (200, 201))
AGENTS = Objects("id", is_list=True)
NUMBERS = Object("paths")
FOUND = Object("hits,searched")
NEW_LINES = Object("against,lines,cut")
USER = Object("id,key")
CALLBACK_SECRET = Object("secret")

_REFUSALS: dict[int, type[Refused]] = {
    400: BadRequest, 401: InvalidKey, 403: Forbidden, 409: Conflict, 422: Invalid,
}  # fmt: skip


class Response(NamedTuple, Generic[T]):
    """An expected response; `data` is the parsed `content`, None for a 204."""

    headers: Mapping[str, str]
    content: bytes
    data: T


def read(received: requests.Response, expected: Expected[T]) -> Response[T]:
    """Parse a response. Raises TaskServiceError unless it is as expected."""
    status = received.status_code
    if not 200 <= status < 300:
        raise _error(received)
    if status not in expected.statuses:
        raise UnexpectedResponse(_not_ours(received))
    data: Any = None
    if status != 204:
        data = _json(received, JSON)
        objects = data if expected.is_list else [data]
        if not (isinstance(objects, list) and all(has(expected.members, each) for each in objects)):
            raise UnexpectedResponse(_not_ours(received))
    return Response(received.headers, received.content, data)


def may_be_of_another_version(received: requests.Response, error: TaskServiceError) -> bool:
    """Whether a service of another version may have sent the response that caused `error`."""
    if isinstance(error, Invalid):
        return "Unknown " in str(error)  # a field or a parameter
    return isinstance(error, UnexpectedResponse) and _media_type(received) == JSON


def _error(received: requests.Response) -> TaskServiceError:
    """The error for a response that is not 2xx."""
    status, problem = received.status_code, _json(received, PROBLEM_TYPE)
    if not (has("title,status,detail", problem) and problem["status"] == status):
        problem = {}  # it is not from this service
    if status == 429 or status >= 500:
        retry_after = terms.seconds(received.headers.get("Retry-After", ""))
        return Unavailable(status, problem, retry_after)
    if status == 413:  # also by the limit of a proxy
        return TooLarge(413, problem)
    # A 404 stops a program, so it must be certain: for an unknown path the service, and other
    # programs that send problems, use another code.
    if problem and (status != 404 or problem.get("code") in (NOT_FOUND, NO_GOOD_RUN)):
        return _kind(status, problem)(status, problem)
    if 300 <= status < 400 and "Location" in received.headers:
        target = without_user_info(received.headers["Location"])
        return NotTheService(f"{received.url} redirects to {target}; use that URL")
    return NotTheService(_not_ours(received))


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
    """The JSON of a response; None if it has no JSON of this type."""
    try:
        is_of_type = _media_type(received) == media_type
        return json.loads(received.content.decode()) if is_of_type else None
    except (ValueError, RecursionError):
        return None


def _media_type(received: requests.Response) -> str:
    return received.headers.get("Content-Type", "").partition(";")[0].strip().lower()
