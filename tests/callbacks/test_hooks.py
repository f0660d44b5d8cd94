"""Hooks: which events they are notified of, when, and how often."""

import json
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event as sql_event
from sqlalchemy import insert, select, update
from standardwebhooks import Webhook

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.models import Attempt, Delivery, Event, EventStream, Hook
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now, db
from taskservice.event_kinds import EVENTS, KINDS
from taskservice.services import deliveries, events
from taskservice.webhooks.destinations import Destinations
from taskservice.webhooks.retry_schedule import JITTER, SCHEDULE
from tests.support.api_client import ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.deliveries import (
    change,
    columns,
    deleting_first,
    looping,
    make_due,
    make_message_due,
)
from tests.support.internals import (
    before_writes,
    column,
    is_waiting_for_a_lock,
    moment,
)
from tests.support.maintenance import DAY, count, fall_silent
from tests.support.marks import one_database, only_postgresql
from tests.support.receiver import Exchange, Receiver, answer, silence
from tests.support.waiting import PATIENCE_SECONDS, until

# In one message; `HOOK_FAILURES=10000` is what a broken release makes in a minute.
FAILURES = int(os.environ.get("HOOK_FAILURES", "150"))


def add_hook(person: ApiClient, target: str, **fields: Any) -> dict[str, Any]:
    hook: dict[str, Any] = expect(person.post("/hook", json={"target": target, **fields}), 201)
    return hook


def told(person: ApiClient, hook: dict[str, Any]) -> list[str]:
    """The events that a hook is notified of, oldest first."""
    rows = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return [row["event"] for row in reversed(rows)]


def the_hook(person: ApiClient, hook: dict[str, Any]) -> dict[str, Any]:
    hook_json: dict[str, Any] = expect(person.get(f"/hook/{hook['id']}"), 200)
    return hook_json


def run(person: ApiClient, status: str = "complete", **fields: Any) -> dict[str, Any]:
    """A task that ended with this status."""
    task = person.start(claim=True, **fields)
    return person.report(task, status=status)


def time_out(app: Flask, person: ApiClient) -> dict[str, Any]:
    """A task that the service has ended."""
    task = person.start(claim=True)
    fall_silent(app, task, DAY + 1)
    Maintenance(app).do_round()
    assert person.task(task)["error"]["type"] == "timeout"
    return task


def ask(person: ApiClient, message: str = "Deploy?") -> dict[str, Any]:
    task = person.start(claim=True)
    asked = person.post(f"/task/{task['id']}/question", json={"message": message})
    question: dict[str, Any] = expect(asked, 201)
    return task | {"question": question}


def test_defaults_follow_from_the_target(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, f"{receiver.url}some/path")
    assert hook["format"] == "standard"
    assert hook["name"] == f"127.0.0.1:{receiver.port}/some/path"
    assert hook["events"] == [
        "task.asks", "agent.broken", "agent.late", "task.hangs", "agent.fixed", "agent.back",
        "task.recovered",
    ]  # fmt: skip
    assert (hook["state"], hook["answerLinks"]) == ("active", False)
    assert add_hook(alice, f"{receiver.url}abc/slack")["format"] == "slack"
    assert add_hook(alice, "https://ntfy.sh/alerts")["format"] == "ntfy"
    assert add_hook(alice, "https://hooks.slack.com/services/T/B/x")["format"] == "slack"
    assert expect(alice.get("/hook"), 200)[0]["id"] == hook["id"]


@pytest.mark.parametrize(
    ("target", "kind", "name"),
    [
        ("https://ntfy.sh/alerts", None, "ntfy.sh/alerts"),
        ("https://ntfy.sh/alerts-2", None, "ntfy.sh/alerts-2"),
        ("https://ntfy.sh/backups-7Kq2vX9mTz", None, "ntfy.sh/backups-…"),
        ("https://ntfy.sh/Xq81LmPzR4", None, "ntfy.sh/Xq81L…"),
        ("https://ntfy.example.org:8443/nights", "ntfy", "ntfy.example.org:8443/nights"),
        ("https://hooks.slack.com/services/T024BE7LD/B024BE7LH/s3cReT", None,
         "hooks.slack.com/B024BE7LH"),
        ("https://discord.com/api/webhooks/116204/s3cReT/slack", None, "discord.com/116204"),
        ("https://chat.example.org/hooks/s3cret", "slack", "chat.example.org/hooks"),
        ("https://example.org/s3cReT/x", "slack", "example.org"),
        ("https://example.org/v1/events?key=s3cret", None, "example.org/v1/events"),
        ("https://example.org/hooks/s3cReT", None, "example.org/hooks/…"),
        ("https://example.org", None, "example.org"),
    ],
)  # fmt: skip
@one_database
def test_default_name_tells_addresses_apart_without_their_secret(
    alice: ApiClient, target: str, kind: str | None, name: str
) -> None:
    fields = {"format": kind} if kind else {}
    assert add_hook(alice, target, **fields)["name"] == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"target": "http://169.254.169.254/"}, "target"),
        ({"target": "http://[::1"}, "target"),
        ({"target": "mailto:ann@example.org"}, "target"),
        ({"target": "mailto:ann@example.org", "format": "standard"}, "target"),
        ({"target": "https://ntfy.sh/"}, "target"),
        ({"target": "https://ntfy.sh/a", "events": []}, "events"),
        ({"target": "https://ntfy.sh/a", "events": ["task.started"]}, "events"),
        ({"target": "https://ntfy.sh/a", "label": "env"}, "label"),
        ({"target": "https://ntfy.sh/a", "agentId": "No"}, "agentId"),
        ({"target": "https://ntfy.sh/a", "token": "a\r\nb"}, "token"),
        ({"target": "https://ntfy.sh/a", "format": "sms"}, "format"),
        ({"target": "https://ntfy.sh/a", "state": "off"}, "state"),
        ({"target": "https://ntfy.sh/a", "after": 0}, "after"),
        ({"target": "https://ntfy.sh/a", "after": 11}, "after"),
        ({"target": "https://ntfy.sh/a", "after": "3"}, "after"),
        ({}, "target"),
    ],
)
def test_invalid_hook_is_422(alice: ApiClient, fields: dict[str, Any], name: str) -> None:
    assert name in problem(alice.post("/hook", json=fields), 422)["errors"]
    assert expect(alice.get("/hook"), 200) == []


def test_hook_is_deleted(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url, token="secret")
    assert "token" not in hook
    path = f"/hook/{hook['id']}"
    assert "target" in problem(alice.patch(path, json={"target": "http://10.0.0.1"}), 422)["errors"]
    assert expect(alice.delete(path), 200) == hook
    problem(alice.get(path), 404)


