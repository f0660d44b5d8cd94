"""Clocks that are set while the service runs: nothing is lost, ended or delayed."""

import sqlite3
from itertools import product
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.models import Delivery
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import database_time, reading, transaction
from taskservice.database.types import database_now
from taskservice.webhooks.retry_schedule import LONGEST_DELAY_SECONDS
from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.deliveries import change, finish, looping, the_delivery
from tests.support.internals import before_reads, moment, set_clock
from tests.support.maintenance import end, fall_silent, rounds
from tests.support.receiver import Receiver

DAY = 86_400.0


@pytest.fixture
def app(app: Flask) -> Flask:
    app.config |= {"RETENTION_DAYS": 30.0, "LOG_RETENTION_DAYS": 7.0}
    return app


def exists(person: ApiClient, task: dict[str, Any]) -> bool:
    return person.get(f"/task/{task['id']}").status_code == 200


def test_clock_that_jumps_removes_and_ends_nothing(
    app: Flask, alice: ApiClient, clocks: Clocks, subtests: pytest.Subtests
) -> None:
    for whose, days in product(("machine", "database", "both"), (40, -40)):
        with subtests.test(f"{whose} by {days} days"):
            maintenance = Maintenance(app)
            old, young, claimed = alice.start(), alice.start(), alice.start(claim=True)
            alice.append(young, "one")
            end(app, alice, old, days=31)
            end(app, alice, young, days=1)
            # The retention of the old one goes by the monotonic clock.
            maintenance.do_round()
            clocks.go_on_with(maintenance, seconds=310)
            problem(alice.get(f"/task/{old['id']}"), 404)
            before = alice.task(young), alice.task(claimed)
            for ahead in (days * DAY, 0.0):
                if whose != "database":
                    clocks.set_machine(ahead)
                if whose != "machine":
                    clocks.set_database(ahead)
                maintenance.do_round()
            assert (alice.task(young), alice.task(claimed)) == before


