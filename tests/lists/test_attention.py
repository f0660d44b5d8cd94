"""What a person should look at now: each kind, its order, and what ends it."""

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.models import Agent, Hook
from taskservice.database.transactions import reading, transaction
from taskservice.services.deliveries import set_hook_state
from taskservice.terms import ATTENTION
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.deliveries import columns, finish, looping, make_due, the_delivery
from tests.support.internals import copy_task, hang, plan_of, reads, run_sql
from tests.support.marks import one_database, only_postgresql
from tests.support.receiver import Receiver, answer
from tests.support.waiting import until

MINUTE, DAY = 60.0, 86_400.0
Item = dict[str, Any]


def items(person: ApiClient, kind: str | None = None) -> list[Item]:
    """What needs attention, all of it or of one kind."""
    entries: list[Item] = expect(person.get("/attention"), 200)
    return [item for item in entries if kind in (None, item["kind"])]


def kinds(person: ApiClient) -> list[str]:
    return [item["kind"] for item in items(person)]


def task_ids(person: ApiClient, kind: str) -> list[str]:
    return [item["taskId"] for item in items(person, kind)]


def ids(*tasks: Item) -> list[str]:
    return [task["id"] for task in tasks]


def ask(person: ApiClient, task: Item, message: str = "Deploy?", **fields: Any) -> Item:
    path = f"/task/{task['id']}/question"
    return dict(expect(person.post(path, json={"message": message, **fields}), 201))


def run(person: ApiClient, agent_id: str = "summarizer", status: str = "complete") -> Item:
    return person.report(person.start(agent_id, claim=True), status=status)


def claim(person: ApiClient, agent_id: str = "summarizer") -> Item | None:
    response = person.post(f"/agent/{agent_id}/claim")
    return dict(expect(response, 200)) if response.status_code == 200 else None


def set_agent(app: Flask, agent_id: str, **values: Any) -> None:
    with app.app_context(), transaction() as connection:
        connection.execute(update(Agent).where(Agent.id == agent_id).values(values))


def add_hook(person: ApiClient, **fields: Any) -> Item:
    target = {"target": "https://ntfy.example/tasks", "name": "phone"}
    return dict(expect(person.post("/hook", json=target | fields), 201))


def set_hook(person: ApiClient, hook: Item, state: str) -> None:
    expect(person.patch(f"/hook/{hook['id']}", json={"state": state}), 200)


def test_nothing_needs_attention_at_first(alice: ApiClient) -> None:
    assert items(alice) == []
    run(alice)
    alice.start()
    assert items(alice) == []


# --- each kind ---------------------------------------------------------------------------


def test_question_is_listed_until_it_is_closed(alice: ApiClient, clocks: Clocks) -> None:
    first, second = alice.start(claim=True), alice.start(claim=True)
    later = ask(alice, second, "Which\nbranch?")
    asked = [ask(alice, first, "x" * 300), ask(alice, first, timeout=60)]
    assert [item["taskId"] for item in items(alice)] == ids(second, first, first)
    item = items(alice)[0]
    assert item == {
        "kind": "question", "agentId": "summarizer", "taskId": second["id"],
        "since": later["askedAt"], "text": "Which branch?",
    }  # fmt: skip
    assert items(alice)[1]["text"] == "x" * 199 + "…"
    path = f"/task/{second['id']}/question/{later['id']}/answer"
    expect(alice.post(path, json={"action": "decline"}), 200)
    assert [item["since"] for item in items(alice)] == [entry["askedAt"] for entry in asked]
    # Before maintenance stores it.
    clocks.go_on(61)
    assert [entry["since"] for entry in items(alice)] == [asked[0]["askedAt"]]


def test_agent_is_broken_from_its_first_failure_to_its_next_success(alice: ApiClient) -> None:
    run(alice)
    first = run(alice, status="error")
    (item,) = items(alice)
    assert item == {
        "kind": "broken", "agentId": "summarizer", "taskId": first["id"],
        "since": first["finishedAt"], "text": "The last task failed",
    }  # fmt: skip
    for _ in range(3):
        last = run(alice, status="error")
    expect(alice.post(f"/task/{alice.start()['id']}/cancel"), 200)
    (item,) = items(alice)
    assert (item["taskId"], item["since"]) == (last["id"], first["finishedAt"])
    assert item["text"] == "Failed 4 times in a row"
    run(alice)
    assert items(alice) == []


