"""Muted agents: what people and programs get during a mute, and what people get at its end."""

import json
from datetime import datetime
from typing import Any

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from tests.support.api_client import ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.deliveries import columns, looping
from tests.support.internals import before_writes, plan_of
from tests.support.marks import one_database
from tests.support.receiver import Receiver
from tests.support.waiting import until

HOUR, DAY = 3_600.0, 86_400.0
AGENT = "summarizer"


def add_hook(person: ApiClient, **fields: Any) -> dict[str, Any]:
    return dict(expect(person.post("/hook", json=fields), 201))


@pytest.fixture
def phone(alice: ApiClient, receiver: Receiver) -> dict[str, Any]:
    """A hook for people."""
    return add_hook(alice, target=f"{receiver.url}phone", format="ntfy")


@pytest.fixture
def program(alice: ApiClient, receiver: Receiver) -> dict[str, Any]:
    """A hook for a program."""
    return add_hook(alice, target=f"{receiver.url}program", format="standard")


@pytest.fixture
def maintenance(app: Flask, no_grace: None) -> Maintenance:
    maintenance = Maintenance(app)
    maintenance.do_round()
    return maintenance


def told(person: ApiClient, hook: dict[str, Any]) -> list[str]:
    """The events that a hook is notified of, oldest first, without those that were cancelled."""
    rows = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return [row["event"] for row in reversed(rows) if row["state"] != "cancelled"]


def mute(person: ApiClient, agent_id: str = AGENT, seconds: float = HOUR) -> dict[str, Any]:
    return person.register(agent_id, mutedUntil=clock.now(seconds))


def unmute(person: ApiClient, agent_id: str = AGENT) -> None:
    person.register(agent_id, mutedUntil=None)


def run(person: ApiClient, status: str = "complete", agent_id: str = AGENT) -> dict[str, Any]:
    return person.report(person.start(agent_id, claim=True), status=status)


def attention(person: ApiClient) -> list[tuple[str, str, str]]:
    items = expect(person.get("/attention"), 200)
    return [(item["kind"], item["agentId"], item["text"]) for item in items]


# --- who may, until when ---------------------------------------------------------------------


def test_mute_is_a_field_of_the_agent(alice: ApiClient) -> None:
    agent = alice.register()
    assert (agent["mutedUntil"], agent["mutedBy"]) == (None, None)
    end = clock.now(HOUR)
    ann = alice.with_key("ann")
    assert ann.register(mutedUntil=end) == agent | {"mutedUntil": end, "mutedBy": "ann"}
    assert alice.register(name="Sums up")["mutedUntil"] == end
    (listed,) = expect(alice.get("/agent"), 200)
    assert (listed["mutedUntil"], listed["mutedBy"]) == (end, "ann")
    assert alice.register(name=AGENT, mutedUntil=None) == agent


def test_new_agent_can_be_muted(alice: ApiClient) -> None:
    end = clock.now(HOUR)
    agent = expect(alice.put("/agent/new", json={"mutedUntil": end}), 201)
    assert agent["mutedUntil"] == end


def test_time_must_be_within_ninety_days(alice: ApiClient) -> None:
    agent = alice.register()
    for wrong in (clock.now(-1), clock.now(90 * DAY + 60), "8h", 3600):
        answer = problem(alice.put(f"/agent/{AGENT}", json={"mutedUntil": wrong}), 422)
        assert list(answer["errors"]) == ["mutedUntil"]
    assert expect(alice.get(f"/agent/{AGENT}"), 200) == agent
    assert mute(alice, seconds=90 * DAY - 60)["mutedUntil"]


def test_read_key_mutes_nothing_and_an_agent_key_its_agent(
    alice: ApiClient, bob: ApiClient
) -> None:
    body = {"mutedUntil": clock.now(HOUR)}
    agent = alice.agent_key()
    problem(alice.read_key().put(f"/agent/{AGENT}", json=body), 403)
    assert expect(agent.put(f"/agent/{AGENT}", json=body), 200)["mutedBy"] == "agent"
    problem(agent.put("/agent/translator", json=body), 404)
    assert bob.register()["mutedUntil"] is None


# --- what is not told ------------------------------------------------------------------------


