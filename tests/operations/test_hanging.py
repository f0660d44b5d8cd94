"""Hanging tasks: why one hangs, what ends that, who is notified, and the cost."""

import json
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.transactions import transaction
from tests.support.agent_machine import AgentMachine
from tests.support.api_client import ApiClient, RemoteClient, expect
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.crashing_service import CrashingService
from tests.support.deliveries import looping
from tests.support.internals import (
    before_writes,
    column,
    copy_task,
    plan_of,
    run_sql,
    set_columns,
)
from tests.support.maintenance import fall_silent
from tests.support.marks import one_database, only_postgresql
from tests.support.receiver import Receiver
from tests.support.waiting import until

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
Task = dict[str, Any]
ONE_MINUTE = {"maxDuration": 60}


@pytest.fixture
def maintenance(app: Flask, no_grace: None) -> Maintenance:
    maintenance = Maintenance(app)
    maintenance.do_round()
    return maintenance


@pytest.fixture
def hook(alice: ApiClient, receiver: Receiver) -> Task:
    """Alice's, which is notified of tasks that hang and that no longer hang."""
    body = {"target": receiver.url, "events": ["task.hangs", "task.recovered"]}
    return dict(expect(alice.post("/hook", json=body), 201))


def told(person: ApiClient, hook: Task) -> list[tuple[str, str]]:
    """The events that a hook is notified of, oldest first, each with its task."""
    rows = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return [(row["event"].removeprefix("task."), row["taskId"]) for row in reversed(rows)]


def messages(app: Flask, receiver: Receiver, count: int) -> list[Task]:
    """What the receiver got when it had got `count` messages."""
    with looping(app):
        return [json.loads(request.body) for request in receiver.wait_for(count)]


def hanging(person: ApiClient) -> list[str]:
    """The IDs of the tasks that hang, as the list says it."""
    return [task["id"] for task in expect(person.get("/task?hanging=true"), 200)]


def attention(person: ApiClient) -> list[Task]:
    items = expect(person.get("/attention"), 200)
    return [item for item in items if item["kind"] == "hanging"]


def ask(person: ApiClient, task: Task) -> Task:
    path = f"/task/{task['id']}/question"
    return dict(expect(person.post(path, json={"message": "Go on?"}), 201))


def decline(person: ApiClient, task: Task, question: Task) -> None:
    path = f"/task/{task['id']}/question/{question['id']}/answer"
    expect(person.post(path, json={"action": "decline"}), 200)


def run(person: ApiClient, seconds: float, agent_id: str = "summarizer", **end: Any) -> Task:
    """A task that took this long, as its agent measured it."""
    task = person.start(agent_id, claim=True)
    return person.report(task, **{"status": "complete", "seconds": seconds, **end})


# --- why -------------------------------------------------------------------------------------


def test_task_that_runs_longer_than_its_maximum_hangs(
    app: Flask,
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    hook: Task,
    receiver: Receiver,
) -> None:
    alice.register(expect={"maxDuration": 600})
    task = alice.start(claim=True)
    before = alice.get(f"/task/{task['id']}").headers["ETag"]
    # It prints all the time, and its client's heartbeats come.
    for _ in range(11):
        assert alice.task(task)["hangingSince"] is None
        clocks.go_on_with(maintenance, seconds=50)
        alice.append(task, "a line")
    clocks.go_on_with(maintenance, seconds=100)
    now = alice.task(task)
    assert clock.moved(task["claimedAt"], 600) <= now["hangingSince"] <= clock.now()
    assert alice.get(f"/task/{task['id']}").headers["ETag"] != before
    assert hanging(alice) == [task["id"]]
    (item,) = attention(alice)
    assert (item["agentId"], item["taskId"]) == ("summarizer", task["id"])
    assert item["since"] == now["hangingSince"]
    assert item["text"].startswith("Runs for 10 min ")
    assert item["text"].endswith(" s, longer than its maximum of 10 min")
    # Lines do not end this, and there is one notification.
    alice.append(task, "a line")
    clocks.go_on_with(maintenance, seconds=200)
    assert alice.task(task)["hangingSince"] == now["hangingSince"]
    assert told(alice, hook) == [("hangs", task["id"])]
    (message,) = messages(app, receiver, 1)
    assert message["type"] == "task.hangs"
    data = message["data"]
    assert data.keys() == {"agent", "task", "hangingSince", "reason", "url"}
    assert (data["agent"]["id"], data["task"]["id"]) == ("summarizer", task["id"])
    assert data["hangingSince"] == data["task"]["hangingSince"] == now["hangingSince"]
    assert data["reason"] == item["text"].replace("Runs", "runs")