def test_late_agent_is_listed(alice: ApiClient, app: Flask) -> None:
    alice.register()
    since = clock.now()
    set_agent(app, "summarizer", late_since=since)
    (item,) = items(alice)
    assert (item["kind"], item["agentId"], item["taskId"]) == ("late", "summarizer", None)
    assert item["since"] == since


def test_task_that_hangs_is_listed(alice: ApiClient, app: Flask) -> None:
    task, _ = alice.start(claim=True), alice.start(claim=True)
    hang(app, task)
    (item,) = items(alice)
    assert item == {
        "kind": "hanging", "agentId": "summarizer", "taskId": task["id"],
        "since": alice.task(task)["hangingSince"],
        "text": "Runs for 3 h, longer than its maximum of 1 h",
    }  # fmt: skip
    alice.report(task, status="complete")
    assert items(alice) == []


def test_waiting_task_needs_a_worker_until_one_asks(
    alice: ApiClient, app: Flask, clocks: Clocks
) -> None:
    oldest, *_ = (alice.start() for _ in range(2))
    other = alice.start("translator")
    clocks.go_on(9 * MINUTE)
    assert items(alice) == []
    clocks.go_on(2 * MINUTE)
    assert task_ids(alice, "no_worker") == ids(oldest, other)
    (item, _) = items(alice)
    assert item["since"] == oldest["createdAt"]
    assert item["text"] == "No worker has asked for a task of this agent yet"
    task = claim(alice, "translator")
    assert task
    Maintenance(app).do_round()
    assert task_ids(alice, "no_worker") == ids(oldest)
    alice.report(task, status="complete")
    waiting = alice.start("translator")
    clocks.go_on(3 * DAY)
    assert [item["text"] for item in items(alice, "no_worker")] == [
        "No worker has asked for a task of this agent yet",
        "No worker has asked for a task of this agent for 3 d",
    ]
    # An empty claim shows that there is a worker.
    for _ in range(3):
        claim(alice)
    Maintenance(app).do_round()
    assert task_ids(alice, "no_worker") == ids(waiting)


def test_worker_that_is_busy_is_not_missed(alice: ApiClient, clocks: Clocks) -> None:
    alice.start()
    alice.start()
    task = claim(alice)
    assert task
    clocks.go_on(20 * MINUTE)
    assert items(alice, "no_worker") == []
    alice.report(task, status="complete")
    assert len(items(alice, "no_worker")) == 1


def test_run_of_an_agent_is_not_a_worker(alice: ApiClient, clocks: Clocks) -> None:
    waiting = alice.start()
    run = alice.start(claim=True)
    clocks.go_on(20 * MINUTE)
    assert task_ids(alice, "no_worker") == ids(waiting)
    alice.report(run, status="complete")
    assert task_ids(alice, "no_worker") == ids(waiting)


def test_failed_callback_is_listed_for_a_week_unless_it_is_delivered(
    app: Flask, alice: ApiClient, clocks: Clocks, receiver: Receiver
) -> None:
    receiver.answer = answer(410)
    tasks = [alice.start(callback=receiver.url, claim=True) for _ in range(2)]
    assert [finish(alice, task) for task in tasks] == ["failed"] * 2
    assert task_ids(alice, "callback_failed") == ids(*tasks)
    item = items(alice)[0]
    assert item["since"] == alice.task(tasks[0])["finishedAt"]
    assert item["text"].startswith("The callback was not delivered: ")
    assert "410" in item["text"]
    expect(alice.post(f"/task/{tasks[0]['id']}/deliveries"), 202)
    assert task_ids(alice, "callback_failed") == ids(tasks[1])
    receiver.answer = answer(200)
    with looping(app):
        until(lambda: the_delivery(alice, tasks[0])["state"] == "delivered")
    assert task_ids(alice, "callback_failed") == ids(tasks[1])
    clocks.go_on(8 * DAY)
    assert items(alice) == []


