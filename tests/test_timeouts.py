"""Timeouts: a claimed task with a silent agent ends once, unless the service was away."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from taskservice.background.maintenance import Maintenance
from taskservice.database.models import Delivery, ServiceHeartbeat
from taskservice.database.transactions import reading
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.internals import (
    Statement,
    before_writes,
    column,
    copy_task,
    moment,
    plan_of,
    set_clock,
)
from tests.support.maintenance import fall_silent, rounds
from tests.support.receiver import Receiver

DAY = 86_400.0


def deliveries(app: Flask, task: dict[str, Any]) -> list[Any]:
    """The deliveries of a task, oldest first."""
    of_task = select(Delivery).where(Delivery.task_id == task["id"]).order_by(Delivery.id)
    with app.app_context(), reading() as connection:
        return list(connection.execute(of_task).all())


def test_silent_task_is_ended_with_a_plain_message(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    task = alice.start(claim=True)
    alice.append(task, "one")
    before = alice.task(task)
    fall_silent(app, task, DAY + 1)
    maintenance.do_round()
    ended = alice.task(task)
    message = "Its agent sent nothing for 24 hours"
    assert ended["error"] == {"type": "timeout", "message": message}
    assert ended["finishedAt"] == ended["updatedAt"] > before["updatedAt"]
    changes = {name: ended[name] for name in ("error", "updatedAt", "finishedAt")}
    assert ended == before | changes | {"status": "error", "endedBy": "service"}
    assert column(app, task, "version") == 3


def test_timeout_of_its_own_counts_before_the_default(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    short, long = (alice.start(claim=True, timeout=timeout) for timeout in (60, 172_800))
    endless = alice.start(claim=True, timeout=0)
    for task in (short, long, endless):
        fall_silent(app, task, 61)
    maintenance.do_round()
    message = "Its agent sent nothing for 1 minute"
    assert alice.task(short)["error"] == {"type": "timeout", "message": message}
    fall_silent(app, long, DAY + 1)
    fall_silent(app, endless, 1000 * DAY)
    maintenance.do_round()
    assert {alice.task(task)["status"] for task in (long, endless)} == {"running"}
    fall_silent(app, long, 2 * DAY + 1)
    maintenance.do_round()
    assert alice.task(long)["error"]["message"].endswith("48 hours")


def test_default_of_zero_ends_only_tasks_with_a_timeout_of_their_own(
    app_with: Callable[..., Flask], no_grace: None
) -> None:
    app = app_with(TASK_TIMEOUT=0.0)
    alice = add_user(app, "alice")
    with_timeout, default = alice.start(claim=True, timeout=90), alice.start(claim=True)
    for task in (with_timeout, default):
        fall_silent(app, task, 1000 * DAY)
    Maintenance(app).do_round()
    assert alice.task(with_timeout)["error"]["message"].endswith("90 seconds")
    assert alice.task(default)["status"] == "running"


def test_new_default_counts_for_tasks_that_run_already(
    app: Flask, alice: ApiClient, maintenance: Maintenance, app_with: Callable[..., Flask]
) -> None:
    task = alice.start(claim=True)
    fall_silent(app, task, 100)
    maintenance.do_round()
    assert alice.task(task)["status"] == "running"
    again = app_with(TASK_TIMEOUT=60.0)
    Maintenance(again).do_round()
    assert ApiClient(again, "alice", alice.key).task(task)["error"]["type"] == "timeout"


def test_task_that_waits_for_an_agent_is_never_ended(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    waiting = [alice.start(), alice.start(timeout=1)]
    for task in waiting:
        fall_silent(app, task, 1000 * DAY)
    maintenance.do_round()
    assert {alice.task(task)["status"] for task in waiting} == {"running"}
    # The clock of its silence starts when it is claimed.
    for _ in waiting:
        assert alice.post("/agent/summarizer/claim").status_code == 200
    fall_silent(app, waiting[0], 10)
    maintenance.do_round()
    assert {alice.task(task)["status"] for task in waiting} == {"running"}
    fall_silent(app, waiting[1], 10)
    maintenance.do_round()
    assert alice.task(waiting[1])["error"]["type"] == "timeout"


SIGNS_OF_LIFE: dict[str, dict[str, Any]] = {
    "heartbeat": {"method": "POST", "path": "/logs", "json": {"logs": []}},
    "append": {"method": "POST", "path": "/logs", "json": {"logs": ["a line"]}},
    "report": {"method": "PATCH", "path": "", "json": {"output": {"done": 1}}},
    "report of nothing new": {"method": "PATCH", "path": "", "json": {"output": {}}},
}


def show_life(alice: ApiClient, task: dict[str, Any], sign: str) -> None:
    fields = SIGNS_OF_LIFE[sign]
    path = f"/task/{task['id']}{fields['path']}"
    assert alice.request(fields["method"], path, json=fields["json"]).status_code < 300


def test_heartbeat_keeps_a_task(app: Flask, alice: ApiClient, maintenance: Maintenance) -> None:
    tasks = {}
    for sign, timeout in product(SIGNS_OF_LIFE, (None, 60)):
        task = tasks[sign, timeout] = alice.start(claim=True, timeout=timeout)
        fall_silent(app, task, 2 * DAY)
        show_life(alice, task, sign)
    maintenance.do_round()
    assert {name: alice.task(task)["status"] for name, task in tasks.items()} == dict.fromkeys(
        tasks, "running"
    )


def test_silence_is_judged_by_one_clock_wherever_the_sign_of_life_was_taken(
    app: Flask, alice: ApiClient, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose own clock is two days behind the database's takes it."""
    set_clock(monkeypatch, -2 * DAY)
    started, task = alice.start(claim=True), alice.start()
    assert expect(alice.post("/agent/summarizer/claim"), 200)["id"] == task["id"]
    maintenance.do_round()
    assert [alice.task(running)["status"] for running in (started, task)] == ["running"] * 2
    for sign in SIGNS_OF_LIFE:
        fall_silent(app, task, 2 * DAY)
        show_life(alice, task, sign)
        maintenance.do_round()
        assert alice.task(task)["status"] == "running", sign