def test_task_that_runs_when_the_next_is_overdue_hangs_and_its_agent_is_not_late(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: Task
) -> None:
    alice.register(expect={"every": 600, "grace": 120})
    task = alice.start(claim=True)
    due_at = clock.moved(task["createdAt"], 600)
    clocks.go_on_with(maintenance, seconds=700)
    assert hanging(alice) == []
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [task["id"]]
    (item,) = attention(alice)
    expected = f"The next run was due at {due_at[11:16]} UTC, and this run has not ended"
    assert item["text"] == expected
    health = expect(alice.get("/agent/summarizer?expand=health"), 200)["health"]
    assert health["lateSince"] is None
    # Neither a line nor a later run ends that it hangs.
    alice.append(task, "a line")
    other = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=300)
    assert hanging(alice) == [task["id"]]
    alice.report(other, status="complete")
    assert told(alice, hook) == [("hangs", task["id"])]


def test_task_that_was_claimed_after_the_missed_run_does_not_hang(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance
) -> None:
    alice.register(expect={"every": 60, "grace": 0})
    alice.start()
    clocks.go_on_with(maintenance, seconds=300)
    expect(alice.post("/agent/summarizer/claim"), 200)
    clocks.go_on_with(maintenance, seconds=300)
    assert hanging(alice) == []


def test_silent_task_that_runs_much_longer_than_usual_hangs(
    app: Flask,
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    hook: Task,
    receiver: Receiver,
) -> None:
    for seconds in (100, 300, 900):
        run(alice, seconds)
    # Neither counts.
    run(alice, 5_000, status="error")
    silent, lively, asking = (alice.start(claim=True) for _ in range(3))
    for _ in range(2):
        run(alice, 1, "translator")
    unknown = alice.start("translator", claim=True)
    ask(alice, asking)
    for _ in range(17):
        assert hanging(alice) == []
        clocks.go_on_with(maintenance, seconds=50)
        # A heartbeat does not count.
        alice.append(silent)
        alice.append(lively, "still here")
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [silent["id"]]
    clocks.go_on_with(maintenance, seconds=200)
    (item,) = attention(alice)
    assert item["text"].startswith("Runs for 15 min ")
    assert ", 3 times as long as usual; no line for 15 min " in item["text"]
    since = alice.task(silent)["hangingSince"]
    alice.append(silent, "on we go")
    assert alice.task(silent)["hangingSince"] == since
    clocks.go_on_with(maintenance, seconds=20)
    assert alice.task(silent)["hangingSince"] is None
    assert alice.task(unknown)["hangingSince"] is None
    assert attention(alice) == []
    assert told(alice, hook) == [("hangs", silent["id"]), ("recovered", silent["id"])]
    hangs, recovered = sorted(messages(app, receiver, 2), key=itemgetter("type"))
    data = recovered["data"]
    assert data.keys() == {"agent", "task", "hangingSince", "reason", "seconds", "url"}
    assert data["hangingSince"] == hangs["data"]["hangingSince"] == since
    assert data["reason"] == hangs["data"]["reason"]
    assert data["seconds"] == pytest.approx(
        clock.milliseconds(recovered["timestamp"]) / 1_000 - clock.milliseconds(since) / 1_000
    )
    # It can hang again, with another notification.
    clocks.go_on_with(maintenance, seconds=700)
    of_silent = [name for name, task_id in told(alice, hook) if task_id == silent["id"]]
    assert of_silent == ["hangs", "recovered", "hangs"]


@pytest.mark.parametrize("change", [{"progress": 0.5}, {"note": "12 of 34"}, {"output": {"a": 1}}])
def test_progress_note_and_report_count_as_a_line(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, change: Task
) -> None:
    for _ in range(3):
        run(alice, 10)
    task = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=500)
    alice.report(task, **change)
    clocks.go_on_with(maintenance, seconds=300)
    assert hanging(alice) == []
    clocks.go_on_with(maintenance, seconds=400)
    assert hanging(alice) == [task["id"]]
    alice.report(task, note="on we go")
    maintenance.do_round()
    assert hanging(alice) == []