def test_people_are_told_nothing_of_a_muted_agent_and_programs_all(
    alice: ApiClient, phone: dict[str, Any], program: dict[str, Any]
) -> None:
    run(alice)
    mute(alice)
    run(alice, "error")
    run(alice, "error", "translator")
    run(alice)
    assert told(alice, phone) == ["agent.broken"]
    assert told(alice, program) == ["agent.broken", "agent.broken", "agent.fixed"]


def test_questions_of_a_muted_agent_are_told(alice: ApiClient, phone: dict[str, Any]) -> None:
    mute(alice)
    task = alice.start(claim=True)
    expect(alice.post(f"/task/{task['id']}/question", json={"message": "Deploy?"}), 201)
    assert told(alice, phone) == ["task.asks"]


def test_what_waits_to_be_told_when_an_agent_is_muted_is_not_told(
    alice: ApiClient, phone: dict[str, Any], program: dict[str, Any]
) -> None:
    run(alice, "error")
    run(alice, "error", "translator")
    mute(alice)
    assert told(alice, phone) == ["agent.broken"]
    assert told(alice, program) == ["agent.broken", "agent.broken"]
    # It was not told before.
    unmute(alice)
    assert told(alice, phone) == ["agent.broken", "agent.broken"]


# --- notifications at the end of a mute ------------------------------------------------------


def test_what_began_during_a_mute_and_holds_is_told_once_when_it_ends(
    alice: ApiClient, phone: dict[str, Any], program: dict[str, Any]
) -> None:
    run(alice)
    mute(alice)
    for status in ("error", "complete", "error", "error"):
        run(alice, status)
    assert told(alice, phone) == []
    of_program = told(alice, program)
    unmute(alice)
    assert told(alice, phone) == ["agent.broken"]
    unmute(alice)
    run(alice, "error")
    assert told(alice, phone) == ["agent.broken"]
    assert told(alice, program) == of_program
    run(alice)
    assert told(alice, phone) == ["agent.broken", "agent.fixed"]


def test_what_was_told_before_a_mute_is_not_told_again(
    app: Flask, alice: ApiClient, phone: dict[str, Any], receiver: Receiver
) -> None:
    run(alice, "error")
    with looping(app):
        receiver.wait_for(1)
    mute(alice)
    run(alice, "error")
    unmute(alice)
    assert told(alice, phone) == ["agent.broken"]
    run(alice)
    assert told(alice, phone) == ["agent.broken", "agent.fixed"]


def test_failures_before_a_mute_count(alice: ApiClient, receiver: Receiver) -> None:
    hook = add_hook(alice, target=f"{receiver.url}phone", format="ntfy", after=2)
    run(alice, "error")
    mute(alice)
    run(alice, "error")
    assert told(alice, hook) == []
    unmute(alice)
    assert told(alice, hook) == ["agent.broken"]


def test_break_that_ended_during_a_mute_is_never_told(
    alice: ApiClient, phone: dict[str, Any]
) -> None:
    mute(alice)
    run(alice, "error")
    run(alice)
    unmute(alice)
    run(alice)
    assert told(alice, phone) == []


def test_mute_ends_by_itself(
    alice: ApiClient, phone: dict[str, Any], clocks: Clocks, maintenance: Maintenance
) -> None:
    mute(alice, seconds=300)
    run(alice, "error")
    clocks.go_on_with(maintenance, seconds=250)
    assert told(alice, phone) == []
    clocks.go_on_with(maintenance, seconds=100)
    assert told(alice, phone) == ["agent.broken"]
    agent = expect(alice.get(f"/agent/{AGENT}"), 200)
    assert (agent["mutedUntil"], agent["mutedBy"]) == (None, None)
    clocks.go_on_with(maintenance, seconds=100)
    assert told(alice, phone) == ["agent.broken"]


def test_agent_that_became_late_during_its_mute_is_told_when_it_ends(
    app: Flask,
    alice: ApiClient,
    phone: dict[str, Any],
    receiver: Receiver,
    clocks: Clocks,
    maintenance: Maintenance,
) -> None:
    for agent_id in ("backup", "told", "back"):
        alice.register(agent_id, expect={"every": 60, "grace": 0})
    mute(alice, "backup", 600)
    mute(alice, "back", 600)
    clocks.go_on_with(maintenance, seconds=150)
    with looping(app):
        receiver.wait_for(1)
        until(lambda: ("pending",) not in columns(app, "state"))
    mute(alice, "told", 300)
    alice.register("back", expect=None)
    clocks.go_on_with(maintenance, seconds=600)
    assert told(alice, phone) == ["agent.late", "agent.late"]
    rows = expect(alice.get(f"/hook/{phone['id']}/deliveries"), 200)
    assert [row["agentId"] for row in rows] == ["backup", "told"]


