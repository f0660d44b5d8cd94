"""The client for programs in Python: start, claim, report, list and follow tasks."""

from taskservice.client.client import Client
from taskservice.client.current_task import current
from taskservice.client.errors import (
    Conflict,
    Forbidden,
    Invalid,
    InvalidKey,
    LinesMissing,
    NotFound,
    NotTheService,
    Refused,
    SettingError,
    TaskCancelled,
    TaskFinished,
    TaskServiceError,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
    Unreadable,
)
from taskservice.client.handler import TaskHandler
from taskservice.client.tasks import Line, Task

__all__ = [
    "Client",
    "Conflict",
    "Forbidden",
    "Invalid",
    "InvalidKey",
    "Line",
    "LinesMissing",
    "NotFound",
    "NotTheService",
    "Refused",
    "SettingError",
    "Task",
    "TaskCancelled",
    "TaskFinished",
    "TaskHandler",
    "TaskServiceError",
    "TooLarge",
    "Unavailable",
    "UnexpectedAnswer",
    "Unreachable",
    "Unreadable",
    "current",
]
