"""Questions of tasks: programs ask and wait for the answer, people answer."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypedDict
from uuid import uuid4

from taskservice.client import answers
from taskservice.client.api import path_segment
from taskservice.client.errors import (
    NoAnswer,
    QuestionDeclined,
    QuestionExpired,
    QuestionWithdrawn,
    TaskFinished,
    TaskServiceError,
)
from taskservice.client.http import PATIENCE_SECONDS, WAIT_SECONDS, Connection
from taskservice.terms import (
    ACCEPT,
    ANSWERED,
    DECLINE,
    DECLINED,
    EXPIRED,
    OPEN,
    QUESTION_TIMEOUT,
    RUNNING,
)

# How long a program that is interrupted tries to withdraw its question.
WITHDRAW_SECONDS = 5.0
# How often a follower of a task asks for its questions.
LOOK_SECONDS = 2


class Question(TypedDict):
    """A question's JSON; `answer` is the content of its answer."""

    id: str
    message: str
    schema: dict[str, Any]
    state: str
    askedAt: str
    expiresAt: str | None
    answer: dict[str, Any] | None
    answeredBy: str | None


def schema_of_choices(choices: Sequence[str]) -> dict[str, Any]:
    """The schema of an answer that is one of these texts."""
    choice = {"type": "string", "enum": list(dict.fromkeys(choices))}
    return {"type": "object", "properties": {"answer": choice}, "required": ["answer"]}


def ask(
    connection: Connection,
    task_id: str,
    message: str,
    schema: Mapping[str, Any] | None = None,
    timeout: int | None = None,
    rest: Callable[[float], None] = time.sleep,
) -> Question:
    """Ask once, and wait for the answer; returns the answered question.

    The wait goes on while the service is away, as long as the question may be open. An exception
    that interrupts it, such as KeyboardInterrupt, withdraws the question. Raises
    QuestionDeclined, QuestionExpired or QuestionWithdrawn; TaskFinished, TaskCancelled or
    NotFound when the task has ended.
    """
    # The name of a file may contain what no UTF-8 has.
    text = message.encode(errors="replace").decode()
    fields = {"message": text, "schema": schema, "timeout": timeout}
    post = partial(
        connection.call, "POST", _path(task_id), answers.QUESTION,
        json={name: value for name, value in fields.items() if value is not None},
        # With the same key, a repeated request asks no second question.
        headers={"Idempotency-Key": uuid4().hex},
    )  # fmt: skip
    until = time.monotonic() + seconds_open(timeout)
    try:
        question: Question = post(rest=rest).data
        while question["state"] == OPEN:
            question = _wait(connection, task_id, question, until, rest)
    except TaskServiceError:
        raise
    except BaseException:
        with suppress(TaskServiceError):
            asked = post(patience=WITHDRAW_SECONDS).data
            withdraw(connection, task_id, asked["id"], patience=WITHDRAW_SECONDS)
        raise
    if question["state"] != ANSWERED:
        _raise_reason(connection, task_id, question)
    return question


def seconds_open(timeout: int | None) -> float:
    """How long a question may be open."""
    return math.inf if timeout == 0 else timeout or QUESTION_TIMEOUT


def _wait(
    connection: Connection,
    task_id: str,
    question: Question,
    until: float,
    rest: Callable[[float], None],
) -> Question:
    """The question as it is when it has ended, or after a while."""
    patience = max(until - time.monotonic(), PATIENCE_SECONDS)
    answer: Question = connection.call(
        "GET", _path(task_id, question["id"]), answers.QUESTION,
        wait=WAIT_SECONDS, patience=patience, rest=rest,
    ).data  # fmt: skip
    if answer["state"] == OPEN:
        time.sleep(connection.seconds_before_repeat())
    return answer


def _raise_reason(connection: Connection, task_id: str, question: Question) -> NoReturn:
    """Raise why a question has no answer."""
    reasons: dict[str, type[NoAnswer]] = {DECLINED: QuestionDeclined, EXPIRED: QuestionExpired}
    if question["state"] in reasons:
        raise reasons[question["state"]](question)
    # Its task may have ended: a heartbeat is refused then.
    path = f"/task/{path_segment(task_id)}/logs"
    task = connection.call("POST", path, answers.APPENDED, json={"logs": []}).data
    if task["status"] != RUNNING:
        ended = {"id": task_id, "status": task["status"], "error": None}
        raise TaskFinished(409, {"detail": "The task is finished", "task": ended})
    raise QuestionWithdrawn(question)


def withdraw(
    connection: Connection, task_id: str, question_id: str, patience: float | None = None
) -> None:
    """Withdraw an open question. Raises Conflict if it was answered."""
    path = _path(task_id, question_id)
    connection.call("DELETE", path, answers.QUESTION, patience=patience)


def list_questions(connection: Connection, task_id: str) -> list[Question]:
    """All questions of a task, oldest first."""
    found: list[Question] = connection.call("GET", _path(task_id), answers.QUESTIONS).data
    return found


def answer(
    connection: Connection, task_id: str, question_id: str, content: Mapping[str, Any] | None
) -> Question:
    """Answer a question, or decline it with None; the same again changes nothing.

    Raises Invalid for an answer that does not fit its schema, and Conflict if it is no longer
    open.
    """
    body = {"action": DECLINE} if content is None else {"action": ACCEPT, "content": content}
    path = f"{_path(task_id, question_id)}/answer"
    question: Question = connection.call("POST", path, answers.QUESTION, json=body).data
    return question


def _path(task_id: str, question_id: str | None = None) -> str:
    end = "" if question_id is None else f"/{path_segment(question_id)}"
    return f"/task/{path_segment(task_id)}/question{end}"


class QuestionNews:
    """Tells a follower of a task of each question that opens, once."""

    def __init__(self, tell: Callable[[Question], None]) -> None:
        self._tell = tell
        self._told: set[str] = set()
        self._looked_at = -math.inf

    def look(self, read: Callable[[], Sequence[Question]]) -> None:
        """Tell of what is new, unless the last look was just now."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        for question in read():
            if question["id"] not in self._told:
                self._told.add(question["id"])
                self._tell(question)
        self._looked_at = time.monotonic()
