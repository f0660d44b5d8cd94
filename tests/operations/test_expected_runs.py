"""Expected runs: when the next one is due, who is late without it, and who runs again."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from taskservice.database.transactions import transaction
from taskservice.services.expected_runs import due_times
from tests.support.api_client import ApiClient, expect, problem
from tests.support.clocks import Clocks
from tests.support.concurrency import at_once
from tests.support.deliveries import looping
from tests.support.internals import before_writes, copy_task, moment, plan_of, run_sql
from tests.support.marks import one_database, only_postgresql
from tests.support.receiver import Receiver

HOUR, DAY = 3_600.0, 86_400.0
EVERY = {"every": 60, "grace": 0}


@pytest.fixture
def hook(alice: ApiClient, receiver: Receiver) -> dict[str, Any]:
    """Alice's, which is notified of agents that are late and that run again."""
    body = {"target": receiver.url, "events": ["agent.late", "agent.back"]}
    return dict(expect(alice.post("/hook", json=body), 201))


def told(person: ApiClient, hook: dict[str, Any]) -> list[tuple[str, str]]:
    """The events that a hook is notified of, oldest first, each with its agent."""
    rows = expect(person.get(f"/hook/{hook['id']}/deliveries"), 200)
    return [(row["event"], row["agentId"]) for row in reversed(rows)]


def messages(app: Flask, receiver: Receiver, count: int) -> list[dict[str, Any]]:
    """What the receiver got when it had got `count` messages."""
    with looping(app):
        return [json.loads(request.body) for request in receiver.wait_for(count)]


def health(person: ApiClient, agent_id: str = "summarizer") -> dict[str, Any]:
    return dict(expect(person.get(f"/agent/{agent_id}?expand=health"), 200)["health"])


def due(person: ApiClient, agent_id: str = "summarizer") -> Any:
    return health(person, agent_id)["dueAt"]


def after(time: str, seconds: float) -> str:
    return clock.moved(time, seconds)


# --- what is expected ----------------------------------------------------------------------

VALID: dict[str, dict[str, Any]] = {
    "the shortest time": {"every": 60},
    "the longest times": {"every": 366 * 86_400, "grace": 30 * 86_400},
    "no grace": {"every": 60, "grace": 0},
    "cron": {"cron": "0 2 * * 1-5"},
    "cron in a zone": {"cron": "*/5 8-18 * JAN MON", "timeZone": "Europe/Berlin"},
    "cron that comes in leap years only": {"cron": "0 0 29 2 *"},
    "a maximum alone": {"maxDuration": 60},
    "the longest maximum": {"every": 90_000, "maxDuration": 30 * 86_400},
    "cron and a maximum": {"cron": "0 2 * * *", "maxDuration": 7_200},
}
INVALID: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "every"),
    "grace alone": ({"grace": 60}, "every"),
    "both": ({"every": 60, "cron": "* * * * *"}, "every"),
    "too often": ({"every": 59}, "every"),
    "too rarely": ({"every": 366 * 86_400 + 1}, "every"),
    "half a second": ({"every": 60.5}, "every"),
    "a text": ({"every": "60"}, "every"),
    "negative grace": ({"every": 60, "grace": -1}, "grace"),
    "too much grace": ({"every": 60, "grace": 30 * 86_400 + 1}, "grace"),
    "30 February": ({"cron": "0 0 30 2 *"}, "cron"),
    "a last Monday on the 21st": ({"cron": "* * */20 * 1L"}, "cron"),
    "six fields": ({"cron": "0 0 2 * * *"}, "cron"),
    "four fields": ({"cron": "2 * * *"}, "cron"),
    "a word": ({"cron": "@daily"}, "cron"),
    "minute 60": ({"cron": "60 * * * *"}, "cron"),
    "an empty cron": ({"cron": ""}, "cron"),
    "a long cron": ({"cron": "*" * 201}, "cron"),
    "zone without cron": ({"every": 60, "timeZone": "UTC"}, "timeZone"),
    "unknown zone": ({"cron": "* * * * *", "timeZone": "Europe/Bonn"}, "timeZone"),
    "zone as a path": ({"cron": "* * * * *", "timeZone": "../UTC"}, "timeZone"),
    "folder of zones": ({"cron": "* * * * *", "timeZone": "Europe"}, "timeZone"),
    "an unknown field": ({"every": 60, "each": 1}, "each"),
    "too short a maximum": ({"maxDuration": 59}, "maxDuration"),
    "too long a maximum": ({"every": 60, "maxDuration": 30 * 86_400 + 1}, "maxDuration"),
    "a maximum as text": ({"maxDuration": "2h"}, "maxDuration"),
    "a maximum of null": ({"every": 60, "maxDuration": None}, "maxDuration"),
    "grace of a maximum": ({"maxDuration": 60, "grace": 60}, "grace"),
    "zone of a maximum": ({"maxDuration": 60, "timeZone": "UTC"}, "timeZone"),
}