def test_hooks_of_others_do_not_exist(alice: ApiClient, bob: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    [delivery] = expect(alice.get(f"/hook/{hook['id']}/deliveries"), 200)
    path = f"/hook/{hook['id']}"
    for method, rest in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("GET", "/deliveries"),
        ("POST", f"/deliveries/{delivery['id']}"),
    ]:
        problem(bob.request(method, path + rest), 404)
    problem(bob.patch(path, json={"name": "mine"}), 404)
    run(bob)
    assert told(alice, hook) == ["task.ended"]
    problem(alice.agent_key().get("/hook"), 403)


def test_user_has_at_most_50_hooks(alice: ApiClient, receiver: Receiver) -> None:
    for _ in range(49):
        add_hook(alice, receiver.url)
    adding = partial(alice.post, "/hook", json={"target": receiver.url})
    responses = at_once([adding] * 4)
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]
    assert problem(adding(), 409)["code"] == "too_many_hooks"


def test_every_field_of_a_hook_can_be_changed(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}first", events=["task.ended"])
    fields = {
        "name": "phone", "target": f"{receiver.url}topic", "format": "ntfy", "answerLinks": True,
        "events": ["task.failed"], "agentId": "summarizer", "label": "env:prod",
    }  # fmt: skip
    path = f"/hook/{hook['id']}"
    changed = expect(alice.patch(path, json={**fields, "token": "tk_secret"}), 200)
    assert changed == hook | fields == the_hook(alice, hook)
    with looping(app):
        run(alice, "error", labels={"env": "prod"})
        [request] = receiver.wait_for(1)
        assert request.headers["authorization"] == "Bearer tk_secret"
        assert (request.path, json.loads(request.body)["topic"]) == ("/", "topic")
        until(lambda: the_hook(alice, hook)["lastDeliveredAt"])
        expect(alice.patch(path, json={"token": None}), 200)
        make_message_due(app)
        run(alice, "error", labels={"env": "prod"})
        assert "authorization" not in receiver.wait_for(2)[1].headers


def test_tasks_that_end_at_once_break_and_fix_an_agent_once(
    alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["agent.broken", "agent.fixed"])
    for status in ("error", "complete"):
        tasks = [alice.start(claim=True) for _ in range(4)]
        at_once([partial(alice.report, task, status=status) for task in tasks])
    assert told(alice, hook) == ["agent.broken", "agent.fixed"]


@only_postgresql
@pytest.mark.parametrize("paused", ["UPDATE agents", "INSERT INTO events"])
def test_completion_beside_a_failure_that_is_not_committed_yet_fixes_the_agent(
    app: Flask, alice: ApiClient, receiver: Receiver, paused: str
) -> None:
    hook = add_hook(alice, receiver.url, events=["agent.broken", "agent.fixed"])
    failing, completing = (alice.start(claim=True) for _ in range(2))
    has_failed, may_commit = threading.Event(), threading.Event()

    def pause(sql: str, _parameters: Any) -> None:
        if sql.startswith(paused) and not has_failed.is_set():
            has_failed.set()
            assert may_commit.wait(PATIENCE_SECONDS)

    with before_writes(app, pause), ThreadPoolExecutor(2) as threads:
        failure = threads.submit(alice.report, failing, status="error")
        assert has_failed.wait(PATIENCE_SECONDS)
        completion = threads.submit(alice.report, completing, status="complete")
        until(lambda: completion.done() or is_waiting_for_a_lock(app))
        may_commit.set()
        assert failure.result()["finishedAt"] <= completion.result()["finishedAt"]
    assert told(alice, hook) == ["agent.broken", "agent.fixed"]
    assert expect(alice.get("/attention"), 200) == []


def test_agent_breaks_once_and_is_fixed_once(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url, events=list(EVENTS))
    run(alice)
    assert told(alice, hook) == ["task.ended"]
    first = run(alice, "error")
    second = run(alice, "error")
    assert told(alice, hook)[1:] == [
        "task.ended", "task.failed", "agent.broken", "task.ended", "task.failed",
    ]  # fmt: skip
    cancelled = alice.start(claim=True)
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    fixed = run(alice)
    assert told(alice, hook)[6:] == ["task.ended", "task.ended", "agent.fixed"]
    with looping(alice.app):
        receiver.wait_for(9)
    bodies = [json.loads(request.body) for request in receiver.requests]
    sent = {body["type"]: body for body in bodies}
    assert sent["agent.broken"]["data"]["task"]["id"] == first["id"]
    assert sent["agent.fixed"]["data"]["task"]["id"] == fixed["id"]
    assert sent["agent.fixed"]["data"]["brokenSince"] == first["finishedAt"]
    assert sent["agent.fixed"]["timestamp"] == fixed["finishedAt"]
    assert second["finishedAt"] > first["finishedAt"]


def test_cancelled_task_neither_breaks_nor_fixes(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url, events=["agent.broken", "agent.fixed"])
    for status in ("complete", "error", "error", "complete"):
        run(alice, status)
        before = told(alice, hook)
        expect(alice.post(f"/task/{alice.start(claim=True)['id']}/cancel"), 200)
        assert told(alice, hook) == before
    assert told(alice, hook) == ["agent.broken", "agent.fixed"]


def test_late_report_fixes_or_fails_again_without_breaking_twice(
    app: Flask, alice: ApiClient, receiver: Receiver, no_grace: None
) -> None:
    hook = add_hook(alice, receiver.url, events=list(EVENTS))
    task = time_out(app, alice)
    assert told(alice, hook) == ["task.ended", "task.failed", "agent.broken"]
    alice.report(task, status="error", error={"message": "Out of memory"})
    assert told(alice, hook)[3:] == ["task.ended", "task.failed"]
    other = time_out(app, alice)
    alice.report(other, status="complete")
    assert told(alice, hook)[5:] == ["task.ended", "task.failed", "task.ended", "agent.fixed"]


def test_webhook_is_signed_and_has_the_task_as_a_callback_has_it(
    alice: ApiClient, receiver: Receiver
) -> None:
    add_hook(alice, receiver.url, events=["task.ended", "task.asks"])
    asked = ask(alice)
    alice.append(asked, "one", "two")
    with looping(alice.app):
        receiver.wait_for(1)
        ended = alice.report(asked, status="complete", output={"sum": 3})
        receiver.wait_for(2)
    secret = expect(alice.get("/callback-secret"), 200)["secret"]
    asks, end = (Webhook(secret).verify(sent.body, sent.headers) for sent in receiver.requests)
    assert asks["type"] == "task.asks"
    assert asks["data"]["question"] == asked["question"]
    assert asks["data"]["task"]["id"] == asked["id"]
    assert end == {
        "type": "task.ended",
        "timestamp": ended["finishedAt"],
        "data": {"task": alice.task(asked), "url": f"http://127.0.0.1:8000/tasks/{asked['id']}"},
    }


