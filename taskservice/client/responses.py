"""What the responses of the service must be; any other becomes an error with one sentence."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from taskservice import terms
from taskservice.terminal import without_user_info
from taskservice.terms import CANCELLED, NOT_FOUND, PROBLEM_TYPE

# The errors of the client: one class for each kind.


class TaskServiceError(Exception):
    """The base class of all errors here; its text is one line for a person."""


class SettingError(TaskServiceError):
    """TASKSERVICE_URL or TASKSERVICE_APIKEY is missing or can't be used."""


class Unreachable(TaskServiceError):
    """No complete answer came."""


class NotTheService(TaskServiceError):
    """Another program than this service answers at that URL."""


class UnexpectedResponse(NotTheService):
    """An answer that this service does not give, such as a proxy's page while it is away.

    What was sent does not count as stored.
    """


class OtherVersion(UnexpectedResponse):
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


class BadRequest(Refused):
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


class LineGap(Conflict):
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


class QuestionNotAnswered(TaskServiceError):
    """A question that will get no answer; `question` is its JSON."""

    sentence = "The question got no answer"

    def __init__(self, question: Mapping[str, Any]) -> None:
        super().__init__(question)
        self.question = question

    def __str__(self) -> str:
        return self.sentence


class QuestionDeclined(QuestionNotAnswered):
    """A person has declined the question."""

    sentence = "The question was declined"


class QuestionExpired(QuestionNotAnswered):
    """Nobody has answered the question within its timeout."""

    sentence = "Nobody has answered the question in time"


class QuestionWithdrawn(QuestionNotAnswered):
    """The question was withdrawn by another program; the task runs on."""

    sentence = "The question was withdrawn"


# Another attempt may succeed.
RETRYABLE = (Unreachable, UnexpectedResponse, Unavailable)


def _text(said: Any) -> str:
    if isinstance(said, dict):  # of a field with members
        return ", ".join(f"{name}: {_text(each)}" for name, each in said.items())
    return " ".join(map(str, said)) if isinstance(said, list) else str(said)


# What the responses must be.

JSON = "application/json"

# The fields of a task but the log, which can be long.
SHORT_FIELDS = (
    "id,name,agentId,userId,createdAt,updatedAt,claimedAt,finishedAt,firstLog,logCount,input,output,"
    "status,error,progress,labels,questions,startedBy,endedBy,note,parentId,rerunOf,callback"
)


class Expected(NamedTuple):
    """What a response must have: one of these statuses, and an object, or a list of objects.

    Each has these members and may have more; `members` are separated by commas.
    """

    statuses: tuple[int, ...]
    members: str
    is_list: bool = False

    def fits(self, data: Any) -> bool:
        objects = data if self.is_list else [data]
        return isinstance(objects, list) and all(has(self.members, each) for each in objects)


def has(members: str, data: Any) -> bool:
    """Whether this is an object with these members, which are separated by commas."""
    return isinstance(data, dict) and data.keys() >= set(members.split(","))


APPENDED = Expected((201,), "logCount,status")
LOG_PAGE = Expected((200,), "logs,next,status")
_QUESTION = "id,message,schema,state,askedAt,expiresAt,answer,answeredBy"
QUESTION = Expected((200, 201), _QUESTION)
QUESTIONS = Expected((200,), _QUESTION, is_list=True)
AGENT = Expected((200, 201), "id")
AGENTS = Expected((200,), "id", is_list=True)
FULL_AGENTS = Expected((200,), "id,name,description,userId,createdAt", is_list=True)
AGENTS_WITH_HEALTH = Expected((200,), f"{FULL_AGENTS.members},health", is_list=True)
USER = Expected((200,), "id,key")
OPENAPI = Expected((200,), "info")
CALLBACK_SECRET = Expected((200,), "secret")


def task(fields: str, *statuses: int) -> Expected:
    """A task with these fields, which are separated by commas."""
    return Expected(statuses or (200,), fields)


def tasks(fields: str) -> Expected:
    """A list of such tasks."""
    return Expected((200,), fields, is_list=True)


_REFUSALS: dict[int, type[Refused]] = {
    400: BadRequest, 401: InvalidKey, 403: Forbidden, 409: Conflict, 422: Invalid,
}  # fmt: skip


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
    return isinstance(error, UnexpectedResponse) and _media_type(received) == JSON


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
        kind = _kind(status, problem)
        if kind is not None:
            return kind(status, problem)
    if 300 <= status < 400 and "Location" in received.headers:
        target = without_user_info(received.headers["Location"])
        return NotTheService(f"{received.url} redirects to {target}; use that URL")
    return _not_ours(received, NotTheService)


def _kind(status: int, problem: Mapping[str, Any]) -> type[Refused] | None:
    """The class of the error for a problem; None if it is another program's."""
    if status == 404:
        # It stops a program, so it must be certain: for an unknown path the service has another
        # code, and so have other programs that send problems.
        return NotFound if problem.get("code") == NOT_FOUND else None
    if status == 409 and "expected" in problem:
        return LineGap
    if status == 409 and "task" in problem:
        error = problem["task"]["error"]
        return TaskCancelled if error and error["type"] == CANCELLED else TaskFinished
    return _REFUSALS.get(status, Refused)


def _problem(received: Response) -> dict[str, Any] | None:
    """The problem in a response; None if it is not a problem of this service."""
    try:
        problem: dict[str, Any] = _json(received, PROBLEM_TYPE)
    except UnexpectedResponse:
        return None
    is_ours = has("title,status,detail", problem) and problem["status"] == received.status_code
    return problem if is_ours else None


def _not_ours(received: Response, kind: type[NotTheService] = UnexpectedResponse) -> NotTheService:
    url = received.url.partition("?")[0]
    return kind(f"{url} answered {received.status_code}, but not as taskservice does")


def _json(received: Response, media_type: str) -> Any:
    """The JSON of a response. Raises UnexpectedResponse where it has none of this type."""
    if _media_type(received) != media_type:
        raise _not_ours(received)
    try:
        return json.loads(received.content.decode())
    except (ValueError, RecursionError):
        raise _not_ours(received) from None


def _media_type(received: Response) -> str:
    return received.headers.get("Content-Type", "").partition(";")[0].strip().lower()