def test_nothing_is_removed_in_the_first_five_minutes(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    task = alice.start()
    alice.append(task, "one")
    end(app, alice, task, days=1000)
    before = alice.task(task)
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    assert alice.task(task) == before
    clocks.go_on_with(maintenance, seconds=20)
    assert not exists(alice, task)


def test_retention_goes_by_the_clock_of_the_database(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch, no_grace: None
) -> None:
    """A machine whose clock has been wrong all the time removes nothing of the others'."""
    task = alice.start()
    end(app, alice, task, days=1)
    set_clock(monkeypatch, 40 * DAY)
    Maintenance(app).do_round()
    assert alice.task(task)["status"] == "complete"


@pytest.mark.parametrize("days", [40, -40])
def test_end_of_a_task_is_told_by_the_clock_that_retention_goes_by(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch, no_grace: None, days: int
) -> None:
    """The machine's clock has been wrong all the time, and no other process knows by how much."""
    set_clock(monkeypatch, days * DAY)
    reported, cancelled, silent = alice.start(), alice.start(), alice.start(claim=True, timeout=60)
    alice.report(reported, status="complete")
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    fall_silent(app, silent, 61)
    for _ in range(2):
        Maintenance(app).do_round()
    with app.app_context():
        now = moment(database_time())
    for task in (reported, cancelled, silent):
        assert abs(now - moment(alice.task(task)["finishedAt"])).total_seconds() < 3_600


def test_gap_between_two_rounds_postpones_retention(
    app: Flask, alice: ApiClient, clocks: Clocks
) -> None:
    task = alice.start()
    end(app, alice, task, days=31)
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    clocks.go_on(61)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    assert exists(alice, task)


def test_failed_clock_reading_postpones_the_chores_that_need_it(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch, no_grace: None
) -> None:
    task = alice.start()
    end(app, alice, task, days=31)
    maintenance = Maintenance(app)
    with app.app_context():
        maintenance._clock.read_clocks()

    def refuse(*_call: Any) -> None:
        raise sqlite3.OperationalError("as if the database were away")

    with before_reads(app, refuse):
        maintenance.do_round()
    assert maintenance._clock.now is None
    assert exists(alice, task)


def test_timeout_restarts_if_its_start_is_in_the_future(
    app: Flask, alice: ApiClient, no_grace: None
) -> None:
    """A heartbeat received while the clock was ahead must not extend the wait."""
    tasks = [alice.start(claim=True), alice.start(claim=True, timeout=60)]
    for task in tasks:
        fall_silent(app, task, -40 * DAY)
    maintenance = Maintenance(app)
    maintenance.do_round()
    with app.app_context(), reading() as connection:
        ahead = TaskModel.last_heartbeat_at > database_now(60)
        assert connection.execute(TaskModel.__table__.select().where(ahead)).all() == []
    assert [alice.task(task)["status"] for task in tasks] == ["running", "running"]
    fall_silent(app, tasks[1], 61)
    maintenance.do_round()
    assert alice.task(tasks[1])["status"] == "error"


def test_what_began_while_the_clock_was_ahead_does_not_last_longer(
    app: Flask, alice: ApiClient, clocks: Clocks, no_grace: None
) -> None:
    expected = {"every": {"every": 3_600}, "cron": {"cron": "0 * * * *"}}
    for agent_id, expect_runs in expected.items():
        alice.register(agent_id, expect=expect_runs)
    for whose in (clocks.set_machine, clocks.set_database):
        whose(30 * DAY)
    for agent_id in expected:
        alice.start(agent_id)
    expect(alice.post("/agent/idle/claim"), 404)
    alice.register("idle")
    expect(alice.post("/agent/idle/claim"), 204)
    task = alice.start(claim=True)
    body = {"message": "Deploy?", "timeout": 3_600}
    question = expect(alice.post(f"/task/{task['id']}/question", json=body), 201)
    forever = expect(alice.post(f"/task/{task['id']}/question", json=body | {"timeout": 0}), 201)
    Maintenance(app).do_round()
    for whose in (clocks.set_machine, clocks.set_database):
        whose(0)
    Maintenance(app).do_round()

    def seconds(time: str) -> float:
        return (moment(time) - moment(clock.now())).total_seconds()

    agents = {
        agent["id"]: agent["health"] for agent in expect(alice.get("/agent?expand=health"), 200)
    }
    for agent_id in expected:
        assert 0 < seconds(agents[agent_id]["dueAt"]) <= 3_600
    assert seconds(agents["idle"]["workerSeenAt"]) < 60
    (key,) = expect(alice.get("/key"), 200)
    assert seconds(key["lastUsedAt"]) < 60
    question, forever = (
        expect(alice.get(f"/task/{task['id']}/question/{asked['id']}"), 200)
        for asked in (question, forever)
    )
    assert 3_000 < seconds(question["expiresAt"]) <= 3_600
    assert (forever["state"], forever["expiresAt"]) == ("open", None)
    assert alice.task(task)["questions"] == [question, forever]
    assert alice.task(task)["status"] == "running"


def test_clocks_that_are_set_back_a_day_spoil_no_order(
    app: Flask, alice: ApiClient, receiver: Receiver, clocks: Clocks, no_grace: None
) -> None:
    maintenance = Maintenance(app)
    maintenance.do_round()
    before = [alice.start(name=f"before {number}", claim=True) for number in range(6)]
    alice.append(before[0], "one")
    first = expect_page(alice, "?limit=4")
    clocks.set_machine(-DAY)
    clocks.set_database(-DAY)
    after = [alice.start(name=f"after {number}", claim=True) for number in range(2)]
    alice.append(before[0], "two")
    maintenance.do_round()
    # A page continues where it was: nothing is left out, and nothing comes twice.
    second = expect_page(alice, first.headers["Link"].partition(">")[0].lstrip("<"))
    listed = [task["id"] for task in [*first.json, *second.json]]
    assert [task_id for task_id in listed if task_id in ids(before)] == ids(before)[::-1]
    assert len(set(listed)) == len(listed)
    assert ids([*before, *after]) == sorted(ids([*before, *after]))
    log = expect(alice.get(f"/task/{before[0]['id']}/logs?times=true"), 200)
    assert log["logs"] == ["one", "two"]
    assert min(log["times"]) >= before[0]["createdAt"]
    assert {task["status"] for task in expect(alice.get("/task"), 200)} == {"running"}
    assert finish(alice, alice.start(callback=receiver.url)) == "delivered"


def expect_page(person: ApiClient, query: str) -> Any:
    page = person.get(f"/task{query}")
    expect(page, 200)
    return page


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    return [str(task["id"]) for task in tasks]


# --- deliveries --------------------------------------------------------------------------


def test_delivery_scheduled_while_the_clock_was_ahead_is_sent(
    app: Flask, alice: ApiClient, receiver: Receiver
) -> None:
    receiver.answer = play.answer(500)
    far, near = alice.start(callback=receiver.url), alice.start(callback=receiver.url)
    for task in (far, near):
        assert finish(alice, task) == "pending"
    receiver.answer = play.answer(200)
    change(app, next_attempt_at=database_now(LONGEST_DELAY_SECONDS))
    with app.app_context(), transaction() as connection:
        later = update(Delivery).where(Delivery.task_id == far["id"])
        connection.execute(later.values(next_attempt_at=database_now(40 * DAY)))
    with looping(app):
        Maintenance(app).do_round()
        rounds(Maintenance(app), 30, lambda: the_delivery(alice, far)["state"] == "delivered")
    assert the_delivery(alice, far)["state"] == "delivered"
    assert the_delivery(alice, near)["state"] == "pending"
