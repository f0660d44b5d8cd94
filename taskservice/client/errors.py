"""The errors of the client: one class for each kind."""

from collections.abc import Mapping
from typing import Any


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