def test_filters_of_a_hook_leave_other_events_out(alice: ApiClient, receiver: Receiver) -> None:
    by_agent = add_hook(alice, receiver.url, events=["task.ended"], agentId="other")
    by_label = add_hook(alice, receiver.url, events=["task.ended"], label="env:prod")
    alice.register("other")
    run(alice)
    run(alice, labels={"env": "test"})
    run(alice, labels={"env": "prod"})
    run(alice, agent_id="other")
    assert told(alice, by_agent) == ["task.ended"]
    assert told(alice, by_label) == ["task.ended"]


def test_hook_is_told_of_nothing_before_it_was_created(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    run(alice, "error")
    assert count(app, Event) == 0
    hook = add_hook(alice, receiver.url)
    run(alice, "error")
    assert told(alice, hook) == []
    run(alice)
    assert told(alice, hook) == []


def test_hook_is_told_of_a_break_after_as_many_failures_in_a_row(
    alice: ApiClient, receiver: Receiver
) -> None:
    first, third = add_hook(alice, receiver.url), add_hook(alice, receiver.url, after=3)
    assert (first["after"], third["after"]) == (1, 3)
    fixed = add_hook(alice, receiver.url, after=3, events=["agent.fixed"])
    for status in ("error", "error", "complete"):
        run(alice, status)
    assert told(alice, first) == ["agent.broken", "agent.fixed"]
    assert told(alice, third) == told(alice, fixed) == []
    for _ in range(5):
        run(alice, "error")
        expect(alice.post(f"/task/{alice.start()['id']}/cancel"), 200)
    assert told(alice, first)[2:] == told(alice, third) == ["agent.broken"]
    run(alice)
    assert told(alice, third) == ["agent.broken", "agent.fixed"]
    assert told(alice, fixed) == ["agent.fixed"]


def test_number_of_failures_can_change_while_an_agent_is_broken(
    alice: ApiClient, receiver: Receiver
) -> None:
    lowered, raised = add_hook(alice, receiver.url, after=9), add_hook(alice, receiver.url)
    for _ in range(3):
        run(alice, "error")
    for hook, number in ((lowered, 2), (raised, 5)):
        changed = expect(alice.patch(f"/hook/{hook['id']}", json={"after": number}), 200)
        assert changed["after"] == number
    for _ in range(3):
        run(alice, "error")
    assert told(alice, lowered) == told(alice, raised) == ["agent.broken"]
    run(alice)
    assert told(alice, lowered) == told(alice, raised) == ["agent.broken", "agent.fixed"]


def test_late_report_of_a_failure_is_not_a_second_one(
    app: Flask, no_grace: None, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, after=2)
    late = time_out(app, alice)
    alice.report(late, status="error")
    assert told(alice, hook) == []
    run(alice, "error")
    assert told(alice, hook) == ["agent.broken"]


def test_failures_that_end_at_once_are_told_once(
    app: Flask, no_grace: None, alice: ApiClient, receiver: Receiver
) -> None:
    first, third = add_hook(alice, receiver.url), add_hook(alice, receiver.url, after=3)
    tasks = [alice.start(claim=True) for _ in range(5)]
    for task in tasks:
        fall_silent(app, task, DAY + 1)
    Maintenance(app).do_round()
    assert {alice.task(task)["status"] for task in tasks} == {"error"}
    assert told(alice, first) == told(alice, third) == ["agent.broken"]


def test_event_is_sent_with_the_same_id_and_the_task_as_it_is_until_it_is_delivered(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = answer(503)
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    task = run(alice, name="before")
    with looping(app):
        receiver.wait_for(1)
        until(lambda: deliveries_of(alice, hook)[0]["attempts"])
        alice.report(task, name="after")
        receiver.answer = answer()
        make_due(app)
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
    first, second = receiver.requests
    [delivery] = deliveries_of(alice, hook)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery["id"]
    assert [attempt["statusCode"] for attempt in delivery["attempts"]] == [503, 200]
    names = [json.loads(request.body)["data"]["task"]["name"] for request in (first, second)]
    assert names == ["before", "after"]
    assert the_hook(alice, hook)["lastDeliveredAt"]


def deliveries_of(person: ApiClient, hook: dict[str, Any]) -> list[dict[str, Any]]:
    deliveries: list[dict[str, Any]] = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return deliveries


def until_all_is_delivered(person: ApiClient, hook: dict[str, Any]) -> None:
    until(lambda: {row["state"] for row in deliveries_of(person, hook)} == {"delivered"})


def test_report_does_not_wait_for_a_hook(alice: ApiClient, receiver: Receiver) -> None:
    receiver.answer = silence
    add_hook(alice, receiver.url, events=["task.ended"])
    task = alice.start(claim=True)
    response = alice.patch(f"/task/{task['id']}", json={"status": "complete"})
    assert expect(response, 200)
    assert response.headers["Callback-Status"] == "none"
    assert receiver.requests == []


def test_410_turns_a_hook_off_and_on_again_it_is_told_of_what_waited(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    receiver.answer = answer(410)
    first, second = run(alice), run(alice)
    with looping(app):
        until(lambda: the_hook(alice, hook)["state"] == "off")
    assert "410" in the_hook(alice, hook)["reason"]
    run(alice)
    states = [delivery["state"] for delivery in deliveries_of(alice, hook)]
    assert len(states) == 2
    with app.app_context(), transaction() as connection:
        connection.execute(update(Delivery).values(state="pending", next_attempt_at=database_now()))
    receiver.answer = answer()
    expect(alice.patch(f"/hook/{hook['id']}", json={"state": "active"}), 200)
    sent = len(receiver.requests)
    with looping(app):
        receiver.wait_for(sent + 2)
    ids = {json.loads(request.body)["data"]["task"]["id"] for request in receiver.requests[sent:]}
    assert ids == {first["id"], second["id"]}
    assert the_hook(alice, hook)["reason"] is None


def test_three_lost_deliveries_in_a_row_turn_a_hook_off(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    for number, status in enumerate((500, 500, 204, 500, 500, 500), 1):
        assert the_hook(alice, hook)["state"] == "active"
        receiver.answer = answer(status)
        run(alice)
        change(app, attempt_count=9)
        with looping(app):
            receiver.wait_for(number)
            until(lambda: deliveries_of(alice, hook)[0]["state"] != "pending")
    assert the_hook(alice, hook)["state"] == "off"
    assert "500" in the_hook(alice, hook)["reason"]
    states = [row["state"] for row in deliveries_of(alice, hook)]
    assert states == ["failed"] * 3 + ["delivered"] + ["failed"] * 2


def fail(app: Flask, person: ApiClient, hook: dict[str, Any], receiver: Receiver) -> None:
    """Let one more attempt fail of the only event that a hook is notified of."""
    # Until the test makes it due again.
    receiver.answer = answer(503, {"Retry-After": "3600"})
    count = len(deliveries_of(person, hook)[0]["attempts"])
    make_due(app)
    make_message_due(app)
    with looping(app):
        until(lambda: len(deliveries_of(person, hook)[0]["attempts"]) == count + 1)


@pytest.mark.parametrize("path", ["", "slack"])
def test_hook_fails_from_two_minutes_after_a_failure_to_its_next_success(
    app: Flask, alice: ApiClient, clocks: Clocks, receiver: Receiver, path: str
) -> None:
    hook = add_hook(alice, receiver.url + path, events=["task.ended"])
    run(alice)
    for _ in range(2):
        fail(app, alice, hook, receiver)
    clocks.go_on(110)
    assert the_hook(alice, hook)["failingSince"] is None
    clocks.go_on(15)
    failing = the_hook(alice, hook)
    first = deliveries_of(alice, hook)[0]["attempts"][0]
    assert abs(moment(failing["failingSince"]) - moment(first["at"])) < timedelta(seconds=10)
    assert (failing["state"], failing["lastDeliveredAt"]) == ("active", None)
    assert "503" in failing["reason"]
    assert expect(alice.get("/hook"), 200) == [failing]
    receiver.answer = answer()
    make_due(app)
    make_message_due(app)
    with looping(app):
        until_all_is_delivered(alice, hook)
    works = the_hook(alice, hook)
    assert (works["state"], works["failingSince"], works["reason"]) == ("active", None, None)


@pytest.mark.parametrize("path", ["", "slack"])
def test_one_failure_alone_says_little(
    app: Flask, alice: ApiClient, clocks: Clocks, receiver: Receiver, path: str
) -> None:
    hook = add_hook(alice, receiver.url + path, events=["task.ended"])
    run(alice)
    fail(app, alice, hook, receiver)
    clocks.go_on(150)
    assert the_hook(alice, hook)["failingSince"] is None
    fail(app, alice, hook, receiver)
    assert the_hook(alice, hook)["failingSince"] is not None
    # Its user gives it another address.
    changed = alice.patch(f"/hook/{hook['id']}", json={"target": f"{receiver.url}new/{path}"})
    assert expect(changed, 200)["failingSince"] is None


@pytest.mark.parametrize("path", ["", "slack"])
def test_test_that_arrives_ends_the_failure_and_sends_what_is_pending(
    app: Flask, alice: ApiClient, clocks: Clocks, receiver: Receiver, path: str
) -> None:
    hook = add_hook(alice, receiver.url + path, events=["task.ended"])
    run(alice)
    for _ in range(2):
        fail(app, alice, hook, receiver)
    clocks.go_on(125)
    assert not expect(alice.post(f"/hook/{hook['id']}/test"), 200)["delivered"]
    assert the_hook(alice, hook)["failingSince"]
    receiver.answer = answer()
    clocks.go_on(15)
    assert expect(alice.post(f"/hook/{hook['id']}/test"), 200)["delivered"]
    assert the_hook(alice, hook)["failingSince"] is None
    with looping(app):
        until_all_is_delivered(alice, hook)


@pytest.mark.parametrize("path", ["", "slack"])
def test_what_is_pending_waits_while_the_hook_is_off_but_at_most_a_day(
    app: Flask, alice: ApiClient, receiver: Receiver, path: str
) -> None:
    hook = add_hook(alice, receiver.url + path, events=["task.ended"])
    receiver.answer = silence
    run(alice)
    with looping(app, stop_seconds=0):
        receiver.wait_for(1)
        # Turned off by its user, while an attempt is under way; another event waits.
        run(alice)
        expect(alice.patch(f"/hook/{hook['id']}", json={"state": "off"}), 200)
    states = [row["state"] for row in deliveries_of(alice, hook)]
    assert states == ["pending", "pending"]
    # An attempt for the second event may have begun before the hook was off.
    posted = len(receiver.requests)
    receiver.answer = answer()
    with looping(app):
        Maintenance(app).do_round()
        run(alice)
        assert deliveries_of(alice, hook)[0]["state"] == "pending"
        assert len(receiver.requests) == posted
        expect(alice.patch(f"/hook/{hook['id']}", json={"state": "active"}), 200)
        make_message_due(app)
        receiver.wait_for(posted + 1)
        until_all_is_delivered(alice, hook)
    expect(alice.patch(f"/hook/{hook['id']}", json={"state": "off"}), 200)
    delivery = deliveries_of(alice, hook)[0]
    again = f"/hook/{hook['id']}/deliveries/{delivery['id']}"
    assert "turn it on first" in problem(alice.post(again), 409)["detail"]
    change(app, state="delivered")
    expect(alice.patch(f"/hook/{hook['id']}", json={"state": "active"}), 200)
    run(alice)
    expect(alice.patch(f"/hook/{hook['id']}", json={"state": "off"}), 200)
    Maintenance(app).do_round()
    assert deliveries_of(alice, hook)[0]["state"] == "pending"
    make_due(app)
    Maintenance(app).do_round()
    # Off for less than a day.
    assert deliveries_of(alice, hook)[0]["state"] == "pending"
    change(app, created_at=database_now(-DAY - 1), next_attempt_at=database_now(-1))
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(quiet_until=database_now(-1)))
    Maintenance(app).do_round()
    # It is now the oldest one.
    assert deliveries_of(alice, hook)[-1]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("status", "state", "is_gone"), [(200, "delivered", True), (503, "pending", False)]
)
def test_attempt_that_is_under_way_when_its_hook_is_turned_off_counts(
    app: Flask, alice: ApiClient, receiver: Receiver, status: int, state: str, is_gone: bool
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    is_off = threading.Event()

    def answer_when_it_is_off(exchange: Exchange) -> None:
        is_off.wait(PATIENCE_SECONDS)
        answer(status)(exchange)

    receiver.answer = answer_when_it_is_off
    run(alice)
    with looping(app):
        receiver.wait_for(1)
        if is_gone:
            receiver.answer = answer(410)
            run(alice)
            until(lambda: the_hook(alice, hook)["state"] == "off")
        else:
            expect(alice.patch(f"/hook/{hook['id']}", json={"state": "off"}), 200)
        is_off.set()
        until(lambda: deliveries_of(alice, hook)[-1]["attempts"])
        attempted = deliveries_of(alice, hook)[-1]
        assert attempted["state"] == state
        if state == "pending":
            waits = moment(attempted["nextAttemptAt"]) - moment(attempted["attempts"][0]["at"])
            assert waits > timedelta(hours=23)
    stored = the_hook(alice, hook)
    assert (stored["state"], bool(stored["reason"])) == ("off", is_gone)
    assert bool(stored["lastDeliveredAt"]) == (state == "delivered")


def attempts_of(person: ApiClient, hook: dict[str, Any]) -> list[dict[str, Any]]:
    """The attempts of all deliveries of a hook, oldest first."""
    rows = deliveries_of(person, hook)
    return sorted((attempt for row in rows for attempt in row["attempts"]), key=itemgetter("at"))


def has_attempts(person: ApiClient, hook: dict[str, Any], count: int) -> bool:
    return len(attempts_of(person, hook)) >= count


def seconds_until_message(person: ApiClient, hook: dict[str, Any], since: str) -> float:
    due = [row["nextAttemptAt"] for row in deliveries_of(person, hook) if row["nextAttemptAt"]]
    return (moment(due[0]) - moment(since)).total_seconds()


def test_message_is_sent_although_its_process_was_killed_while_the_hook_was_turned_on(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    run(alice)
    began = clock.now()
    with app.app_context():
        assert len(deliveries.lease_due(1, deliveries.ReceiverSlots([], set()))) == 1
    for state in ("off", "active"):
        expect(alice.patch(f"/hook/{hook['id']}", json={"state": state}), 200)
    # Until its lease runs out, the process could still send it.
    assert seconds_until_message(alice, hook, began) >= deliveries.LEASE_SECONDS
    change(app, leased_until=database_now(-1))
    make_message_due(app)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")


def test_message_for_people_that_fails_is_one_attempt_and_no_event_restarts_its_schedule(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    receiver.answer = answer(503)
    for _ in range(3):
        run(alice)
    with looping(app):
        for number, seconds in enumerate((30, *SCHEDULE[1:4]), 1):
            until(partial(has_attempts, alice, hook, number))
            run(alice)
            [*_, attempt] = attempts_of(alice, hook)
            due = deliveries_of(alice, hook)[0]["nextAttemptAt"]
            wait = (moment(due) - moment(attempt["at"])).total_seconds()
            assert seconds * (1 - JITTER) <= wait <= seconds * (1 + JITTER) + 5
            assert len(attempts_of(alice, hook)) == len(receiver.requests) == number
            if number == 4:
                receiver.answer = answer()
            make_message_due(app)
        until_all_is_delivered(alice, hook)
    assert len(receiver.requests) == 5


def test_hook_for_people_is_off_when_it_could_not_be_told_for_a_day(
    app: Flask, alice: ApiClient, receiver: Receiver, clocks: Clocks
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    receiver.answer = answer(503)
    maintenance = Maintenance(app)

    def has_settled() -> bool:
        due = [row["nextAttemptAt"] for row in deliveries_of(alice, hook)]
        return not [time for time in due if time and time <= clock.now()]

    with looping(app):
        for _ in range(26):
            run(alice)
            until(has_settled)
            assert the_hook(alice, hook)["state"] == "active"
            clocks.go_on(3_600)
            maintenance.do_round()
            until(has_settled)
            if the_hook(alice, hook)["state"] == "off":
                break
        maintenance.do_round()
    assert "503" in the_hook(alice, hook)["reason"]
    assert len(receiver.requests) < 10
    states = Counter(row["state"] for row in deliveries_of(alice, hook))
    assert states["failed"] == 3


def test_people_are_not_blamed_for_the_absence_of_the_service(
    app: Flask, alice: ApiClient, receiver: Receiver, clocks: Clocks
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    receiver.answer = answer(503)
    with looping(app):
        for _ in range(4):
            run(alice)
        until(lambda: attempts_of(alice, hook))
    clocks.go_on(3 * DAY)
    Maintenance(app).do_round()
    assert the_hook(alice, hook)["state"] == "active"
    assert {row["state"] for row in deliveries_of(alice, hook)} == {"cancelled"}
    receiver.answer = answer()
    run(alice)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")


def repeat_event(app: Flask, times: int) -> None:
    """Tell the only hook this many times more of the only event."""
    with app.app_context(), transaction() as connection:
        event = connection.execute(select(Event.__table__)).one()._asdict()
        delivery = connection.execute(select(Delivery.__table__)).one()._asdict()
        ids = [(clock.new_id(), clock.new_id()) for _ in range(times)]
        positions = range(event["position"] + 1, event["position"] + times + 1)
        connection.execute(
            insert(Event),
            [
                event | {"id": event_id, "position": position}
                for (event_id, _), position in zip(ids, positions, strict=True)
            ],
        )
        connection.execute(
            insert(Delivery),
            [delivery | {"event_id": event_id, "id": own_id} for event_id, own_id in ids],
        )
        connection.execute(update(EventStream).values(position=positions[-1]))


def test_no_transaction_changes_more_than_a_few_hundred_deliveries_of_people(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    run(alice)
    repeat_event(app, 1_500)
    counts: list[int] = []

    def add(*call: Any) -> None:
        counts.append(call[1].rowcount)

    with app.app_context():
        engine = db.engine
    sql_event.listen(engine, "after_cursor_execute", add)
    try:
        receiver.answer = answer(503)
        with looping(app):
            until(lambda: count(app, Attempt))
            receiver.answer = answer()
            make_message_due(app)
            until(lambda: set(columns(app, "state")) == {("delivered",)})
    finally:
        sql_event.remove(engine, "after_cursor_execute", add)
    assert max(counts) <= 200


CHANGES = {
    "off and on": [{"state": "off"}, {"state": "active"}],
    "off, moved and on": [{"state": "off"}, {"target": "moved"}, {"state": "active"}],
    "moved": [{"target": "moved"}],
    "for people": [{"format": "slack"}],
    "off, for people, and on": [{"state": "off"}, {"format": "slack"}, {"state": "active"}],
    "for people and back": [{"format": "slack"}, {"format": "standard"}],
}


@pytest.mark.parametrize("steps", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("is_killed", [False, True], ids=["finished", "killed"])
def test_all_that_is_pending_of_a_changed_hook_is_told_once_and_in_batches(
    app: Flask,
    alice: ApiClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[dict[str, Any]],
    is_killed: bool,
) -> None:
    monkeypatch.setattr(deliveries, "BATCH", 10)
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    # As after some attempts that failed, and before any.
    change(app, next_attempt_at=database_now(3_600), attempt_count=3)
    repeat_event(app, 40)
    change_half = update(Delivery).where(Delivery.id.in_(select(Delivery.id).limit(20)))
    with app.app_context(), transaction() as connection:
        connection.execute(change_half.values(next_attempt_at=database_now(), attempt_count=0))
    counts: list[int] = []
    with app.app_context():
        engine = db.engine

    def add(*call: Any) -> None:
        counts.append(call[1].rowcount)

    sql_event.listen(engine, "after_cursor_execute", add)
    try:
        for fields in steps:
            target = {"target": receiver.url + "moved"} if "target" in fields else {}
            expect(alice.patch(f"/hook/{hook['id']}", json=fields | target), 200)
            if not is_killed:
                Maintenance(app).do_round()
                continue
            # Its process is killed after the first batch of both jobs.
            with app.app_context():
                deliveries.expire()
                deliveries.lease_due(0, deliveries.ReceiverSlots([], set()))
        Maintenance(app).do_round()
        make_message_due(app)
        with looping(app):
            until(lambda: set(columns(app, "state")) == {("delivered",)})
    finally:
        sql_event.remove(engine, "after_cursor_execute", add)
    assert max(counts) <= 20
    is_for_people = the_hook(alice, hook)["format"] == "slack"
    ids = [request.headers.get("webhook-id") for request in receiver.requests]
    assert len(ids) == len(set(ids)) == (1 if is_for_people else 41)


def test_hook_with_very_many_pending_does_not_delay_another_one_that_is_turned_on(
    app: Flask, alice: ApiClient, bob: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "BATCH", 2)
    add_hook(alice, "http://127.0.0.1:9", events=["task.ended"])
    run(alice)
    change(app, next_attempt_at=database_now(3_600))
    repeat_event(app, 60)
    hook = add_hook(bob, "http://127.0.0.1:9", events=["task.ended"])
    run(bob)
    change(app, next_attempt_at=database_now(3_600))
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(next_attempt_at=database_now()))
    with app.app_context():
        for _ in range(25):
            deliveries.lease_due(0, deliveries.ReceiverSlots([], set()))
    assert deliveries_of(bob, hook)[0]["nextAttemptAt"] <= clock.now()


def test_what_waits_for_a_hook_that_is_off_is_not_moved_again_after_a_clock_change(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    expect(alice.patch(f"/hook/{hook['id']}", json={"state": "off"}), 200)
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(quiet_until=database_now(30 * DAY)))
    times = []
    for _ in range(2):
        Maintenance(app).do_round()
        times.append(deliveries_of(alice, hook)[0]["nextAttemptAt"])
    assert times[0] == times[1] <= clock.now(DAY)


def test_pause_that_began_before_the_clock_was_set_back_does_not_last(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    with app.app_context(), transaction() as connection:
        connection.execute(update(Hook).values(quiet_until=database_now(3_600)))
    run(alice)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")


def test_deletion_of_a_task_cancels_what_is_pending(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    expect(alice.delete(f"/task/{run(alice)['id']}"), 200)
    assert told(alice, hook) == []
    assert count(app, Event) == 0


@pytest.mark.parametrize("kind", ["standard", "slack"])
def test_deliveries_of_a_deleted_hook_are_removed_some_at_a_time(
    app: Flask, alice: ApiClient, receiver: Receiver, kind: str
) -> None:
    hook = add_hook(alice, receiver.url, format=kind, events=["task.ended"])
    run(alice)
    repeat_event(app, 500)
    expect(alice.delete(f"/hook/{hook['id']}"), 200)
    # Otherwise other writers would wait for thousands of them.
    assert count(app, Delivery) == 501
    problem(alice.get(f"/hook/{hook['id']}"), 404)
    problem(alice.get(f"/hook/{hook['id']}/deliveries"), 404)
    problem(alice.patch(f"/hook/{hook['id']}", json={"state": "active"}), 404)
    assert expect(alice.get("/hook"), 200) == []
    assert expect(alice.get("/attention"), 200) == []
    with looping(app):
        run(alice)

        def is_removed() -> bool:
            # A round ends early on a busy machine.
            Maintenance(app).do_round()
            return count(app, Hook) == 0

        until(is_removed)
        assert count(app, Delivery) == 0
    assert receiver.requests == []


def test_delivery_is_repeated_on_request(app: Flask, alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
        [delivery] = deliveries_of(alice, hook)
        again = alice.post(f"/hook/{hook['id']}/deliveries/{delivery['id']}")
        assert expect(again, 202)["id"] == delivery["id"]
        receiver.wait_for(2)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


def test_test_message_is_sent_and_its_outcome_told(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, receiver.url)
    assert expect(alice.post(f"/hook/{hook['id']}/test"), 200)["delivered"] is True
    receiver.answer = answer(404)
    other = add_hook(alice, f"{receiver.url}other")
    failed = expect(alice.post(f"/hook/{other['id']}/test"), 200)
    assert (failed["delivered"], failed["statusCode"]) == (False, 404)
    assert told(alice, hook) == []


FIELDS = {
    "task.ended": {"task"},
    "task.failed": {"task"},
    "task.asks": {"task", "question", "answerUrl"},
    "agent.broken": {"agent", "task"},
    "agent.fixed": {"agent", "task", "brokenSince"},
    "agent.late": {"agent", "dueAt"},
    "agent.back": {"agent", "task", "dueAt", "onTime"},
    "task.hangs": {"agent", "task", "hangingSince", "reason"},
    "task.recovered": {"agent", "task", "hangingSince", "reason", "seconds"},
}


def send_test(person: ApiClient, receiver: Receiver, target: str, **fields: Any) -> Any:
    """The body of a test of a new hook."""
    hook = add_hook(person, target, **fields)
    sent = len(receiver.requests)
    assert expect(person.post(f"/hook/{hook['id']}/test"), 200)["delivered"]
    return json.loads(receiver.wait_for(sent + 1)[sent].body)


def test_test_is_one_of_the_hooks_events_with_all_its_fields(
    alice: ApiClient, receiver: Receiver
) -> None:
    assert FIELDS.keys() == set(EVENTS)
    task = alice.start()
    for event, fields in FIELDS.items():
        body = send_test(
            alice, receiver, f"{receiver.url}{event}", events=[event], answerLinks=True
        )
        assert (body["type"], body["test"]) == (event, True)
        assert body["data"].keys() == fields | {"url"}
        if "task" in fields:
            assert body["data"]["task"].keys() == task.keys()
            assert body["data"]["task"]["logs"] == ["This is a test: nothing happened."]
        if "agent" in fields:
            assert body["data"]["agent"]["userId"] == task["userId"]
        if "question" in fields:
            assert body["data"]["question"]["state"] == "open"


@pytest.mark.parametrize("event", EVENTS)
def test_test_for_people_is_one_of_the_hooks_events_and_says_that_it_is_a_test(
    alice: ApiClient, receiver: Receiver, event: str
) -> None:
    name = alice.register("summarizer")["name"]
    fields = {"events": [event], "agentId": "summarizer", "answerLinks": True}
    text = send_test(alice, receiver, f"{receiver.url}slack", **fields)["text"]
    assert text.startswith(f"{KINDS[event].title.format(f'Test: {name}')}\n")
    assert "This is a test: nothing happened" in text
    ntfy = send_test(alice, receiver, f"{receiver.url}topic", format="ntfy", **fields)
    assert ntfy["title"] == text.split("\n")[0]
    assert ("actions" in ntfy) == (event == "task.asks")


def test_a_hook_is_tested_once_in_ten_seconds(
    app: Flask, alice: ApiClient, receiver: Receiver, clocks: Clocks
) -> None:
    hook, same = add_hook(alice, receiver.url), add_hook(alice, receiver.url)
    expect(alice.post(f"/hook/{hook['id']}/test"), 200)
    for again in (hook, same):
        refused = alice.post(f"/hook/{again['id']}/test")
        assert "less than 10 s ago" in problem(refused, 429)["detail"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 10
    # Another address does not give a hook another test.
    expect(alice.patch(f"/hook/{hook['id']}", json={"target": f"{receiver.url}other"}), 200)
    problem(alice.post(f"/hook/{hook['id']}/test"), 429)
    clocks.go_on(10)
    expect(alice.post(f"/hook/{same['id']}/test"), 200)
    assert len(receiver.requests) == 2


def test_a_user_sends_ten_tests_a_minute(
    app: Flask, alice: ApiClient, bob: ApiClient, receiver: Receiver, clocks: Clocks
) -> None:
    hooks = [add_hook(alice, f"{receiver.url}{number}") for number in range(11)]
    for hook in hooks[:10]:
        expect(alice.post(f"/hook/{hook['id']}/test"), 200)
    # Deleted hooks count.
    expect(alice.delete(f"/hook/{hooks[0]['id']}"), 200)
    last = partial(alice.post, f"/hook/{hooks[10]['id']}/test")
    refused = last()
    assert "10 tests were sent in the last minute" in problem(refused, 429)["detail"]
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    of_bob = add_hook(bob, f"{receiver.url}bob")
    expect(bob.post(f"/hook/{of_bob['id']}/test"), 200)
    clocks.go_on(61)
    expect(last(), 200)


def test_token_is_not_sent_to_a_new_address_or_in_another_form(
    alice: ApiClient, receiver: Receiver
) -> None:
    token, topic = "tk_secret", f"{receiver.url}topic"
    with Receiver() as elsewhere:
        for number, (change, is_kept) in enumerate(
            [
                ({"target": f"{receiver.url}other"}, True),
                ({"name": "Phone"}, True),
                ({"target": f"{elsewhere.url}topic"}, False),
                ({"format": "slack"}, False),
                ({"target": f"{elsewhere.url}mine", "token": token}, True),
            ]
        ):
            hook = add_hook(alice, f"{topic}{number}", format="ntfy", token=token)
            expect(alice.patch(f"/hook/{hook['id']}", json=change), 200)
            expect(alice.post(f"/hook/{hook['id']}/test"), 200)
            [*_, request] = sorted([*receiver.requests, *elsewhere.requests], key=attrgetter("at"))
            assert (request.headers.get("authorization") == f"Bearer {token}") == is_kept


def test_delivery_that_is_deleted_while_it_is_redelivered_is_404(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    task = run(alice)
    [delivery] = deliveries_of(alice, hook)
    with deleting_first(app, alice, task):
        problem(alice.post(f"/hook/{hook['id']}/deliveries/{delivery['id']}"), 404)


def test_question_is_a_message_of_its_own_with_its_buttons(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    fields = {"format": "ntfy", "answerLinks": True}
    hook = add_hook(alice, f"{receiver.url}topic", **fields)
    field = {"type": "boolean", "title": "Go", "description": "This can’t be undone."}
    schema = {"type": "object", "properties": {"ok": field}, "required": ["ok"]}
    run(alice, "error")
    for message in ("Deploy?", "Remove?"):
        asking = alice.start(claim=True)
        question = {"message": message, "schema": schema}
        expect(alice.post(f"/task/{asking['id']}/question", json=question), 201)
    run(alice)
    with looping(app):
        for count in (1, 2, 3):
            receiver.wait_for(count)
            until(lambda: the_hook(alice, hook)["lastDeliveredAt"])
            until(partial(has_attempts, alice, hook, count))
            make_message_due(app)
        until_all_is_delivered(alice, hook)
    first, second, third = (json.loads(request.body) for request in receiver.requests)
    for body, message in ((first, "Deploy?"), (second, "Remove?")):
        assert body["title"].endswith("asks")
        # The page shows the title and the description of the field too.
        assert body["message"].startswith(f"{message}\nGo\nThis can’t be undone.\n")
        assert len(body["actions"]) == 2
    assert third["title"].endswith("works again")
    assert third["message"].count("\n- ") == 0


def test_people_get_one_message_and_then_a_pause(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["agent.broken"])
    for number in range(40):
        alice.register(f"agent-{number}")
        run(alice, "error", agent_id=f"agent-{number}")
    began = clock.now()
    # As in two processes.
    with looping(app), looping(app):
        until_all_is_delivered(alice, hook)
        run(alice, "error")
        until(lambda: len(deliveries_of(alice, hook)) == 41)
        newest = deliveries_of(alice, hook)[0]
        assert newest["state"] == "pending"
        sent = moment(the_hook(alice, hook)["lastDeliveredAt"])
        pause = timedelta(seconds=30)
        assert moment(began) + pause <= moment(newest["nextAttemptAt"]) <= sent + pause
        assert len(receiver.requests) == 1
        make_message_due(app)
        receiver.wait_for(2)
    message = receiver.requests[0].body.decode()
    assert "40 agents broke: agent-0, agent-1" in message


def test_corrected_address_does_not_wait_for_the_schedule_of_the_wrong_one(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}wrong/slack", events=["task.ended"])
    receiver.answer = answer(503)
    run(alice)
    with looping(app):
        until(lambda: len(attempts_of(alice, hook)) == 1)
        # The next attempt after this one is some minutes later.
        make_message_due(app)
        until(lambda: len(attempts_of(alice, hook)) == 2)
        receiver.answer = answer()
        path = f"/hook/{hook['id']}"
        expect(alice.patch(path, json={"target": f"{receiver.url}right/slack"}), 200)
        [pending] = deliveries_of(alice, hook)
        [*_, last] = pending["attempts"]
        assert moment(pending["nextAttemptAt"]) <= moment(last["at"]) + timedelta(seconds=35)
        make_message_due(app)
        assert receiver.wait_for(3)[2].path == "/right/slack"
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")


@pytest.mark.parametrize(("before", "after"), [("slack", "standard"), ("standard", "slack")])
def test_what_is_pending_is_sent_in_the_new_form(
    app: Flask, alice: ApiClient, receiver: Receiver, before: str, after: str
) -> None:
    hook = add_hook(alice, receiver.url, format=before, events=["task.ended"])
    run(alice)
    run(alice)
    expect(alice.patch(f"/hook/{hook['id']}", json={"format": after}), 200)
    Maintenance(app).do_round()
    with looping(app):
        until_all_is_delivered(alice, hook)
    signed = ["webhook-id" in request.headers for request in receiver.requests]
    assert signed == ([True, True] if after == "standard" else [False])


def test_people_have_their_pause_whatever_a_user_does(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    path = f"/hook/{hook['id']}"
    run(alice)
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
        [delivery] = deliveries_of(alice, hook)
        again = expect(alice.post(f"{path}/deliveries/{delivery['id']}"), 202)
        pause = moment(delivery["attempts"][0]["at"]) + timedelta(seconds=29)
        assert moment(again["nextAttemptAt"]) > pause
        for state in ("off", "active"):
            expect(alice.patch(path, json={"state": state}), 200)
        assert moment(deliveries_of(alice, hook)[0]["nextAttemptAt"]) > pause
        make_message_due(app)
        receiver.wait_for(2)


def test_message_whose_first_task_is_deleted_in_between_is_sent_once(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended"])
    is_deleted = threading.Event()

    def answer_when_it_is_deleted(exchange: Exchange) -> None:
        is_deleted.wait(PATIENCE_SECONDS)
        answer()(exchange)

    receiver.answer = answer_when_it_is_deleted
    first, *_ = [run(alice) for _ in range(3)]
    with looping(app):
        receiver.wait_for(1)
        expect(alice.delete(f"/task/{first['id']}"), 200)
        until(lambda: len(deliveries_of(alice, hook)) == 2)
        is_deleted.set()
        until(lambda: the_hook(alice, hook)["lastDeliveredAt"])
    rows = deliveries_of(alice, hook)
    assert [row["state"] for row in rows] == ["delivered", "delivered"]
    assert len(receiver.requests) == 1


def test_questions_do_not_delay_other_news_for_long(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.ended", "task.asks"])
    run(alice)
    change(app, next_attempt_at=database_now(DAY - 600))
    ask(alice, "First?")
    ask(alice, "Second?")

    def has_attempts(number: int) -> bool:
        return len(attempts_of(alice, hook)) == number

    with looping(app):
        for number in range(1, 4):
            until(partial(has_attempts, number))
            make_message_due(app)
        until_all_is_delivered(alice, hook)
    bodies = [request.body.decode() for request in receiver.requests]
    marks = ["First?", "Second?", "ended"]
    assert [[mark in body for mark in marks] for body in bodies] == [
        [False, False, True],
        [True, False, False],
        [False, True, False],
    ]


@pytest.mark.timeout(300 + FAILURES // 2)
def test_many_failures_are_one_message_for_people_and_delay_no_other_user(
    app: Flask, alice: ApiClient, bob: ApiClient, receiver: Receiver
) -> None:
    add_hook(alice, f"{receiver.url}program", events=["task.failed"])
    with Receiver() as phone, Receiver() as of_bob:
        add_hook(alice, f"{phone.url}slack", events=["task.failed"])
        failed = {run(alice, "error")["id"] for _ in range(FAILURES)}
        add_hook(bob, of_bob.url, events=["task.ended"])
        run(bob)
        with looping(app):
            of_bob.wait_for(1)
            # Users take turns, so few of the others were sent before.
            assert len(receiver.requests) < 64 < FAILURES
            receiver.wait_for(FAILURES, PATIENCE_SECONDS + FAILURES / 10)
        told_ids = Counter(
            json.loads(request.body)["data"]["task"]["id"] for request in receiver.requests
        )
        assert told_ids == dict.fromkeys(failed, 1)
        assert len(phone.requests) == 1


def test_people_are_not_told_what_is_older_than_a_day(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    hook = add_hook(alice, f"{receiver.url}slack", events=["task.failed"])
    old = run(alice, "error")
    change(app, created_at=database_now(-DAY - 1), next_attempt_at=database_now(-1))
    new = run(alice, "error")
    with looping(app):
        until(lambda: deliveries_of(alice, hook)[0]["state"] == "delivered")
    assert b"more" not in receiver.requests[0].body
    Maintenance(app).do_round()
    assert deliveries_of(alice, hook)[1]["state"] == "cancelled"
    assert old["id"] != new["id"]


def test_old_events_go_with_few_deliveries_in_a_transaction(
    app: Flask,
    alice: ApiClient,
    receiver: Receiver,
    no_grace: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "BATCH", 10)
    add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    with app.app_context(), transaction() as connection:
        delivery = connection.execute(select(Delivery.__table__)).one()._asdict()
        copies = [delivery | {"id": clock.new_id()} for _ in range(24)]
        connection.execute(insert(Delivery), copies)
        connection.execute(update(Event).values(at=database_now(-7 * DAY - 1)))
    left = []
    for _ in range(3):
        with app.app_context():
            events.prune(clock.now())
        left.append((count(app, Delivery), count(app, Event)))
    assert left == [(15, 1), (5, 1), (0, 0)]


def test_events_are_kept_for_seven_days(
    app: Flask, alice: ApiClient, receiver: Receiver, no_grace: None
) -> None:
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    with app.app_context(), transaction() as connection:
        connection.execute(update(Event).values(at=database_now(-7 * DAY - 1)))
    run(alice)
    Maintenance(app).do_round()
    assert told(alice, hook) == ["task.ended"]
    assert count(app, Event) == 1


def test_delivery_of_a_hook_is_not_a_delivery_of_the_task(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    add_hook(alice, receiver.url, events=["task.ended"])
    task = run(alice)
    assert expect(alice.get(f"/task/{task['id']}/deliveries"), 200) == []
    refused = problem(alice.post(f"/task/{task['id']}/deliveries"), 409)
    assert refused["code"] == "no_delivery"
    assert column(app, task, "status") == "complete"


@one_database
def test_hook_at_a_private_address_is_refused_at_the_connect(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("external")
    hook = add_hook(alice, f"http://localhost:{receiver.port}/")
    tested = expect(alice.post(f"/hook/{hook['id']}/test"), 200)
    assert (tested["delivered"], tested["statusCode"]) == (False, None)
    assert "loopback" in tested["message"]
    assert receiver.requests == []


@one_database
def test_attempt_at_a_hook_ends_at_the_deadline_of_callbacks(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    app.config["CALLBACK_TIMEOUT"] = 0.5
    receiver.answer = silence
    hook = add_hook(alice, receiver.url, events=["task.ended"])
    run(alice)
    with looping(app):
        [attempt] = until(lambda: deliveries_of(alice, hook)[0]["attempts"])
    assert "within 0.5 s" in attempt["message"]
