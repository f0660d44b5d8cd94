"""The client for programs in Python: start, claim, report, list and follow tasks."""

from taskservice.client.agents import Agent, Health
from taskservice.client.client import Client
from taskservice.client.current_task import current
from taskservice.client.errors import (
    Conflict,
    Forbidden,
    Invalid,
    InvalidKey,
    LinesMissing,
    NoAnswer,
    NotFound,
    NotTheService,
    OtherVersion,
    QuestionDeclined,
    QuestionExpired,
    QuestionWithdrawn,
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
from taskservice.client.questions import Question
from taskservice.client.tasks import Failure, Line, Task
from taskservice.terms import ErrorType, Status

__all__ = [
    "Agent",
    "Client",
    "Conflict",
    "ErrorType",
    "Failure",
    "Forbidden",
    "Health",
    "Invalid",
    "InvalidKey",
    "Line",
    "LinesMissing",
    "NoAnswer",
    "NotFound",
    "NotTheService",
    "OtherVersion",
    "Question",
    "QuestionDeclined",
    "QuestionExpired",
    "QuestionWithdrawn",
    "Refused",
    "SettingError",
    "Status",
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
