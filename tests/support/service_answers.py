"""Answers as the service gives them, for a receiver that plays it."""

import json
from http import HTTPStatus
from typing import Any

from tests.support import receiver as play
from tests.support.receiver import Behaviour

JSON = {"Content-Type": "application/json"}
PROBLEM = {"Content-Type": "application/problem+json"}
MOMENT = "2026-11-24T13:36:00.123Z"


def a_task(**changes: Any) -> dict[str, Any]:
    """A task that runs, as the service has it in its lists."""
    return {
        "id": "1", "name": "n", "agentId": "a", "userId": "u",
        "createdAt": MOMENT, "updatedAt": MOMENT, "claimedAt": MOMENT, "finishedAt": None,
        "input": {}, "firstLog": 1, "logCount": 0, "output": {},
        "status": "running", "error": None, "callback": None,
    } | changes  # fmt: skip


def answer(status: int, value: Any) -> Behaviour:
    return play.answer(status, JSON, json.dumps(value).encode())


def task(code: int = 200, **changes: Any) -> Behaviour:
    return answer(code, a_task(**changes))


def appended(count: int = 1) -> Behaviour:
    return answer(201, {"logCount": count, "status": "running"})


def problem(status: int, detail: str, **more: Any) -> Behaviour:
    title = HTTPStatus(status).phrase
    text = {"type": "about:blank", "title": title, "status": status, "detail": detail} | more
    return play.answer(status, PROBLEM, json.dumps(text).encode())