def test_expected_runs_are_stored_with_their_defaults(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    for name, sent in VALID.items():
        with subtests.test(name):
            zone = {"timeZone": "UTC"} if "cron" in sent else {}
            grace = {"grace": 3_600} if sent.keys() & {"every", "cron"} else {}
            stored = zone | grace | sent
            assert alice.register(expect=sent)["expect"] == stored
            assert expect(alice.get("/agent/summarizer"), 200)["expect"] == stored


def test_wrong_expectation_is_422_with_its_field(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    agent = alice.register(expect={"every": 60})
    for name, (sent, field) in INVALID.items():
        with subtests.test(name):
            answer = problem(alice.put("/agent/summarizer", json={"expect": sent}), 422)
            assert list(answer["errors"]["expect"]) == [field]
    for wrong in ("hourly", 60, [60]):
        answer = problem(alice.put("/agent/summarizer", json={"expect": wrong}), 422)
        assert list(answer["errors"]) == ["expect"]
    assert expect(alice.get("/agent/summarizer"), 200) == agent


def test_null_ends_the_expectation_and_leaving_it_out_keeps_it(alice: ApiClient) -> None:
    assert alice.register()["expect"] is None
    assert health(alice) | {"dueAt": None, "lateSince": None} == health(alice)
    alice.register(expect={"every": 60})
    assert alice.register(name="Sums up")["expect"] == {"every": 60, "grace": 3600}
    assert due(alice) is not None
    assert alice.register(expect=None)["expect"] is None
    assert due(alice) is None
    assert alice.start()["status"] == "running"
    assert due(alice) is None


# --- when the next run is due --------------------------------------------------------------


def test_next_run_counts_from_the_expectation_and_then_from_each_start(alice: ApiClient) -> None:
    before = clock.now()
    alice.register(expect={"every": 90_000})
    assert after(before, 90_000) <= due(alice) <= after(clock.now(), 90_000)
    claimed = alice.start(claim=True)
    assert due(alice) == after(claimed["createdAt"], 90_000)
    alice.report(claimed, status="complete")
    rerun = expect(alice.post(f"/task/{claimed['id']}/rerun"), 201)
    assert due(alice) == after(rerun["createdAt"], 90_000)
    waiting = alice.start()
    assert due(alice) == after(waiting["createdAt"], 90_000)
    # A claim is not a start.
    expect(alice.post("/agent/summarizer/claim"), 200)
    assert due(alice) == after(waiting["createdAt"], 90_000)


def test_repeated_start_counts_once(alice: ApiClient) -> None:
    alice.register(expect={"every": 60})
    headers = {"Idempotency-Key": "night 1"}
    body = {"agentId": "summarizer"}
    task = expect(alice.post("/task", json=body, headers=headers), 201)
    expect(alice.post("/task", json=body, headers=headers), 201)
    assert due(alice) == after(task["createdAt"], 60)


def test_start_that_is_refused_counts_nothing(alice: ApiClient) -> None:
    schema = {"type": "object", "required": ["pages"]}
    alice.register(expect={"every": 60}, inputSchema=schema)
    before = due(alice)
    problem(alice.post("/task", json={"agentId": "summarizer", "input": {}}), 422)
    assert due(alice) == before
    task = alice.start(input={"pages": 1})
    assert due(alice) == after(task["createdAt"], 60)


def test_cron_is_due_at_its_next_time_in_its_zone(alice: ApiClient) -> None:
    zone = ZoneInfo("Asia/Kolkata")
    alice.register(expect={"cron": "30 4 * * *", "timeZone": "Asia/Kolkata"})
    task = alice.start()
    at = moment(due(alice)).astimezone(zone)
    assert (at.hour, at.minute, at.second) == (4, 30, 0)
    assert timedelta() < at - moment(task["createdAt"]) <= timedelta(days=1)


# In Berlin clocks are set forward at 02:00 on 28 March 2027, and back at 03:00 on 31 October.
CRON: dict[str, tuple[str, str, str, list[str]]] = {
    "a time that the night leaves out comes right after the gap": (
        "30 2 * * *", "Europe/Berlin", "2027-03-27T12:00", ["2027-03-28T01:00", "2027-03-29T00:30"]
    ),
    "a time that the night has twice comes once": (
        "30 2 * * *", "Europe/Berlin", "2027-10-30T12:00", ["2027-10-31T00:30", "2027-11-01T01:30"]
    ),
    "after the first of the two, the next is tomorrow's": (
        "45 2 * * *", "Europe/Berlin", "2027-10-31T01:30", ["2027-11-01T01:45"]
    ),
    "each hour comes each hour, whatever the clocks say": (
        "*/60 * * * *", "Europe/Berlin", "2027-10-30T23:30",
        [f"2027-10-31T0{hour}:00" for hour in range(4)],
    ),
    "an hour that is left out": (
        "*/60 * * * *", "Europe/Berlin", "2027-03-28T00:30",
        ["2027-03-28T01:00", "2027-03-28T02:00"],
    ),
    "a day without a midnight": (
        "0 0 * * *", "Africa/Cairo", "2027-04-29T12:00", ["2027-04-29T22:00", "2027-04-30T21:00"]
    ),
    "29 February": (
        "0 0 29 2 *", "UTC", "2027-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]
    ),
    "at a time itself, the next one is due": (
        "0 2 * * 1-5", "UTC", "2027-01-01T02:00", ["2027-01-04T02:00"]
    ),
    "the last Friday of the month": (
        "0 18 * * 5L", "America/New_York", "2027-01-01T00:00",
        ["2027-01-29T23:00", "2027-02-26T23:00"],
    ),
}  # fmt: skip


def test_times_of_cron_follow_the_clocks_of_their_zone(subtests: pytest.Subtests) -> None:
    for name, (cron, zone, since, times) in CRON.items():
        with subtests.test(name):
            expected = {"cron": cron, "timeZone": zone}
            calculated = due_times(expected, f"{since}:00.000Z", len(times))
            assert calculated == [f"{time}:00.000Z" for time in times]
    weekly = {"cron": "0 2 * * 1-5", "timeZone": "UTC"}
    assert due_times(weekly, "2027-01-01T01:59:59.999Z", 1) == ["2027-01-01T02:00:00.000Z"]


# --- late, and back ------------------------------------------------------------------------


@pytest.fixture
def maintenance(app: Flask, no_grace: None) -> Maintenance:
    maintenance = Maintenance(app)
    maintenance.do_round()
    return maintenance


def test_agent_without_a_run_is_late_after_its_grace(
    app: Flask,
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    hook: dict[str, Any],
    receiver: Receiver,
) -> None:
    alice.register(expect={"every": 60, "grace": 60})
    due_at = due(alice)
    clocks.go_on_with(maintenance, seconds=100)
    assert health(alice)["lateSince"] is None
    clocks.go_on_with(maintenance, seconds=50)
    late = health(alice)
    assert late["dueAt"] == due_at
    assert after(due_at, 60) <= late["lateSince"] <= clock.now()
    clocks.go_on_with(maintenance, seconds=200)
    assert health(alice) == late
    assert told(alice, hook) == [("agent.late", "summarizer")]
    (message,) = messages(app, receiver, 1)
    data = message["data"]
    assert (data["agent"]["id"], data["dueAt"], "task" in data) == ("summarizer", due_at, False)


def test_hook_with_a_label_is_told_of_no_late_agent(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, receiver: Receiver
) -> None:
    fields = {"target": receiver.url, "events": ["agent.late"], "label": "env:prod"}
    labelled = expect(alice.post("/hook", json=fields), 201)
    alice.register(expect=EVERY)
    clocks.go_on_with(maintenance, seconds=100)
    assert health(alice)["lateSince"] is not None
    assert expect(alice.get(f"/hook/{labelled['id']}/deliveries"), 200) == []


def test_next_start_ends_lateness(
    app: Flask,
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    subtests: pytest.Subtests,
    hook: dict[str, Any],
    receiver: Receiver,
) -> None:
    """A rerun too; on time is a run that began in time, whenever its start was reported."""
    first = alice.start("first")
    starts: dict[str, tuple[Any, bool]] = {
        "unclaimed": (lambda _: alice.start(), False),
        "claimed": (lambda _: alice.start(claim=True), False),
        "rerun": (lambda _: expect(alice.post(f"/task/{first['id']}/rerun"), 201), False),
        "claimed in time": (
            lambda due_at: alice.start(claim=True, claimedAt=after(due_at, 59)),
            True,
        ),
        "claimed too late": (
            lambda due_at: alice.start(claim=True, claimedAt=after(due_at, 60)),
            False,
        ),
    }
    sent = 0
    for name, (start, on_time) in starts.items():
        agent_id = "first" if name == "rerun" else "summarizer"
        with subtests.test(name):
            alice.register(agent_id, expect={"every": 60, "grace": 60})
            due_at = due(alice, agent_id)
            clocks.go_on_with(maintenance, seconds=150)
            task = start(due_at)
            now = health(alice, agent_id)
            assert (now["dueAt"], now["lateSince"]) == (after(task["createdAt"], 60), None)
            assert told(alice, hook)[-2:] == [("agent.late", agent_id), ("agent.back", agent_id)]
            sent += 2
            (back,) = (
                message["data"]
                for message in messages(app, receiver, sent)[-2:]
                if message["type"] == "agent.back"
            )
            assert (back["task"]["id"], back["dueAt"]) == (task["id"], due_at)
            assert back["onTime"] is on_time
            if task["claimedAt"] and task["status"] == "running":
                alice.report(task, status="complete")
            alice.register(agent_id, expect=None)


def test_start_in_time_says_nothing(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: dict[str, Any]
) -> None:
    alice.register(expect=EVERY | {"grace": 60})
    for _ in range(3):
        clocks.go_on_with(maintenance, seconds=100)
        alice.start()
    assert told(alice, hook) == []


def test_setting_the_expectation_ends_lateness_and_says_nothing(
    alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: dict[str, Any]
) -> None:
    alice.register(expect=EVERY)
    clocks.go_on_with(maintenance, seconds=100)
    assert health(alice)["lateSince"] is not None
    alice.register(description="Still late.")
    assert health(alice)["lateSince"] is not None
    before = clock.now()
    alice.register(expect=EVERY)
    assert health(alice)["lateSince"] is None
    assert due(alice) >= after(before, 60)
    alice.start()
    assert [name for name, _ in told(alice, hook)] == ["agent.late"]


def test_agent_that_works_on_a_claimed_task_is_not_late(
    alice: ApiClient, bob: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: dict[str, Any]
) -> None:
    alice.register(expect=EVERY)
    task = alice.start(claim=True)
    # Tasks of others, and tasks that only wait, do not count.
    bob.start(claim=True)
    alice.start("another", claim=True)
    clocks.go_on_with(maintenance, seconds=200)
    assert health(alice)["lateSince"] is None
    alice.report(task, status="complete")
    maintenance.do_round()
    assert health(alice)["lateSince"] is not None
    alice.start()
    clocks.go_on_with(maintenance, seconds=100)
    assert [name for name, _ in told(alice, hook)] == ["agent.late", "agent.back", "agent.late"]


def test_agents_of_several_users_become_late_in_one_round(
    alice: ApiClient, bob: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: dict[str, Any]
) -> None:
    for person in (bob, alice):
        for number in range(60):
            person.register(f"agent-{number:02}", expect=EVERY)
            # Otherwise, on a slow machine, the loop would take these requests for a pause.
            if number % 10 == 0:
                maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=100)
    for person in (alice, bob):
        agents = expect(person.get("/agent?expand=health"), 200)
        assert len([agent for agent in agents if agent["health"]["lateSince"]]) == 60
    assert sorted(agent_id for _, agent_id in told(alice, hook)) == [
        f"agent-{number:02}" for number in range(60)
    ]


# --- at the same instant -------------------------------------------------------------------


def test_two_nodes_record_one_lateness(
    app_with: Callable[..., Flask],
    alice: ApiClient,
    clocks: Clocks,
    maintenance: Maintenance,
    hook: dict[str, Any],
) -> None:
    for number in range(20):
        alice.register(f"agent-{number}", expect=EVERY)
    other = app_with()
    loops = [maintenance, Maintenance(other)]
    for loop in loops:
        loop.do_round()
    clocks.go_on_with(*loops, seconds=50)
    clocks.go_on(12)
    at_once([loop.do_round for loop in loops])
    assert len(told(alice, hook)) == 20


def test_several_starts_at_once_bring_an_agent_back_once(
    app: Flask, alice: ApiClient, clocks: Clocks, maintenance: Maintenance, hook: dict[str, Any]
) -> None:
    alice.register(expect=EVERY)
    clocks.go_on_with(maintenance, seconds=100)
    people = [ApiClient(app, "alice", alice.key) for _ in range(4)]
    for one in people:
        one._registered.add("summarizer")
    tasks = at_once([one.start for one in people])
    assert [name for name, _ in told(alice, hook)] == ["agent.late", "agent.back"]
    assert due(alice) in [after(task["createdAt"], 60) for task in tasks]


# --- whom nobody blames --------------------------------------------------------------------


def test_nobody_is_late_in_the_first_five_minutes_of_the_service(
    alice: ApiClient, app: Flask, clocks: Clocks
) -> None:
    alice.register(expect=EVERY)
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    assert health(alice)["lateSince"] is None
    clocks.go_on_with(maintenance, seconds=20)
    assert health(alice)["lateSince"] is not None


def test_absence_of_the_service_and_jumping_clocks_blame_nobody(
    alice: ApiClient, app: Flask, clocks: Clocks, hook: dict[str, Any]
) -> None:
    maintenance = Maintenance(app)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=310)
    alice.register("asleep", expect={"every": 60, "grace": 30})
    # The machine sleeps; the run comes with the first minutes afterwards.
    clocks.go_on(7_200)
    maintenance.do_round()
    clocks.go_on_with(maintenance, seconds=290)
    alice.start("asleep")
    assert told(alice, hook) == []
    alice.register("asleep", expect=None)
    clocks.go_on_with(maintenance, seconds=100)
    alice.register("jump", expect={"every": 7_200, "grace": 0})
    for days in (40, 0):
        clocks.set_database(days * DAY)
        maintenance.do_round()
        clocks.set_machine(days * DAY)
        maintenance.do_round()
    assert told(alice, hook) == []