def test_task_that_hangs_since_its_agent_was_muted_is_told_when_the_mute_ends(
    alice: ApiClient, phone: dict[str, Any], clocks: Clocks, maintenance: Maintenance
) -> None:
    for agent_id in ("stuck", "recovered"):
        alice.register(agent_id, expect={"maxDuration": 60})
        mute(alice, agent_id)
    alice.start("stuck", claim=True)
    task = alice.start("recovered", claim=True)
    clocks.go_on_with(maintenance, seconds=150)
    alice.report(task, status="complete")
    assert told(alice, phone) == []
    for agent_id in ("stuck", "recovered"):
        unmute(alice, agent_id)
    assert told(alice, phone) == ["task.hangs"]


def test_agent_that_is_broken_and_late_is_told_as_both(
    app: Flask,
    alice: ApiClient,
    phone: dict[str, Any],
    receiver: Receiver,
    clocks: Clocks,
    maintenance: Maintenance,
) -> None:
    alice.register("backup", expect={"every": 60, "grace": 0})
    mute(alice, "backup")
    failed = run(alice, "error", "backup")
    clocks.go_on_with(maintenance, seconds=150)
    unmute(alice, "backup")
    assert told(alice, phone) == ["agent.broken", "agent.late"]
    with looping(app):
        (request,) = receiver.wait_for(1)
    message = json.loads(request.body)
    assert message["title"] == "backup failed; backup is late"
    ended = datetime.fromisoformat(failed["finishedAt"])
    assert f"{ended:%H:%M} UTC" in message["message"].splitlines()[0]


def test_longer_mute_still_counts_from_its_beginning(
    alice: ApiClient, phone: dict[str, Any], clocks: Clocks, maintenance: Maintenance
) -> None:
    alice.register("backup", expect={"every": 60, "grace": 0})
    mute(alice, "backup")
    clocks.go_on_with(maintenance, seconds=150)
    mute(alice, "backup", 2 * HOUR)
    unmute(alice, "backup")
    assert told(alice, phone) == ["agent.late"]


def test_mute_that_began_before_the_clock_was_set_back_lasts_as_long(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance
) -> None:
    clocks.set_machine(30 * DAY)
    clocks.set_database(30 * DAY)
    maintenance.do_round()
    mute(alice, seconds=600)
    clocks.set_machine(0)
    clocks.set_database(0)
    clocks.go_on_with(maintenance, seconds=100)
    end = expect(alice.get(f"/agent/{AGENT}"), 200)["mutedUntil"]
    assert clock.now(400) < end <= clock.now(600)


@one_database
def test_mutes_that_ended_are_found_by_index(app: Flask, no_grace: None) -> None:
    statements: list[tuple[str, Any]] = []
    maintenance = Maintenance(app)
    maintenance.do_round()
    with before_writes(app, lambda *statement: statements.append(statement)):
        maintenance.do_round()
    (statement,) = (pair for pair in statements if "muted_until <=" in pair[0])
    assert "INDEX agents_muted" in plan_of(app, *statement)[0]


# --- what needs attention --------------------------------------------------------------------


def test_muted_agents_are_the_last_that_need_attention(alice: ApiClient) -> None:
    run(alice, "error", "backup")
    run(alice, "error", "translator")
    alice.with_key("ann").register("backup", mutedUntil=clock.now(DAY))
    end = datetime.fromisoformat(expect(alice.get("/agent/backup"), 200)["mutedUntil"])
    task = alice.start("backup", claim=True)
    expect(alice.post(f"/task/{task['id']}/question", json={"message": "Deploy?"}), 201)
    question, broken, muted = attention(alice)
    assert question == ("question", "backup", "Deploy?")
    assert broken[:2] == ("broken", "translator")
    assert muted[:2] == ("broken", "backup")
    assert muted[2].endswith(f"; muted until {end.day} {end:%b %H:%M} UTC by ann")
