"""Kills the service at each critical point of notifications: no event is lost or doubled."""

import json
import os
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import select, update

from taskservice.config import Config
from taskservice.database import clock
from taskservice.database.models import Agent, Event, Question, Task
from taskservice.database.transactions import reading, transaction
from taskservice.event_kinds import EVENTS
from taskservice.webhooks import destinations
from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect
from tests.support.crashing_service import (
    POINTS,
    Client,
    CrashingService,
    failing_at_first,
    survives,
    wait_until_all_is_delivered,
)
from tests.support.internals import set_columns
from tests.support.mail_server import MailServer
from tests.support.maintenance import DAY, fall_silent
from tests.support.receiver import Exchange, Receiver
from tests.support.waiting import until

# The points from one kill to the next.
STEP = int(os.environ.get("CALLBACK_STEP", "1"))
LATENESS = ("agent.late", "agent.back")


@pytest.fixture
def config(standard_config: Config, mail_server: MailServer) -> Config:
    url = destinations.MailServer.parse(mail_server.url)
    return replace(standard_config, SMTP_URL=url, MAIL_FROM="tasks@example.org")


def live(app: Flask, client: Client) -> None:
    """Tasks fail, time out and hang, an agent is late and comes back, one asks and completes."""
    task = client.start(claim=True, callback=None)
    error = {"message": f"Error {uuid4()}"}
    client.call("PATCH", task, json={"status": "error", "error": error})
    silent = client.start(claim=True, callback=None)
    fall_silent(app, {"id": silent.removeprefix("/task/")}, DAY + 1)
    with app.app_context(), transaction() as connection:
        in_time = update(Agent).where(Agent.id == "nightly", Agent.late_since.is_(None))
        connection.execute(in_time.values(due_at=clock.now(-60), late_at=clock.now(-60)))
    client.until(lambda: client.call("GET", silent)["status"] == "error")
    nightly = "/agent/nightly?expand=health"
    client.until(lambda: client.call("GET", nightly)["health"]["lateSince"])
    client.start(agentId="nightly", callback=None)
    stuck = client.start(agentId="stuck", claim=True, callback=None)
    long_ago = {"claimed_at": clock.now(-120), "hang_check_at": clock.now(-60)}
    set_columns(app, {"id": stuck.removeprefix("/task/")}, **long_ago)
    client.until(lambda: client.call("GET", stuck)["hangingSince"])
    client.call("PATCH", stuck, json={"status": "complete"})
    task = client.start(claim=True, callback=None)
    client.call("POST", f"{task}/question", json={"message": f"Question {uuid4()}"})
    client.call("PATCH", task, json={"status": "complete"})
    client.until(lambda: client.call("GET", "/hook")[0]["lastDeliveredAt"])
    client.until(lambda: len(client.receiver.requests) > client.first + 10)


def settle(app: Flask) -> None:
    """Wait until maintenance finds nothing that is silent, late or hangs, and all is delivered."""
    silent = select(Task.id).where(
        Task.status == "running", Task.last_heartbeat_at < clock.now(-DAY)
    )
    late = select(Agent.id).where(Agent.late_at < clock.now(), Agent.late_since.is_(None))
    stuck = select(Task.id).where(
        Task.agent_id == "stuck", Task.status == "running", Task.hanging_since.is_(None),
        Task.claimed_at < clock.now(-60),
    )  # fmt: skip

    def is_over() -> bool:
        with app.app_context(), reading() as connection:
            return not any(
                connection.execute(statement).first() for statement in (silent, late, stuck)
            )

    until(is_over)
    wait_until_all_is_delivered(app)


def made(app: Flask) -> list[Any]:
    """The events of the database, in their order."""
    with app.app_context(), reading() as connection:
        return list(connection.execute(select(Event.__table__).order_by(Event.position)))