def test_background_process_alone_calls_nobody_late(
    app: Flask, alice: ApiClient, clocks: Clocks, no_grace: None
) -> None:
    """While no process serves, no start can be reported."""
    alice.register(expect=EVERY)
    background = Maintenance(app, serves=False)
    clocks.go_on_with(background, seconds=200)
    assert health(alice)["lateSince"] is None
    Maintenance(app).do_round()
    background.do_round()
    assert health(alice)["lateSince"] is not None


# --- what it costs -------------------------------------------------------------------------


def test_agents_without_expected_runs_pay_nothing(app: Flask, alice: ApiClient) -> None:
    alice.register()
    statements: list[str] = []
    with before_writes(app, lambda text, _: statements.append(text)):
        alice.start()
    assert [text for text in statements if "due_at" in text or "UPDATE" in text] == []


@one_database
def test_late_agents_are_found_by_index(app: Flask, alice: ApiClient, no_grace: None) -> None:
    """However many agents and tasks there are."""
    statements: list[tuple[str, Any]] = []
    with before_writes(app, lambda *statement: statements.append(statement)):
        Maintenance(app).do_round()
    ((text, values),) = [
        statement
        for statement in statements
        if "FROM agents" in statement[0] and "late_at" in statement[0]
    ]
    assert plan_of(app, text, values) == [
        "SEARCH agents USING INDEX agents_due (late_at<?)",
        "CORRELATED SCALAR SUBQUERY 1",
        "SEARCH tasks USING INDEX tasks_claimed_by_agent "
        "(user_id=? AND agent_id=? AND claimed_at>?)",
    ]


