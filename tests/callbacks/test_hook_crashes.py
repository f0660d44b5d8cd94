"""Kills the service at each critical point while hooks are told: no event is lost or doubled."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import select

from taskservice.database.models import Event, Question, Task
from taskservice.database.transactions import reading
from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect
from tests.support.crashing_service import (
    MOMENTS,
    Client,
    CrashingService,
    failing_at_first,
    survives,
    wait_until_all_is_delivered,
)
from tests.support.receiver import Exchange, Receiver

# The moments from one kill to the next.
STEP = int(os.environ.get("CALLBACK_STEP", "1"))
EVENTS = ["task.ended", "task.failed", "task.asks", "agent.broken", "agent.fixed"]


def fail_and_complete(client: Client) -> None:
    """One task fails, the next one asks a question and completes; both are told."""
    task = client.start(claim=True, callback=None)
    error = {"message": f"Error {uuid4()}"}
    client.call("PATCH", task, json={"status": "error", "error": error})
    task = client.start(claim=True, callback=None)
    client.call("POST", f"{task}/question", json={"message": f"Question {uuid4()}"})
    client.call("PATCH", task, json={"status": "complete"})
    client.until(lambda: client.call("GET", "/hook")[0]["lastDeliveredAt"])
    client.until(lambda: len(client.receiver.requests) > client.first + 6)


def made(app: Flask) -> list[Any]:
    """The events of the database, in their order."""
    with app.app_context(), reading() as connection:
        return list(connection.execute(select(Event.__table__).order_by(Event.position)))


def expected(app: Flask) -> Counter[tuple[str, str]]:
    """The events that must be there for the tasks and questions that are."""
    counted: Counter[tuple[str, str]] = Counter()
    is_broken = False
    with app.app_context(), reading() as connection:
        for task in connection.execute(select(Task.__table__).order_by(Task.finished_at)):
            if task.finished_at is None:
                continue
            counted["task.ended", task.id] += 1
            if task.status == "error":
                counted["task.failed", task.id] += 1
            if is_broken != (task.status == "error"):
                is_broken = not is_broken
                counted["agent.broken" if is_broken else "agent.fixed", task.id] += 1
        for question in connection.execute(select(Question.task_id)):
            counted["task.asks", question.task_id] += 1
    return counted


def check(app: Flask, program: Receiver, people: Receiver, hook: dict[str, Any]) -> None:
    """All that happened was told, to the program under one id each; nothing else was."""
    events = made(app)
    assert Counter((each.name, each.task_id) for each in events) == expected(app)
    assert [each.position for each in events] == list(range(1, len(events) + 1))
    sent: dict[str, set[str]] = {}
    for request in list(program.requests):
        body = json.loads(request.body)
        key = f"{body['type']} {body['data']['task']['id']}"
        sent.setdefault(key, set()).add(request.headers["webhook-id"])
    assert sent.keys() == {f"{each.name} {each.task_id}" for each in events}
    assert {len(ids) for ids in sent.values()} <= {1}
    assert len(set().union(*sent.values())) == len(sent)
    messages = b"\n".join(each.body for each in list(people.requests)).decode()
    with app.app_context(), reading() as connection:
        reasons = [
            *connection.scalars(select(Task.error_message).where(Task.error_type.is_not(None)))
        ]
        reasons += connection.scalars(select(Question.message))
    for reason in reasons:
        assert str(reason) in messages


@pytest.mark.timeout(600)
def test_killed_at_any_moment_each_event_is_told_under_one_id(
    app: Flask, alice: ApiClient, receiver: Receiver, tmp_path: Path
) -> None:
    alice.register("worker")
    receiver.answer = failing_at_first()
    with Receiver() as people:
        people.answer = failing_each_second_time()
        hook = {"target": receiver.url, "events": EVENTS}
        hook = expect(alice.post("/hook", json=hook), 201)
        of_people = {"target": f"{people.url}slack", "events": ["task.failed", "task.asks"]}
        expect(alice.post("/hook", json=of_people), 201)
        service = CrashingService(app, tmp_path, lease=1.0)
        crashes = 0
        for moment in range(1, MOMENTS, STEP):
            service.crash_at(moment)
            service.start()
            try:
                wait_until_all_is_delivered(app)
                check(app, receiver, people, hook)
                service.armed.touch()
                if survives(fail_and_complete, Client(service, alice.key, receiver)):
                    break
            finally:
                service.armed.unlink(missing_ok=True)
                service.kill()
            crashes += 1
        # For example before and after each commit and each send.
        assert moment > 20
        service.crash_at(0)
        service.start()
        wait_until_all_is_delivered(app)
        service.kill()
        check(app, receiver, people, hook)
    print(f"\n{crashes} crashes, {len(made(app))} events, {len(receiver.requests)} posts")


def failing_each_second_time() -> play.Behaviour:
    """Every second message is answered 500."""
    known: list[None] = []

    def behave(exchange: Exchange) -> None:
        known.append(None)
        play.answer(500 if len(known) % 2 else 200)(exchange)

    return behave
