"""Responses of the service, for a receiver that imitates it."""

import json
from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from typing import Any

from taskservice.client.task import SHORT_FIELDS
from taskservice.schemas.tasks import task_schema
from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.receiver import Behaviour, Exchange, Received

JSON = {"Content-Type": "application/json"}
PROBLEM = {"Content-Type": "application/problem+json"}
TIME = "2026-11-24T13:36:00.123Z"


# As in the documentation, with every field except the log.
_EXAMPLE = {
    name: task_schema.fields[name].metadata["examples"][0] for name in SHORT_FIELDS.split(",")
}


def a_task(**changes: Any) -> dict[str, Any]:
    """A running task, as in the lists of the service."""
    claimed = {"id": "1", "agentId": "a", "claimedAt": TIME, "callback": None}
    return _EXAMPLE | claimed | changes


def answer(status: int, value: Any) -> Behaviour:
    return play.answer(status, JSON, json.dumps(value).encode())


def task(code: int = 200, **changes: Any) -> Behaviour:
    return answer(code, a_task(**changes))


def appended(count: int = 1) -> Behaviour:
    return answer(201, {"logCount": count, "status": "running"})


def problem(status: int, detail: Any, **fields: Any) -> Behaviour:
    title = HTTPStatus(status).phrase
    text = {"type": "about:blank", "title": title, "status": status, "detail": detail} | fields
    return play.answer(status, PROBLEM, json.dumps(text).encode())


def passing_on(
    person: RemoteClient,
    is_refused: Callable[[Received], object] = lambda request: False,
    refusal: Behaviour = play.silence,
) -> Behaviour:
    """Forwards all requests to the service except the refused ones, as a proxy."""
    passed_on = losing(person, lambda number: False)
    return lambda exchange: (refusal if is_refused(exchange.request) else passed_on)(exchange)


def losing(person: RemoteClient, is_lost: Callable[[int], bool]) -> Behaviour:
    """Forwards requests to the service, and loses the responses with some numbers, from 1."""
    numbers = count(1)

    def relay(exchange: Exchange) -> None:
        request, number = exchange.request, next(numbers)
        answer = person.request(
            request.method, request.path.removeprefix("/api/v1"), data=request.body,
            headers={"Content-Type": request.headers.get("content-type", "application/json")}
            | {name: text for name, text in request.headers.items() if name == "idempotency-key"},
        )  # fmt: skip
        if is_lost(number):
            play.reset()(exchange)
        else:
            content = {"Content-Type": answer.headers.get("Content-Type", "")}
            play.answer(answer.status_code, content, answer.content)(exchange)

    return relay