@only_postgresql
def test_late_agents_are_found_by_index_on_postgresql(
    app: Flask, alice: ApiClient, no_grace: None
) -> None:
    # Which index is the best of a few rows depends on the rows of other tests.
    alice.register("counter")
    run_sql(
        app,
        "INSERT INTO agents SELECT (jsonb_populate_record(agents, jsonb_build_object('id', n))).* "
        "FROM agents, generate_series(1, 3000) AS n",
    )
    copy_task(app, alice.start("counter", claim=True), 1_000)
    run_sql(app, "ANALYZE")
    statements: list[tuple[str, Any]] = []
    with before_writes(app, lambda *statement: statements.append(statement)):
        Maintenance(app).do_round()
    ((text, values),) = [
        statement
        for statement in statements
        if "FROM agents" in statement[0] and "late_at" in statement[0]
    ]
    with app.app_context(), transaction() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {text}", values).scalars())
    assert "Index Scan using agents_due on agents" in plan
    assert "using tasks_claimed_by_agent on tasks" in plan


# --- a start that is reported late ---------------------------------------------------------


def test_claimed_start_can_say_when_the_work_began(alice: ApiClient) -> None:
    began = clock.now(-5 * HOUR)
    for person, claim in ((alice, True), (alice.agent_key(), None)):
        task = person.start(claimedAt=began, claim=claim)
        assert (task["claimedAt"], alice.task(task)["claimedAt"]) == (began, began)
        assert moment(task["createdAt"]) - moment(began) >= timedelta(hours=5)
    with_offset = datetime.now(UTC).astimezone(ZoneInfo("Asia/Kolkata")) - timedelta(hours=1)
    task = alice.start(claim=True, claimedAt=with_offset.isoformat())
    assert moment(task["claimedAt"]) <= with_offset < moment(after(task["claimedAt"], 0.001))
    assert alice.start(claim=True, claimedAt=None)["claimedAt"] is not None
    oldest = alice.start(claim=True, claimedAt=clock.now(-30 * DAY + 60))
    alice.report(oldest, status="complete")
    longest = health(alice)["recent"][-1]["seconds"]
    assert longest == pytest.approx(30 * DAY, abs=120)


