"""The Python client: starts, claims, updates, lists and follows tasks."""

from taskservice.client.client import Client
from taskservice.client.current_task import current
from taskservice.client.log_handler import TaskHandler
from taskservice.client.objects import (
    Agent,
    Annotations,
    Attention,
    Expect,
    FinishedTask,
    Health,
    Hook,
)
from taskservice.client.responses import (
    BadRequest,
    Conflict,
    Failure,
    Forbidden,
    Invalid,
    InvalidKey,
    LineGap,
    NotFound,
    NotTheService,
    Question,
    QuestionDeclined,
    QuestionExpired,
    QuestionNotAnswered,
    QuestionWithdrawn,
    Refused,
    SettingError,
    TaskCancelled,
    TaskFinished,
    TaskServiceError,
    TooLarge,
    Unavailable,
    UnexpectedResponse,
    Unreachable,
)
from taskservice.client.task import Line, Task
from taskservice.terms import ErrorType, Sort, Status

__all__ = [
    "Agent", "Annotations", "Attention", "BadRequest", "Client", "Conflict", "ErrorType", "Expect",
    "Failure", "FinishedTask", "Forbidden", "Health", "Hook", "Invalid", "InvalidKey", "Line",
    "LineGap", "NotFound", "NotTheService", "Question", "QuestionDeclined",
    "QuestionExpired", "QuestionNotAnswered", "QuestionWithdrawn", "Refused", "SettingError",
    "Sort", "Status", "Task", "TaskCancelled", "TaskFinished", "TaskHandler", "TaskServiceError",
    "TooLarge", "Unavailable", "UnexpectedResponse", "Unreachable", "current",
]  # fmt: skip