def test_maximum_alone_counts_where_it_is_given(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance
) -> None:
    """However long it is silent, and whether or not the next run is overdue."""
    alice.register(expect={"every": 60, "grace": 0, "maxDuration": 3_600})
    for _ in range(3):
        run(alice, 1)
    task = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=3_550)
    assert hanging(alice) == []
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [task["id"]]


def test_waiting_and_ended_tasks_do_not_hang(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance
) -> None:
    alice.register(expect=ONE_MINUTE)
    alice.start()
    run(alice, 1)
    clocks.go_on_with(maintenance, seconds=600)
    assert hanging(alice) == []
    # It counts from the claim.
    expect(alice.post("/agent/summarizer/claim"), 200)
    clocks.go_on_with(maintenance, seconds=50)
    assert hanging(alice) == []
    clocks.go_on_with(maintenance, seconds=50)
    assert len(hanging(alice)) == 1


# --- what ends it ----------------------------------------------------------------------------


def test_open_question_ends_it_until_it_is_answered(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: Task
) -> None:
    alice.register(expect=ONE_MINUTE)
    task = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=100)
    question = ask(alice, task)
    clocks.go_on_with(maintenance, seconds=1_500)
    assert hanging(alice) == []
    assert told(alice, hook) == [("hangs", task["id"]), ("recovered", task["id"])]
    decline(alice, task, question)
    clocks.go_on_with(maintenance, seconds=20)
    assert hanging(alice) == [task["id"]]


def test_changed_expectation_is_checked_in_the_next_round(
    alice: ApiClient, bob: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: Task
) -> None:
    alice.register(expect={"maxDuration": 86_400})
    bob.register(expect={"maxDuration": 86_400})
    task, _ = alice.start(claim=True), bob.start(claim=True)
    clocks.go_on_with(maintenance, seconds=300)
    for expectation, hangs in (
        ({"maxDuration": 200}, True),
        # Still too long: without another notification.
        ({"maxDuration": 100}, True),
        ({"maxDuration": 7_200}, False),
        (ONE_MINUTE, True),
        (None, False),
    ):
        alice.register(expect=expectation)
        maintenance.do_round()
        assert hanging(alice) == [task["id"]] * hangs
    assert hanging(bob) == []
    assert [name for name, _ in told(alice, hook)] == ["hangs", "recovered"] * 2
    alice.register(expect={"every": 60, "grace": 0})
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [task["id"]]
    alice.register(name="Sums up")
    maintenance.do_round()
    assert hanging(alice) == [task["id"]]
    # It counts from now.
    alice.register(expect={"every": 3_600})
    maintenance.do_round()
    assert hanging(alice) == []


def time_out(app: Flask, maintenance: Maintenance, task: Task) -> None:
    fall_silent(app, task, 2 * DAY)
    maintenance.do_round()


def test_each_end_of_a_task_ends_it_in_the_same_transaction(
    app: Flask,
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    hook: Task,
    subtests: pytest.Subtests,
) -> None:
    alice.register(expect=ONE_MINUTE)
    ends: dict[str, Callable[[Task], Any]] = {
        "complete": lambda task: alice.report(task, status="complete"),
        "failed": lambda task: alice.report(task, status="error", error={"message": "Disk"}),
        "cancelled": lambda task: expect(alice.post(f"/task/{task['id']}/cancel"), 200),
        "one of many": lambda task: expect(
            alice.post("/task/bulk", json={"action": "cancel", "taskIds": [task["id"]]}), 200
        ),
        "timeout": partial(time_out, app, maintenance),
    }
    count = 0
    for name, end in ends.items():
        with subtests.test(name):
            task = alice.start(claim=True)
            clocks.go_on_with(maintenance, seconds=100)
            assert hanging(alice) == [task["id"]]
            ended = end(task)
            if ended and "hangingSince" in ended:
                assert ended["hangingSince"] is None
            now = alice.task(task)
            assert (now["hangingSince"], now["finishedAt"] is None) == (None, False)
            assert column(app, task, "hanging_reason") is None
            maintenance.do_round()
            count += 2
            events = told(alice, hook)
            assert len(events) == count
            assert events[-2:] == [("hangs", task["id"]), ("recovered", task["id"])]
    # A late report tells nothing more.
    alice.report(task, status="complete")
    assert len(told(alice, hook)) == count