def test_finished_task_keeps_its_final_status(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    task = alice.start(claim=True)
    done = alice.report(task, status="complete")
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()
    assert alice.task(task) == done


def test_very_many_silent_tasks_are_all_ended_in_one_round(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    for timeout in (None, 60):
        task = alice.start(claim=True, timeout=timeout)
        fall_silent(app, task, 2 * DAY)
        copy_task(app, task, 64)
    maintenance.do_round()
    listed = expect(alice.get("/task?fields=error"), 200)
    assert [task["error"]["type"] for task in listed] == ["timeout"] * 130


# --- the callback ------------------------------------------------------------------------


def test_webhook_of_a_timeout_is_due_without_a_lease(
    app: Flask, alice: ApiClient, maintenance: Maintenance, receiver: Receiver
) -> None:
    task = alice.start(claim=True, callback=receiver.url)
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()
    (delivery,) = deliveries(app, task)
    assert (delivery.state, delivery.lease, delivery.leased_until) == ("pending", None, None)
    assert delivery.attempt_count == 0
    between = moment(delivery.next_attempt_at) - moment(alice.task(task)["finishedAt"])
    assert abs(between.total_seconds()) < 30


def test_several_loops_end_a_task_once_and_enqueue_one_webhook(
    app: Flask, app_with: Callable[..., Flask], alice: ApiClient, no_grace: None, receiver: Receiver
) -> None:
    tasks = [alice.start(claim=True, callback=receiver.url) for _ in range(20)]
    for task in tasks:
        fall_silent(app, task, 2 * DAY)
    apps = [app, *(app_with() for _ in range(3))]
    at_once([Maintenance(application).do_round for application in apps])
    assert [column(app, task, "version") for task in tasks] == [2] * len(tasks)
    assert [len(deliveries(app, task)) for task in tasks] == [1] * len(tasks)


def test_task_is_either_kept_by_its_heartbeat_or_ended(
    app: Flask, app_with: Callable[..., Flask], alice: ApiClient, no_grace: None
) -> None:
    """A heartbeat that comes in between wins; whatever it was answered, that holds."""
    other = app_with()
    tasks = [alice.start(claim=True) for _ in range(20)]
    for task in tasks:
        fall_silent(app, task, 2 * DAY)

    def live(task: dict[str, Any]) -> str:
        path = f"/task/{task['id']}/logs"
        answer = ApiClient(app, "alice", alice.key).post(path, json={"logs": []})
        assert answer.json is not None
        return str(answer.json["status"])

    def live_all() -> list[str]:
        return [live(task) for task in reversed(tasks)]

    def end() -> list[str]:
        Maintenance(other).do_round()
        return []

    statuses, _ = at_once([live_all, end])
    for task, status in zip(reversed(tasks), statuses, strict=True):
        now = alice.task(task)["status"]
        assert status == now == "error" or status == "running" == now


# --- the late report -----------------------------------------------------------------------


def test_late_report_replaces_the_webhook_that_is_still_owed(
    app: Flask, alice: ApiClient, maintenance: Maintenance, receiver: Receiver
) -> None:
    task = alice.start(claim=True, callback=receiver.url)
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()
    alice.append(task, "I was only slow")
    answer = alice.patch(f"/task/{task['id']}", json={"status": "complete", "output": {"sum": 15}})
    assert answer.headers["Callback-Status"] == "delivered"
    (webhook,) = receiver.wait_for(1)
    first, second = deliveries(app, task)
    assert (first.state, first.next_attempt_at, second.state) == ("cancelled", None, "delivered")
    assert webhook.headers["webhook-id"] == second.id
    done = alice.task(task)
    assert (done["status"], done["error"]) == ("complete", None)
    assert done["logs"] == ["I was only slow"]
    # A second late report is refused.
    problem(alice.patch(f"/task/{task['id']}", json={"status": "error"}), 409)
    maintenance.do_round()
    assert alice.task(task) == done


def test_late_line_does_not_bring_a_task_back(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    task = alice.start(claim=True)
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()
    ended = alice.task(task)
    assert alice.append(task, "late")["status"] == "error"
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()
    assert alice.task(task)["finishedAt"] == ended["finishedAt"]


# --- the service itself was away ---------------------------------------------------------


def test_nothing_is_ended_in_the_first_five_minutes(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    task = alice.start(claim=True)
    fall_silent(app, task, 1000 * DAY)
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    assert alice.task(task)["status"] == "running"
    clocks.go_on_with(maintenance, seconds=20)
    assert alice.task(task)["error"]["type"] == "timeout"


def test_absence_of_the_service_is_not_silence_of_a_task(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    maintenance = Maintenance(app)
    early, late = alice.start(claim=True), alice.start(claim=True)
    fall_silent(app, early, 2 * DAY)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=310)
    assert alice.task(early)["error"]["type"] == "timeout"
    # The machine sleeps.
    clocks.go_on(61)
    fall_silent(app, late, 2 * DAY)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    assert alice.task(late)["status"] == "running"
    clocks.go_on_with(maintenance, seconds=20)
    assert alice.task(late)["error"]["type"] == "timeout"


def test_background_process_alone_ends_nothing(
    app: Flask, alice: ApiClient, no_grace: None
) -> None:
    """While no process serves, agents cannot report."""
    task = alice.start(claim=True)
    fall_silent(app, task, 1000 * DAY)
    background = Maintenance(app, serves=False)
    rounds(background, 0.2)
    assert alice.task(task)["status"] == "running"
    Maintenance(app).do_round()
    assert alice.task(task)["status"] == "error"


def test_background_process_ends_no_task_while_no_process_serves(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    serve, background = Maintenance(app), Maintenance(app, serves=False)
    early, late = alice.start(claim=True), alice.start(claim=True)
    fall_silent(app, early, 2 * DAY)
    for loop in (serve, background):
        loop.do_round()
    clocks.go_on_with(serve, background, seconds=310)
    assert alice.task(early)["error"]["type"] == "timeout"
    # The background process continues, and a serving process starts after more than a minute.
    clocks.go_on_with(background, seconds=70)
    fall_silent(app, late, 2 * DAY)
    serve = Maintenance(app)
    serve.do_round()
    clocks.go_on_with(serve, background, seconds=290)
    assert alice.task(late)["status"] == "running"
    clocks.go_on_with(serve, background, seconds=20)
    assert alice.task(late)["error"]["type"] == "timeout"


def test_heartbeat_is_written_by_one_of_many(app: Flask, alice: ApiClient) -> None:
    def until() -> Any:
        with app.app_context(), reading() as connection:
            return connection.scalar(select(ServiceHeartbeat.until))

    Maintenance(app).do_round()
    first = until()
    Maintenance(app).do_round()
    assert first == until() is not None


# --- the index ---------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_silent_tasks_are_found_by_index(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    """However many are claimed: only those that are silent are looked at."""
    statements: list[Statement] = []
    with before_writes(app, lambda *statement: statements.append(statement)):
        maintenance.do_round()
    assert [
        plan_of(app, text, values)
        for text, values in statements
        if "FROM tasks" in text and "heartbeat" in text
    ] == [
        ["SEARCH tasks USING INDEX tasks_claimed_with_timeout (heartbeat_deadline<?)"],
        ["SEARCH tasks USING INDEX tasks_claimed (last_heartbeat_at<?)"],
    ]