def test_hook_that_is_off_is_listed(alice: ApiClient, app: Flask, receiver: Receiver) -> None:
    receiver.answer = answer(410)
    hook = add_hook(alice, target=receiver.url, events=["task.ended"])
    run(alice)
    with looping(app):
        (item,) = until(lambda: items(alice))
    assert (item["kind"], item["agentId"], item["taskId"]) == ("hook_off", None, None)
    assert item["since"] == hook["createdAt"]
    assert item["text"].startswith("The hook phone is off: ")
    # Its deliveries do not count as callbacks.
    set_hook(alice, hook, "active")
    assert items(alice) == []
    set_hook(alice, hook, "off")
    assert items(alice) == []


def test_hook_that_fails_is_listed_within_three_minutes(
    alice: ApiClient, app: Flask, clocks: Clocks, receiver: Receiver
) -> None:
    receiver.answer = answer(503)
    hook = add_hook(alice, target=receiver.url, events=["task.ended"])
    run(alice)
    for number in (1, 2):
        make_due(app)
        with looping(app):
            receiver.wait_for(number)
            until(lambda: columns(app, "lease") == [(None,)])
    assert items(alice) == []
    clocks.go_on(2 * MINUTE + 5)
    (item,) = items(alice)
    assert (item["kind"], item["agentId"], item["taskId"]) == ("hook_failing", None, None)
    failing = expect(alice.get(f"/hook/{hook['id']}"), 200)
    assert item["since"] == failing["failingSince"]
    assert item["text"] == f"The hook phone is failing: {failing['reason']}"
    set_hook(alice, hook, "off")
    assert items(alice) == []


def test_old_backup_is_listed_until_the_next_one(alice: ApiClient, data_folder: Path) -> None:
    marker = data_folder / "last_backup"
    made_at = make_backup_old(data_folder)
    (item,) = items(alice)
    assert item == {
        "kind": "backup_old", "agentId": None, "taskId": None,
        "since": clock.from_milliseconds(made_at * 1000), "text": "The last backup is 3 d old",
    }  # fmt: skip
    assert items(alice.read_key()) == [item]
    marker.touch()
    assert items(alice) == []
    # As the nightly backup leaves it when no backup has succeeded.
    os.utime(marker, (0, 0))
    (item,) = items(alice)
    assert item["text"] == "No backup has succeeded yet"
    assert item["since"] > clock.now(-DAY)


def make_backup_old(data: Path) -> int:
    """Let the last backup be three days old; returns its time in seconds since 1970."""
    made_at = int(time.time() - 3 * DAY)
    (data / "last_backup").touch()
    os.utime(data / "last_backup", (made_at, made_at))
    return made_at


# --- all of them -------------------------------------------------------------------------


@pytest.fixture
def troubled(
    alice: ApiClient, app: Flask, clocks: Clocks, receiver: Receiver
) -> Callable[[ApiClient], None]:
    """Make one item of each kind for a user."""

    def trouble(person: ApiClient) -> None:
        receiver.answer = answer(410)
        finish(person, person.start("calls", callback=receiver.url, claim=True))
        hang(app, person.start("hangs", claim=True))
        person.start("waits")
        clocks.go_on(11 * MINUTE)
        run(person, "breaks", status="error")
        ask(person, person.start("asks", claim=True))
        user_id = expect(person.get("/user"), 200)["id"]
        person.register("is-late")
        hook, failing = (add_hook(person, agentId="waits") for _ in range(2))
        with app.app_context(), transaction() as connection:
            late = update(Agent).where(Agent.user_id == user_id, Agent.id == "is-late")
            connection.execute(late.values(late_since=clock.now()))
            set_hook_state(connection, hook["id"], "off", "The receiver is gone.")
            failures = {"failed_since": clock.now(-3 * MINUTE), "attempt_count": 2}
            this = update(Hook).where(Hook.id == failing["id"])
            connection.execute(this.values(failures | {"last_error": "The receiver is gone."}))

    return trouble


def test_kinds_come_in_the_order_of_their_urgency(
    alice: ApiClient, bob: ApiClient, troubled: Callable[[ApiClient], None], data_folder: Path
) -> None:
    troubled(alice)
    assert items(bob) == []
    make_backup_old(data_folder)
    assert kinds(alice) == [
        "question", "broken", "late", "hanging", "no_worker", "callback_failed", "hook_failing",
        "hook_off", "backup_old",
    ]  # fmt: skip
    # It belongs to nobody.
    assert kinds(bob) == ["backup_old"]
    assert kinds(alice.agent_key("waits")) == ["no_worker"]


