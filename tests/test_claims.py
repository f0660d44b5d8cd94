"""Claims: an agent gets its oldest unclaimed task, and no task is given twice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import update

from taskservice import resources
from taskservice.database import clock
from taskservice.database.models import ApiKey
from taskservice.database.models import Task as TaskModel
from taskservice.database.transactions import transaction
from taskservice.database.watcher import Watcher
from tests.support.api_client import ApiClient, expect, problem
from tests.support.concurrency import at_once
from tests.support.internals import column, end_for_silence, is_writer_waiting, moment
from tests.support.waiting import until

Task = dict[str, Any]


def claim(person: ApiClient, agent_id: str = "summarizer") -> Task:
    """The task that a claim gives."""
    return dict(expect(person.post(f"/agent/{agent_id}/claim"), 200))


def nothing_waits(person: ApiClient, agent_id: str = "summarizer") -> bool:
    response = person.post(f"/agent/{agent_id}/claim")
    return response.status_code == 204 and response.data == b""


def claim_by_key(person: ApiClient, key: str, agent_id: str = "summarizer") -> Any:
    return person.post(f"/agent/{agent_id}/claim", headers={"Idempotency-Key": key})


# --- what is taken -----------------------------------------------------------------------


def test_claim_takes_the_oldest_waiting_task(alice: ApiClient) -> None:
    started = [alice.start(name=f"task {number}", input={"n": number}) for number in range(3)]
    for task in started:
        taken = claim(alice)
        assert taken["claimedAt"] == taken["updatedAt"]
        assert moment(taken["claimedAt"]) >= moment(task["createdAt"])
        assert taken == task | {name: taken[name] for name in ("claimedAt", "updatedAt")}
        assert alice.task(task) == taken
    alice.start(claim=True)
    assert nothing_waits(alice)


def test_claim_goes_by_the_time_of_creation_and_not_by_the_id(alice: ApiClient, app: Flask) -> None:
    first, second = alice.start(), alice.start()
    older = update(TaskModel).where(TaskModel.id == second["id"])
    with app.app_context(), transaction() as connection:
        connection.execute(older.values(created_at="2020-01-01T00:00:00.000Z"))
    assert claim(alice)["id"] == second["id"]
    assert claim(alice)["id"] == first["id"]


def test_claim_starts_the_silence_clock(alice: ApiClient, app: Flask) -> None:
    task = alice.start()
    with app.app_context(), transaction() as connection:
        connection.execute(update(TaskModel).values(last_heartbeat_at="2020-01-01T00:00:00.000Z"))
    assert column(app, task, "last_heartbeat_at") == "2020-01-01T00:00:00.000Z"
    claimed_at = moment(claim(alice)["claimedAt"])
    assert abs(moment(column(app, task, "last_heartbeat_at")) - claimed_at) < timedelta(seconds=30)


def test_claim_returns_the_lines_that_came_before_it(alice: ApiClient) -> None:
    alice.append(alice.start(), "from the caller who started it", "two")
    taken = claim(alice)
    assert (taken["logs"], taken["logCount"]) == (["from the caller who started it", "two"], 2)


def test_finished_tasks_are_never_given(alice: ApiClient, app: Flask) -> None:
    complete, failed, cancelled, silent, waiting = (alice.start() for _ in range(5))
    alice.report(complete, status="complete")
    alice.report(failed, status="error")
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    end_for_silence(app, silent)
    before = [alice.task(task) for task in (complete, failed, cancelled, silent)]
    assert claim(alice)["id"] == waiting["id"]
    assert nothing_waits(alice)
    assert [alice.task(task) for task in (complete, failed, cancelled, silent)] == before


def test_task_that_was_worked_on_unclaimed_still_waits(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "a line")
    alice.report(task, output={"so far": 1}, status="running")
    taken = claim(alice)
    assert (taken["id"], taken["output"]) == (task["id"], {"so far": 1})


# --- whose -------------------------------------------------------------------------------


def test_claim_gives_tasks_of_its_agent_only(alice: ApiClient) -> None:
    other, expected = alice.start("translator"), alice.start("summarizer")
    assert claim(alice, "summarizer") == alice.task(expected)
    assert nothing_waits(alice, "summarizer")
    assert alice.task(other) == other


def test_claim_gives_nothing_of_another_user(alice: ApiClient, bob: ApiClient) -> None:
    hers = alice.start("summarizer")
    bob.register("summarizer")
    assert nothing_waits(bob)
    his = bob.start("summarizer")
    assert claim(bob)["id"] == his["id"]
    assert alice.task(hers) == hers


def test_agent_key_claims_for_its_own_agent(alice: ApiClient) -> None:
    task, agent = alice.start("summarizer"), alice.agent_key("summarizer")
    assert claim(agent)["id"] == task["id"]
    assert nothing_waits(agent)


def test_claim_for_an_agent_that_is_not_there_is_404(alice: ApiClient) -> None:
    for agent_id in ("nobody", "No-Agent", "x" * 65, "%00", "ü", "..", "a%2Fb"):
        problem(alice.post(f"/agent/{agent_id}/claim"), 404)


def test_claim_takes_no_parameters(alice: ApiClient) -> None:
    task = alice.start()
    problem(alice.post("/agent/summarizer/claim?wait=1"), 422)
    problem(alice.get("/agent/summarizer/claim"), 405)
    assert alice.task(task) == task
    # Some clients cannot help sending an empty object.
    assert expect(alice.post("/agent/summarizer/claim", json={}), 200)["id"] == task["id"]


# --- many at once ------------------------------------------------------------------------


def test_claims_in_one_process_share_nothing(alice: ApiClient, app: Flask) -> None:
    started = [alice.start()["id"] for _ in range(12)]
    people = [ApiClient(app, alice.name, alice.key) for _ in range(16)]
    answers = at_once([partial(one.post, "/agent/summarizer/claim") for one in people])
    assert sorted(answer.status_code for answer in answers) == [200] * 12 + [204] * 4
    assert sorted(expect(answer, 200)["id"] for answer in answers if answer.data) == sorted(started)


def test_concurrent_claim_and_cancel_agree(alice: ApiClient, app: Flask) -> None:
    """Whichever comes first: what was claimed has `claimedAt`, and is cancelled all the same."""
    agent, user = (ApiClient(app, alice.name, alice.key) for _ in range(2))
    for _ in range(10):
        task = alice.start()
        taken, cancelled = at_once(
            [
                partial(agent.post, "/agent/summarizer/claim"),
                partial(user.post, f"/task/{task['id']}/cancel"),
            ]
        )
        assert expect(cancelled, 200)["error"]["type"] == "cancelled"
        now = alice.task(task)
        assert (now["status"], now["error"]["type"]) == ("error", "cancelled")
        assert (taken.status_code == 200) == (now["claimedAt"] is not None)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_claim_waits_for_a_task_that_is_being_changed(alice: ApiClient, database_url: str) -> None:
    tasks = [alice.start(), alice.start()]
    with psycopg.connect(database_url) as other:
        # A report that changes the name holds the same lock.
        other.execute("SELECT 1 FROM tasks WHERE id = %s FOR UPDATE", [tasks[0]["id"]])
        # A claim takes the next task and does not wait.
        assert claim(alice)["id"] == tasks[1]["id"]
        timer = threading.Timer(0.3, other.rollback)
        timer.start()
        assert claim(alice)["id"] == tasks[0]["id"]
        timer.join()
    assert nothing_waits(alice)


# --- a key that is revoked ---------------------------------------------------------------


def test_key_that_is_revoked_while_its_claim_waits_to_write_gets_no_task(
    alice: ApiClient, app: Flask
) -> None:
    task = alice.start()
    agent = alice.agent_key()
    with ThreadPoolExecutor(1) as pool:
        with app.app_context(), transaction() as connection:
            connection.execute(
                update(ApiKey).where(ApiKey.agent_id.is_not(None)).values(revoked_at=clock.now())
            )
            claimed = pool.submit(agent.post, "/agent/summarizer/claim")
            # The claim has checked its key.
            until(lambda: is_writer_waiting(app))
        problem(claimed.result(), 401)
    assert alice.task(task) == task


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_key_that_is_revoked_while_its_claim_waits_for_a_task_gets_no_task(
    alice: ApiClient, database_url: str
) -> None:
    task = alice.start()
    agent = alice.agent_key()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM tasks FOR UPDATE")
        claimed = pool.submit(agent.post, "/agent/summarizer/claim")
        is_waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        with psycopg.connect(database_url, autocommit=True) as observer:
            until(lambda: observer.execute(is_waiting).fetchone())
        for key in expect(alice.get("/key"), 200):
            if key["agentId"] is not None:
                expect(alice.delete(f"/key/{key['id']}"), 200)
        other.rollback()
        problem(claimed.result(), 401)
    assert alice.task(task) == task


# --- a lost answer -----------------------------------------------------------------------


def test_claim_whose_answer_was_lost_gives_the_same_task_again(alice: ApiClient) -> None:
    first, second = alice.start(), alice.start()
    taken = claim_by_key(alice, "k")
    assert "Idempotency-Replayed" not in taken.headers
    alice.append(first, "a line")
    again = claim_by_key(alice, "k")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert expect(again, 200) == alice.task(first)
    assert expect(claim_by_key(alice, "other"), 200)["id"] == second["id"]
    alice.report(first, status="complete")
    assert expect(claim_by_key(alice, "k"), 200)["status"] == "complete"


def test_claim_that_found_nothing_may_be_repeated(alice: ApiClient) -> None:
    alice.register()
    assert claim_by_key(alice, "k").status_code == 204
    task = alice.start()
    assert expect(claim_by_key(alice, "k"), 200)["id"] == task["id"]


def test_repeated_claim_that_waits_gets_the_same_task(alice: ApiClient, app: Flask) -> None:
    """The first one's client has gone without a word, so that it waits as long as the second."""
    alice.register()
    headers = {"Idempotency-Key": "k", "Prefer": "wait=20"}
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(alice.post, "/agent/summarizer/claim", headers=headers)
        until(lambda: resources.find(Watcher, app)._watching)
        # The first claim, in another process, takes the task before the second one looks.
        task = alice.start(claim=True)
        of_task = update(TaskModel).where(TaskModel.id == task["id"])
        with app.app_context(), transaction() as connection:
            connection.execute(of_task.values(claim_key="k"))
        answer = again.result()
    assert expect(answer, 200)["id"] == task["id"]
    assert answer.headers["Idempotency-Replayed"] == "true"


def test_key_of_a_claim_is_its_users_and_its_agents(alice: ApiClient, bob: ApiClient) -> None:
    tasks = [alice.start(), alice.start("other"), bob.start()]
    taken = [
        claim_by_key(alice, "k"), claim_by_key(alice, "k", "other"), claim_by_key(bob, "k"),
    ]  # fmt: skip
    assert [expect(answer, 200)["id"] for answer in taken] == [task["id"] for task in tasks]
    # A start may use the same key too.
    headers = {"Idempotency-Key": "k"}
    started = alice.post("/task", json={"agentId": "summarizer"}, headers=headers)
    assert "Idempotency-Replayed" not in started.headers


def test_deletion_frees_the_key_of_a_claim(alice: ApiClient) -> None:
    first, second = alice.start(), alice.start()
    assert expect(claim_by_key(alice, "k"), 200)["id"] == first["id"]
    alice.delete(f"/task/{first['id']}")
    assert expect(claim_by_key(alice, "k"), 200)["id"] == second["id"]
