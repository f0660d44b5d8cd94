"""Reads the service's answers; any other answer becomes an error with one sentence."""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

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


# Reads the service's answers; any other answer becomes an error with one sentence.

JSON = "application/json"

Check = Callable[[Any], bool]


# The largest answer that is read, in bytes. A task has two objects of 1 MiB, and no other single
# thing is larger.
MAX_BYTES = 16 * 1024 * 1024
# The same for lists and logs: a page may have a whole log, and JSON makes six bytes of some.
MAX_LIST_BYTES = 8 * MAX_LOG


class Shape(NamedTuple):
    """What an answer must have: one of these statuses, and JSON that passes the check."""

    statuses: tuple[int, ...]
    is_good: Check
    max_bytes: int = MAX_BYTES


class Received(NamedTuple):
    """What came from the URL of the service, from the service or from another program."""

    url: str
    status_code: int
    headers: Mapping[str, str]
    content: bytes


class Answer(NamedTuple):
    """An answer of the service: `data` is its JSON, None for a 204, and `text` its JSON text."""

    data: Any
    headers: Mapping[str, str]
    text: str = ""


# --- what JSON may be --------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    # `type`, because a bool is an int too.
    return type(value) is int and 0 <= value < 1 << 53


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_duration(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_json(value: Any) -> bool:
    return True


def _is_moment(value: Any) -> bool:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    # In the last hours of the year 9999 it may have no local time.
    return moment.tzinfo is not None and 1970 <= moment.year < 9999


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("[0-9][0-9A-Za-z.+]{0,63}", value))


def _is_secret(value: Any) -> bool:
    try:
        return bool(base64.b64decode(value.removeprefix("whsec_"), validate=True))
    except (AttributeError, ValueError):
        return False


