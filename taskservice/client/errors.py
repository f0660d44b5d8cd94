"""What can go wrong between a program and the service: one exception class for each problem."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

PROBLEM = "application/problem+json"


class TaskServiceError(Exception):
    """Every error of this package; its text is one line for a person."""


class SettingError(TaskServiceError):
    """TASKSERVICE_URL or TASKSERVICE_APIKEY is missing, or is nothing that can be used."""


class Unreachable(TaskServiceError):
    """No whole answer came."""


class NotTheService(TaskServiceError):
    """Something answers at that URL, but it is not this service."""


class Refused(TaskServiceError):
    """The service said no: `status` is HTTP's, `problem` the answer's JSON."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.detail = str(problem.get("detail") or f"The service answered {status}")
        super().__init__(self.detail)


class Unreadable(Refused):
    """400: the request could not be read."""


class InvalidKey(Refused):
    """401: the API key is unknown, revoked, expired or mistyped."""


class Forbidden(Refused):
    """403: the key may not do this; an agent key can neither cancel nor delete."""


class NotFound(Refused):
    """404: there is no such thing, or it was deleted, or the key may not see it."""


class Conflict(Refused):
    """409: it does not go with how things stand."""


class TaskFinished(Conflict):
    """409: the task has ended; `task` is its id, status and error."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.task: Mapping[str, Any] = problem["task"]


class TaskCancelled(TaskFinished):
    """409: the task's user has cancelled it; its agent should stop."""


class LinesMissing(Conflict):
    """409: lines before these are missing; `expected` is the number that should come next."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.expected = int(problem["expected"])


class TooLarge(Refused):
    """413: the request, or what it would add to, is too large."""


class Unfit(Refused):
    """422: readable, but it does not fit; `errors` maps fields to messages."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.errors: Mapping[str, Any] = problem.get("errors") or {}
        if self.errors:
            self.args = ("; ".join(f"{name}: {_text(said)}" for name, said in self.errors.items()),)


class Unavailable(Refused):
    """429 or 5xx: not now; `retry_after` are the seconds it asks to wait, or None."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        super().__init__(status, problem)
        self.retry_after = retry_after


# How the service says that it has no such URL, where it has no such thing it says otherwise.
_NO_SUCH_PATH = "There is no /"

# What another attempt may mend.
PASSING = (Unreachable, Unavailable)

_BY_STATUS: dict[int, type[Refused]] = {
    400: Unreadable,
    401: InvalidKey,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Unfit,
}


def from_answer(answer: requests.Response) -> TaskServiceError:
    """The error that an answer other than 2xx stands for."""
    problem = _problem(answer)
    if answer.status_code == 429 or answer.status_code >= 500:
        retry_after = seconds(answer.headers.get("Retry-After", ""))
        return Unavailable(answer.status_code, problem or {}, retry_after)
    if answer.status_code == 413:
        # A proxy may have a limit of its own, and says so in its own words.
        return TooLarge(413, problem or {})
    if problem is None or str(problem.get("detail")).startswith(_NO_SUCH_PATH):
        return NotTheService(_as_no_service_would(answer))
    if answer.status_code == 409:
        return _conflict(problem)
    return _BY_STATUS.get(answer.status_code, Refused)(answer.status_code, problem)


def _problem(answer: requests.Response) -> dict[str, Any] | None:
    if answer.headers.get("Content-Type", "").partition(";")[0] != PROBLEM:
        return None
    try:
        problem = answer.json()
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None


def _as_no_service_would(answer: requests.Response) -> str:
    if 300 <= answer.status_code < 400 and "Location" in answer.headers:
        return f"{answer.url} redirects to {answer.headers['Location']}; use that URL"
    return f"{answer.url} answered {answer.status_code}, but not as taskservice does"


def _conflict(problem: dict[str, Any]) -> Conflict:
    if "expected" in problem:
        return LinesMissing(409, problem)
    if "task" not in problem:
        return Conflict(409, problem)
    error = problem["task"].get("error") or {}
    kind = TaskCancelled if error.get("type") == "cancelled" else TaskFinished
    return kind(409, problem)


def _text(said: Any) -> str:
    return " ".join(map(str, said)) if isinstance(said, list) else str(said)


def seconds(retry_after: str) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date; None if nothing usable."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=moment.tzinfo or UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0)