def expected(app: Flask) -> Counter[tuple[str, str]]:
    """The events that must be there for the tasks and questions that are."""
    counted: Counter[tuple[str, str]] = Counter()
    broken: set[str] = set()
    with app.app_context(), reading() as connection:
        for task in connection.execute(select(Task.__table__).order_by(Task.finished_at)):
            if task.agent_id == "stuck":
                # It ends only when it hangs.
                counted["task.hangs", task.id] += bool(task.finished_at or task.hanging_since)
                counted["task.recovered", task.id] += task.finished_at is not None
            if task.finished_at is None:
                continue
            counted["task.ended", task.id] += 1
            if task.status == "error":
                counted["task.failed", task.id] += 1
            if (task.agent_id in broken) != (task.status == "error"):
                broken ^= {task.agent_id}
                is_broken = task.agent_id in broken
                counted["agent.broken" if is_broken else "agent.fixed", task.id] += 1
        for question in connection.execute(select(Question.task_id)):
            counted["task.asks", question.task_id] += 1
    return +counted


def check(app: Flask, program: Receiver, people: Receiver, mail_server: MailServer) -> None:
    """All events were sent, to the program with one ID each, and nothing else."""
    events = made(app)
    of_tasks = [event for event in events if event.name not in LATENESS]
    assert Counter((event.name, event.task_id) for event in of_tasks) == expected(app)
    lateness = [event.name for event in events if event.name in LATENESS]
    with app.app_context(), reading() as connection:
        late_since = connection.scalar(select(Agent.late_since).where(Agent.id == "nightly"))
    assert lateness == [LATENESS[number % 2] for number in range(len(lateness))]
    assert len(lateness) % 2 == (late_since is not None)
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    sent: dict[str, set[str]] = {}
    for request in list(program.requests):
        body = json.loads(request.body)
        task_id = body["data"].get("task", {}).get("id")
        key = f"{body['type']} {body['timestamp']} {task_id}"
        sent.setdefault(key, set()).add(request.headers["webhook-id"])
    assert sent.keys() == {f"{event.name} {event.at} {event.task_id}" for event in events}
    assert {len(ids) for ids in sent.values()} <= {1}
    assert len(set().union(*sent.values())) == len(sent)
    messages = b"\n".join(message.body for message in list(people.requests)).decode()
    mails = "\n".join(mail.text for mail in list(mail_server.mails))
    with app.app_context(), reading() as connection:
        failed = connection.scalars(select(Task.error_message).where(Task.error_type.is_not(None)))
        failures = set(map(str, failed))
        questions = set(connection.scalars(select(Question.message)))
    assert not [text for text in failures | questions if text not in messages]
    assert not [text for text in failures if text not in mails]


@pytest.mark.timeout(600)
def test_killed_at_any_time_each_event_is_told_under_one_id(
    app: Flask, alice: ApiClient, receiver: Receiver, mail_server: MailServer, tmp_path: Path
) -> None:
    alice.register("worker")
    alice.register("nightly", expect={"every": 86_400, "grace": 0})
    alice.register("stuck", expect={"maxDuration": 60})
    receiver.answer = failing_at_first()
    with Receiver() as people:
        people.answer = failing_each_second_time()
        for target, events in (
            (receiver.url, EVENTS),
            (f"{people.url}slack", ["task.failed", "task.asks"]),
            ("mailto:ann@example.org", ["task.failed"]),
        ):
            expect(alice.post("/hook", json={"target": target, "events": events}), 201)
        service = CrashingService(app, tmp_path, lease=1.0)
        mail_settings = {"SMTP_URL": mail_server.url, "MAIL_FROM": "tasks@example.org"}
        service.environment |= {
            f"TASKSERVICE_{name}": value for name, value in mail_settings.items()
        }
        crashes = 0
        for point in range(1, POINTS, STEP):
            service.crash_at(point)
            service.start()
            try:
                settle(app)
                check(app, receiver, people, mail_server)
                service.armed.touch()
                if survives(partial(live, app), Client(service, alice.key, receiver)):
                    break
            finally:
                service.armed.unlink(missing_ok=True)
                service.kill()
            crashes += 1
        else:
            pytest.fail("There are more points.")
        # For example before and after each commit and each send.
        assert point > 20
        service.crash_at(0)
        service.start()
        settle(app)
        service.kill()
        check(app, receiver, people, mail_server)
    print(f"\n{crashes} crashes, {len(made(app))} events, {len(receiver.requests)} posts")


def failing_each_second_time() -> play.Behaviour:
    """Every second message gets 500."""
    known: list[None] = []

    def behave(exchange: Exchange) -> None:
        known.append(None)
        play.answer(500 if len(known) % 2 else 200)(exchange)

    return behave