def _one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _null_or(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object_with(
    members: Mapping[str, Check], optional: Mapping[str, Check] | None = None
) -> Check:
    """An object that has at least these members; what it has of `optional` fits too."""
    more = optional or {}
    return lambda value: (
        isinstance(value, dict)
        and all(name in value and check(value[name]) for name, check in members.items())
        and all(check(value[name]) for name, check in more.items() if name in value)
    )


def _map_of(check: Check) -> Check:
    """An object whose values all pass the check."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_is_object = _object_with({})
_is_status = _one_of(*STATUSES)
_ERROR = _null_or(_object_with({"type": _is_text, "message": _is_text}))
_CHOICES: dict[str, Check] = {
    "enum": _list_of(_is_json),
    **dict.fromkeys(("oneOf", "anyOf"), _list_of(_object_with({"const": _is_json}))),
}
_PROPERTY = _object_with(
    {"type": _is_text},
    _CHOICES
    | {"items": _object_with({}, _CHOICES)}
    | dict.fromkeys(("title", "description"), _is_text),
)
_QUESTION = _object_with(
    {
        **dict.fromkeys(("id", "message"), _is_text),
        "state": _one_of(*QUESTION_STATES),
        "schema": _object_with(
            {"properties": _map_of(_PROPERTY)}, {"required": _list_of(_is_text)}
        ),
        "askedAt": _is_moment,
        "expiresAt": _null_or(_is_moment),
        "answer": _null_or(_is_object),
        "answeredBy": _null_or(_is_text),
    }
)


def _is_question(value: Any) -> bool:
    return _QUESTION(value) and (value["state"] == ANSWERED) == (value["answer"] is not None)


_TASK: dict[str, Check] = {
    **dict.fromkeys(("id", "name", "agentId", "userId"), _is_text),
    **dict.fromkeys(("createdAt", "updatedAt"), _is_moment),
    **dict.fromkeys(("claimedAt", "finishedAt"), _null_or(_is_moment)),
    **dict.fromkeys(("firstLog", "logCount"), _is_count),
    **dict.fromkeys(("input", "output"), _is_object),
    "logs": _list_of(_is_text),
    "status": _is_status,
    "error": _ERROR,
    "progress": _null_or(_is_share),
    "labels": _map_of(_is_text),
    "questions": _list_of(_is_question),
    **dict.fromkeys(("startedBy", "endedBy", "note"), _null_or(_is_text)),
    **dict.fromkeys(("parentId", "rerunOf", "callback"), _null_or(_is_text)),
}
# All fields but the log, which can be long.
SHORT_FIELDS = ",".join(name for name in _TASK if name != "logs")
_PAGE = _object_with({"logs": _list_of(_is_text), "next": _is_count, "status": _is_status})
_PAGE_TIMES = _object_with({"times": _list_of(_null_or(_is_moment))})
_AGENT: dict[str, Check] = {
    **dict.fromkeys(("id", "name", "description", "userId"), _is_text),
    "createdAt": _is_moment,
}
_FINISHED: dict[str, Check] = {
    "id": _is_text,
    "status": _is_status,
    "finishedAt": _is_moment,
    "seconds": _null_or(_is_duration),
}
_HEALTH: dict[str, Check] = {
    "recent": _list_of(_object_with(_FINISHED)),
    "successRate": _null_or(_is_share),
    "lastSuccessAt": _null_or(_is_moment),
    "medianSeconds": _null_or(_is_duration),
}

# --- the shapes of good answers ----------------------------------------------------------

APPENDED = Shape((201,), _object_with({"logCount": _is_count, "status": _is_status}))
LOG_PAGE = Shape(
    (200,), lambda page: _PAGE(page) and page["next"] >= len(page["logs"]), MAX_LIST_BYTES
)
LOG_PAGE_WITH_TIMES = Shape(
    (200,), lambda page: LOG_PAGE.is_good(page) and _has_times(page), MAX_LIST_BYTES
)
QUESTION = Shape((200, 201), _is_question)
QUESTIONS = Shape((200,), _list_of(_is_question), MAX_LIST_BYTES)
AGENT = Shape((200, 201), _object_with({"id": _is_text}))
AGENTS = Shape((200,), _list_of(_object_with({"id": _is_text})), MAX_LIST_BYTES)
FULL_AGENTS = Shape((200,), _list_of(_object_with(_AGENT)), MAX_LIST_BYTES)
AGENTS_WITH_HEALTH = Shape(
    (200,), _list_of(_object_with(_AGENT | {"health": _object_with(_HEALTH)})), MAX_LIST_BYTES
)
USER = Shape(
    (200,),
    _object_with({"id": _is_text, "key": _object_with({"agentId": _null_or(_is_text)})}),
)
OPENAPI = Shape((200,), _object_with({"info": _object_with({"version": _is_version})}))
CALLBACK_SECRET = Shape((200,), _object_with({"secret": _is_secret}))


def task(fields: str, *statuses: int) -> Shape:
    """The shape of a task with these fields, which are separated by commas."""
    return Shape(statuses or (200,), _task_with(fields))


def tasks(fields: str) -> Shape:
    """The shape of a list of such tasks."""
    return Shape((200,), _list_of(_task_with(fields)), MAX_LIST_BYTES)


def _has_times(page: Any) -> bool:
    return _PAGE_TIMES(page) and len(page["times"]) == len(page["logs"])


def _task_with(fields: str) -> Check:
    return _object_with({name: _TASK.get(name, _is_json) for name in fields.split(",")})


# --- reading -----------------------------------------------------------------------------


def read(answer: Received, shape: Shape) -> Answer:
    """The answer, if it has this shape. Raises TaskServiceError for any other."""
    status = answer.status_code
    if not 200 <= status < 300:
        raise _error(answer)
    if status not in shape.statuses:
        raise _unexpected(answer)
    if status == 204:
        return Answer(None, answer.headers)
    data = _json(answer, JSON)
    if not shape.is_good(data):
        raise _unexpected(answer)
    return Answer(data, answer.headers, answer.content.decode())


def may_be_of_another_version(answer: Received, error: TaskServiceError) -> bool:
    """Whether a service of another version may have given this answer, of which `error` tells."""
    if isinstance(error, Invalid):
        return "Unknown " in str(error)  # a field or a parameter
    return isinstance(error, UnexpectedAnswer) and _media_type(answer) == JSON


def _error(answer: Received) -> TaskServiceError:
    """The error for an answer that is not 2xx."""
    status = answer.status_code
    problem = _problem(answer)
    kind = None if problem is None else _kind(status, problem)
    if status == 429 or status >= 500:
        retry_after = terms.seconds(answer.headers.get("Retry-After", ""))
        return Unavailable(status, problem or {}, retry_after)
    if status == 413:
        # A proxy may have a limit of its own; its answer is no problem of this service.
        return TooLarge(413, problem or {})
    if problem is None or kind is None:
        return NotTheService(_not_the_service(answer))
    return kind(status, problem)


_IS_PROBLEM = _object_with({"title": _is_text, "status": _is_count, "detail": _is_text})


def _problem(answer: Received) -> dict[str, Any] | None:
    """The problem in an answer; None if this service does not write such a one."""
    try:
        problem: dict[str, Any] = _json(answer, PROBLEM_TYPE)
    except UnexpectedAnswer:
        return None
    is_ours = _IS_PROBLEM(problem) and problem["status"] == answer.status_code
    return problem if is_ours else None


def _not_found(problem: Mapping[str, Any]) -> type[Refused] | None:
    # A 404 stops a program, so it must be certain: for an unknown path the service answers
    # with another sentence, and so do other programs that answer with problems.
    return NotFound if problem.get("code") == NOT_FOUND else None


def _invalid(problem: Mapping[str, Any]) -> type[Refused] | None:
    return Invalid if _is_object(problem.get("errors", {})) else None


_IS_FINISHED = _object_with({"id": _is_text, "status": _is_text, "error": _ERROR})


def _conflict(problem: Mapping[str, Any]) -> type[Refused] | None:
    if "expected" in problem:
        return LinesMissing if _is_count(problem["expected"]) and problem["expected"] else None
    if "task" not in problem:
        return Conflict
    if not _IS_FINISHED(problem["task"]):
        return None
    error = problem["task"]["error"] or {}
    return TaskCancelled if error.get("type") == CANCELLED else TaskFinished


_BY_STATUS: dict[int, Callable[[Mapping[str, Any]], type[Refused] | None]] = {
    400: lambda problem: Unreadable,
    401: lambda problem: InvalidKey,
    403: lambda problem: Forbidden,
    404: _not_found,
    409: _conflict,
    422: _invalid,
}


def _kind(status: int, problem: Mapping[str, Any]) -> type[Refused] | None:
    """The class of the error for a problem; None if it lacks what its status requires."""
    find = _BY_STATUS.get(status)
    return Refused if find is None else find(problem)


def _not_the_service(answer: Received) -> str:
    if 300 <= answer.status_code < 400 and "Location" in answer.headers:
        target = without_user_info(answer.headers["Location"])
        return f"{answer.url} redirects to {target}; use that URL"
    return _sentence(answer)


def _unexpected(answer: Received) -> UnexpectedAnswer:
    return UnexpectedAnswer(_sentence(answer))


def _sentence(answer: Received) -> str:
    return f"{answer.url} answered {answer.status_code}, but not as taskservice does"


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _json(answer: Received, media_type: str) -> Any:
    """The JSON of an answer. Raises UnexpectedAnswer where it has none of this type."""
    if _media_type(answer) != media_type:
        raise _unexpected(answer)
    try:
        value = json.loads(answer.content.decode(), parse_constant=_refuse)
        if _SURROGATE.search(answer.content):
            json.dumps(value, ensure_ascii=False).encode()  # fails where one stands alone
    except (ValueError, RecursionError):
        raise _unexpected(answer) from None
    return value


def _media_type(answer: Received) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