def test_people_are_told_of_an_end_once(
    app: Flask, alice: ApiClient, clocks: Clocks, maintenance: Maintenance, receiver: Receiver
) -> None:
    """A task that hung and failed is reported as failed."""
    alice.register(expect=ONE_MINUTE)
    for name in ("slack", "topic"):
        fields = {"format": "ntfy"} if name == "topic" else {}
        expect(alice.post("/hook", json={"target": f"{receiver.url}{name}", **fields}), 201)
    task = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=100)
    alice.report(task, status="error", error={"message": "Disk full"})
    texts = [str(message) for message in messages(app, receiver, 2)]
    assert all("summarizer failed" in text and "hangs" not in text for text in texts)
    assert all("Disk full" in text for text in texts)


# --- notifications ---------------------------------------------------------------------------


def test_hooks_are_told_by_default_and_people_read_why(
    app: Flask, alice: ApiClient, clocks: Clocks, maintenance: Maintenance, receiver: Receiver
) -> None:
    alice.register(expect=ONE_MINUTE)
    target = {"target": f"{receiver.url}topic", "format": "ntfy"}
    hook = expect(alice.post("/hook", json=target), 201)
    assert {"task.hangs", "task.recovered"} < set(hook["events"])
    task = alice.start(claim=True, name="nightly")
    clocks.go_on_with(maintenance, seconds=100)
    (message,) = messages(app, receiver, 1)
    assert (message["title"], message["priority"]) == ("summarizer hangs", 4)
    first, second = message["message"].split("\n")
    assert first.startswith("runs for 1 min ")
    assert first.endswith(" s, longer than its maximum of 1 min")
    assert second.startswith("Task nightly, ")
    assert message["click"].endswith(f"/tasks/{task['id']}")


def test_several_loops_tell_of_each_task_once(
    app: Flask, alice: ApiClient, clocks: Clocks, no_grace: None, hook: Task
) -> None:
    alice.register(expect=ONE_MINUTE)
    tasks = [alice.start(claim=True) for _ in range(20)]
    loops = [Maintenance(app) for _ in range(4)]
    for loop in loops:
        loop.do_round()
    clocks.go_on_with(*loops, seconds=50)
    clocks.go_on(12)
    at_once([loop.do_round for loop in loops])
    for loop in loops:
        loop.do_round()
    assert sorted(told(alice, hook)) == sorted(("hangs", task["id"]) for task in tasks)


def test_more_than_a_batch_hangs_in_one_round(
    app: Flask, alice: ApiClient, clocks: Clocks, maintenance: Maintenance
) -> None:
    alice.register(expect=ONE_MINUTE)
    copies = copy_task(app, alice.start(claim=True), 120)
    clocks.go_on_with(maintenance, seconds=100)
    assert len(hanging(alice)) == len(copies) + 1
    assert len(attention(alice)) == 100


def test_stuck_program_reaches_a_phone_although_its_client_sends_heartbeats(
    app: Flask, alice: ApiClient, receiver: Receiver, tmp_path: Path
) -> None:
    target = {"target": f"{receiver.url}topic", "format": "ntfy"}
    expect(alice.post("/hook", json=target), 201)
    for _ in range(3):
        run(alice, 2, "poll")
    service = CrashingService(app, tmp_path, lease=1.0)
    service.start()
    machine = AgentMachine(tmp_path / "home", RemoteClient(service.url, alice.key))
    machine.beat_often()
    try:
        script = ("sh", "-c", "echo reading; sleep 9000")
        command = machine.spawn("run", "--agent", "poll", "--", *script)
        task = until(lambda: expect(alice.get("/task?status=running"), 200))[0]
        until(lambda: alice.task(task)["logs"] == ["reading"])
        times = {"claimed_at": clock.now(-3_000), "updated_at": clock.now(-2_400)}
        set_columns(app, task, **times, hang_check_at=clock.now(-1))
        before = column(app, task, "last_heartbeat_at")
        until(lambda: column(app, task, "last_heartbeat_at") > before)
        (request,) = receiver.wait_for(1)
        message = json.loads(request.body)
        assert message["title"] == "poll hangs"
        reason = message["message"].split("\n")[0]
        assert reason.startswith("runs for 50 min ")
        assert " times as long as usual; no line for 40 min " in reason
        command.end()
        assert alice.task(task)["hangingSince"] is None
    finally:
        machine.kill_left()
        service.kill()


