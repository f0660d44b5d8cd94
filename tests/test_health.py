"""The health of an agent: how its last finished tasks have done."""

from datetime import datetime
from typing import Any

from flask import Flask

from taskservice.background.maintenance import Maintenance
from taskservice.database import clock
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import end_for_silence
from tests.support.marks import one_database

NOTHING: dict[str, Any] = {
    "recent": [], "successRate": None, "lastSuccessAt": None, "medianSeconds": None, "dueAt": None,
    "lateSince": None, "state": None, "stateSince": None, "workerSeenAt": None,
}  # fmt: skip


def health(alice: ApiClient, agent_id: str = "summarizer") -> dict[str, Any]:
    agent = expect(alice.get(f"/agent/{agent_id}?expand=health"), 200)
    assert agent in expect(alice.get("/agent?expand=health"), 200)
    return dict(agent["health"])


def test_agent_without_history_has_an_empty_health(alice: ApiClient) -> None:
    alice.register()
    assert health(alice) == NOTHING
    alice.start()
    assert health(alice) == NOTHING
    assert "health" not in expect(alice.get("/agent/summarizer"), 200)


def test_health_is_over_finished_tasks_the_first_to_end_first(alice: ApiClient, app: Flask) -> None:
    complete, failed, silent, cancelled, unclaimed = (
        alice.start(claim=number < 4) for number in range(5)
    )
    alice.start(claim=True)
    alice.start("translator", claim=True)
    alice.report(complete, status="complete")
    alice.report(failed, status="error")
    end_for_silence(app, silent)
    for task in (cancelled, unclaimed):
        expect(alice.post(f"/task/{task['id']}/cancel"), 200)
    facts = health(alice)
    ended = [alice.task(task) for task in (complete, failed, silent, cancelled, unclaimed)]
    assert [task["id"] for task in facts["recent"]] == [task["id"] for task in ended]
    assert [task["status"] for task in facts["recent"]] == ["complete"] + ["error"] * 4
    assert [task["finishedAt"] for task in facts["recent"]] == [
        task["finishedAt"] for task in ended
    ]
    assert [task["errorType"] for task in facts["recent"]] == [
        None, "failed", "timeout", "cancelled", "cancelled",
    ]  # fmt: skip
    seconds = [task["seconds"] for task in facts["recent"]]
    assert seconds[4] is None
    assert seconds[0] == duration(ended[0])
    assert facts["successRate"] == 1 / 3
    assert facts["lastSuccessAt"] == ended[0]["finishedAt"]
    assert facts["medianSeconds"] == sorted(seconds[:3])[1]


def duration(task: dict[str, Any]) -> float:
    first, last = (datetime.fromisoformat(task[name]) for name in ("claimedAt", "finishedAt"))
    return (last - first).total_seconds()


def test_health_has_the_last_30(alice: ApiClient) -> None:
    tasks = [alice.start(claim=True) for _ in range(32)]
    for task in tasks:
        alice.report(task, status="complete")
    facts = health(alice)
    assert [task["id"] for task in facts["recent"]] == [task["id"] for task in tasks[2:]]
    assert facts["successRate"] == 1


def test_state_goes_by_the_last_task_that_was_not_cancelled(alice: ApiClient) -> None:
    def end(status: str) -> dict[str, Any]:
        return alice.report(alice.start(claim=True), status=status)

    def state() -> tuple[str, str]:
        facts = health(alice)
        return facts["state"], facts["stateSince"]

    first = end("complete")
    end("complete")
    assert state() == ("ok", first["finishedAt"])
    first = end("error")
    end("error")
    expect(alice.post(f"/task/{alice.start()['id']}/cancel"), 200)
    assert state() == ("broken", first["finishedAt"])
    fixed = end("complete")
    assert state() == ("ok", fixed["finishedAt"])


def test_worker_is_seen_when_it_asks_even_in_vain(alice: ApiClient, app: Flask) -> None:
    alice.start(claim=True)
    alice.register("translator")
    Maintenance(app).do_round()
    # An agent that starts its own task has not claimed one.
    assert health(alice)["workerSeenAt"] is None
    before = clock.now()
    expect(alice.post("/agent/summarizer/claim"), 204)
    Maintenance(app).do_round()
    seen_at = health(alice)["workerSeenAt"]
    assert seen_at in {f"{time[:16]}:00.000Z" for time in (before, clock.now())}
    assert health(alice, "translator")["workerSeenAt"] is None
    problem(alice.post("/agent/nobody/claim"), 404)
    Maintenance(app).do_round()
    assert health(alice)["workerSeenAt"] == seen_at


@one_database
def test_only_health_can_be_embedded(alice: ApiClient) -> None:
    alice.register()
    for path in ("/agent", "/agent/summarizer"):
        assert list(problem(alice.get(f"{path}?expand=user"), 422)["errors"]) == ["expand"]