def test_wrong_time_of_a_claim_is_422(alice: ApiClient, subtests: pytest.Subtests) -> None:
    alice.register()
    wrong: dict[str, dict[str, Any]] = {
        "not claimed": {"claimedAt": clock.now(-60)},
        "claimed by nobody": {"claimedAt": clock.now(-60), "claim": False},
        "in the future": {"claimedAt": clock.now(60), "claim": True},
        "over 30 days ago": {"claimedAt": clock.now(-30 * DAY - 1), "claim": True},
        "no time": {"claimedAt": "yesterday", "claim": True},
    }
    for name, fields in wrong.items():
        with subtests.test(name):
            answer = problem(alice.post("/task", json={"agentId": "summarizer", **fields}), 422)
            assert list(answer["errors"]) == ["claimedAt"]
    assert expect(alice.get("/task"), 200) == []


def test_lines_of_a_late_start_keep_their_times(alice: ApiClient) -> None:
    began = clock.now(-HOUR)
    task = alice.start(claim=True, claimedAt=began)
    alice.append(task, "too early", "in time", at=[after(began, -1), after(began, 60)])
    log = expect(alice.get(f"/task/{task['id']}/logs?times=true"), 200)
    assert log["times"] == [began, after(began, 60)]
    # A claim after the start moves no line.
    waiting = alice.start()
    expect(alice.post("/agent/summarizer/claim"), 200)
    alice.append(waiting, "early", at=waiting["createdAt"])
    log = expect(alice.get(f"/task/{waiting['id']}/logs?times=true"), 200)
    assert log["times"] == [waiting["createdAt"]]