# --- whom nobody blames ----------------------------------------------------------------------


def test_task_of_before_an_absence_is_not_blamed_for_five_minutes(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    """A task that was claimed afterwards could report all the time, so it needs no grace."""
    alice.register(expect=ONE_MINUTE)
    before = alice.start(claim=True)
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on(1)
    after = alice.start(claim=True)
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [after["id"]]
    clocks.go_on_with(maintenance, seconds=100)
    assert hanging(alice) == [after["id"]]
    clocks.go_on_with(maintenance, seconds=150)
    assert set(hanging(alice)) == {before["id"], after["id"]}
    # The machine sleeps. A task that no longer hangs is reported at once.
    expect(alice.post(f"/task/{before['id']}/cancel"), 200)
    asleep = alice.start(claim=True)
    clocks.go_on(7_200)
    ask(alice, after)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=200)
    assert hanging(alice) == []
    clocks.go_on_with(maintenance, seconds=150)
    assert hanging(alice) == [asleep["id"]]


def test_background_process_alone_blames_no_task(
    app: Flask, alice: ApiClient, clocks: Clocks, no_grace: None
) -> None:
    alice.register(expect=ONE_MINUTE)
    alice.start(claim=True)
    background = Maintenance(app, serves=False)
    clocks.go_on_with(background, seconds=200)
    assert hanging(alice) == []
    Maintenance(app).do_round()
    background.do_round()
    assert len(hanging(alice)) == 1


def test_clocks_that_are_set_back_delay_it_by_minutes(
    app: Flask, alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: Task
) -> None:
    for _ in range(3):
        run(alice, 10)
    alice.register("long", expect={"maxDuration": 600})
    silent, claimed = alice.start(claim=True), alice.start("long", claim=True)
    clocks.go_on_with(maintenance, seconds=500)
    other = alice.start("long", claim=True)
    clocks.go_on_with(maintenance, seconds=200)
    assert set(hanging(alice)) == {silent["id"], claimed["id"]}
    clocks.set_machine(-DAY)
    clocks.set_database(-DAY)
    maintenance.do_round()
    maintenance.do_round()
    alice.append(silent, "on we go")
    clocks.go_on_with(maintenance, seconds=20)
    assert hanging(alice) == [claimed["id"]]
    assert alice.task(claimed)["hangingSince"] <= clock.now()
    clocks.go_on_with(maintenance, seconds=700)
    assert set(hanging(alice)) == {silent["id"], claimed["id"], other["id"]}


# --- what it costs ---------------------------------------------------------------------------


def test_lines_and_reports_pay_nothing(app: Flask, alice: ApiClient) -> None:
    task = alice.start(claim=True)
    statements: list[str] = []
    with before_writes(app, lambda text, _: statements.append(text)):
        alice.append(task, "a line")
        alice.append(task)
        alice.report(task, note="half")
    assert [text for text in statements if "hang_check_at" in text] == []


def due_statement(app: Flask, maintenance: Maintenance) -> tuple[str, Any]:
    """The statement of a round that finds the tasks to check, and its parameters."""
    statements: list[tuple[str, Any]] = []
    with before_writes(app, lambda *statement: statements.append(statement)):
        maintenance.do_round()
    (statement,) = [
        statement
        for statement in statements
        if statement[0].startswith("SELECT tasks.id") and "hang_check_at" in statement[0]
    ]
    return statement


@one_database
def test_tasks_to_check_are_found_by_index(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    text, values = due_statement(app, maintenance)
    expected = [
        "SEARCH tasks USING INDEX tasks_to_check (hang_check_at<?)",
        "SEARCH agents USING INDEX sqlite_autoindex_agents_1 (user_id=? AND id=?)",
    ]
    assert plan_of(app, text, values) == expected
    copy_task(app, alice.start(claim=True), 1_000)
    run_sql(app, "ANALYZE")
    assert plan_of(app, text, values) == expected


@only_postgresql
def test_tasks_to_check_are_found_by_index_on_postgresql(
    app: Flask, alice: ApiClient, maintenance: Maintenance
) -> None:
    copy_task(app, alice.start(claim=True), 1_000)
    run_sql(app, "ANALYZE")
    text, values = due_statement(app, maintenance)
    with app.app_context(), transaction() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {text}", values).scalars())
    assert "using tasks_to_check on tasks" in plan