def test_agent_key_gets_what_concerns_its_agent(
    alice: ApiClient, troubled: Callable[[ApiClient], None]
) -> None:
    troubled(alice)
    for item in items(alice):
        agent_id = item["agentId"]
        visible = items(alice.agent_key(agent_id))
        # It may read neither deliveries nor hooks.
        hidden = item["kind"] in ("callback_failed", "hook_failing", "hook_off")
        assert (item in visible) != hidden
        assert {entry["agentId"] for entry in visible} <= {agent_id}


@one_database
def test_at_most_100_are_listed_oldest_first(alice: ApiClient, app: Flask) -> None:
    task = alice.start(claim=True)
    hang(app, task)
    copy_task(app, task, 60)
    for _ in range(8):
        task = alice.start(claim=True)
        for _ in range(8):
            ask(alice, task)
    listed = items(alice)
    assert [item["kind"] for item in listed] == ["question"] * 64 + ["hanging"] * 36
    for before, after in pairwise(listed):
        assert before["since"] <= after["since"] or before["kind"] != after["kind"]


def test_of_many_questions_the_oldest_are_listed(alice: ApiClient, app: Flask) -> None:
    oldest_task = alice.start(claim=True)
    younger = [{"id": task_id} for task_id in copy_task(app, oldest_task, 100)]
    for task in younger:
        ask(alice, task)
    ask(alice, oldest_task)
    assert sorted(task_ids(alice, "question")) == sorted(ids(*younger))


def test_of_many_late_agents_the_oldest_are_listed(alice: ApiClient, app: Flask) -> None:
    now = clock.now()
    for number in range(101):
        alice.register(f"agent-{number}")
    with app.app_context(), transaction() as connection:
        for number in range(101):
            times = {
                "late_since": clock.moved(now, -MINUTE * (number + 1)),
                # They became well in another order than they became late.
                "state_since": clock.moved(now, -DAY - MINUTE * (101 - number)),
            }
            late = update(Agent).where(Agent.id == f"agent-{number}")
            connection.execute(late.values(state="ok", **times))
    agent_ids = [item["agentId"] for item in items(alice, "late")]
    assert agent_ids == [f"agent-{number}" for number in range(100, 0, -1)]


def test_reading_attention_writes_nothing(alice: ApiClient, app: Flask) -> None:
    alice.start()
    assert all(text.startswith("SELECT") for text, _ in reads(app, lambda: items(alice)))


@one_database
def test_each_kind_is_read_from_an_index(
    alice: ApiClient, app: Flask, troubled: Callable[[ApiClient], None]
) -> None:
    troubled(alice)
    plans = []
    for statement, parameters in reads(app, lambda: items(alice)):
        plans += plan_of(app, statement, parameters)
    # A subquery that is read row by row, and the IDs of tasks whose logs are read.
    assert {step for step in plans if step.startswith("SCAN")} <= {
        "SCAN CONSTANT ROW",
        "SCAN anon_1",
        "SCAN json_each VIRTUAL TABLE INDEX 1:",
    }
    assert "CO-ROUTINE anon_1" in plans
    for index in (
        "tasks_asking", "agents_in_trouble", "tasks_hanging", "tasks_unclaimed",
        "deliveries_failed", "hooks_user_id_created_at_id",
    ):  # fmt: skip
        assert any(f" {index} " in step for step in plans), (index, plans)


@only_postgresql
def test_no_kind_reads_all_tasks_on_postgresql(
    alice: ApiClient, app: Flask, troubled: Callable[[ApiClient], None]
) -> None:
    troubled(alice)
    copy_task(app, run(alice), 4_000)
    # To find any one of so many, the database may think that a scan is soon done.
    for task in (alice.start(), alice.start(claim=True)):
        copy_task(app, task, 1_000)
    run_sql(app, "ANALYZE")
    plans = []
    for statement, parameters in reads(app, lambda: items(alice)):
        with app.app_context(), reading() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            plans.append("\n".join(rows.scalars()))
    assert len(plans) >= len(ATTENTION)
    assert not [plan for plan in plans if "Seq Scan on tasks" in plan]
    for index in ("tasks_asking", "tasks_claimed_by_agent", "tasks_hanging", "tasks_unclaimed"):
        assert any(f" {index} " in plan for plan in plans), (index, plans)
