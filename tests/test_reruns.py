"""Parents and reruns: which task started another, and which runs another again."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import delete

from taskservice.database.models import Task
from taskservice.database.transactions import transaction
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, expect, problem
from tests.support.internals import is_waiting_for_a_lock
from tests.support.marks import one_database
from tests.support.waiting import until

CALLBACK = "https://myapp.example/hook"


def rerun(person: ApiClient, task: dict[str, Any], key: str = "", **options: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return person.post(f"/task/{task['id']}/rerun", headers=headers, **options)


def test_rerun_is_a_new_unclaimed_task_with_the_same_fields(alice: ApiClient) -> None:
    labels = {"env": "prod"}
    task = alice.start(
        name="nightly", input={"a": [1]}, callback=CALLBACK, timeout=60, labels=labels, claim=True
    )
    alice.append(task, "a line")
    alice.report(task, progress=0.5, note="half", status="error")
    response = rerun(alice, task)
    again = expect(response, 201)
    assert response.headers["Location"] == f"../{again['id']}"
    for same in ("agentId", "name", "input", "callback", "labels", "userId"):
        assert again[same] == task[same]
    assert again["rerunOf"] == task["id"]
    assert (again["status"], again["claimedAt"], again["logs"]) == ("running", None, [])
    assert (again["progress"], again["note"], again["parentId"]) == (None, None, None)
    assert alice.task(again) == again
    labelled = expect(alice.get("/task?label=env:prod"), 200)
    assert [listed["id"] for listed in labelled] == [again["id"], task["id"]]


def test_rerun_takes_another_input(alice: ApiClient) -> None:
    task = alice.start(input={"a": 1})
    assert expect(rerun(alice, task, json={"input": {"b": 2}}), 201)["input"] == {"b": 2}
    assert expect(rerun(alice, task, json={"input": {}}), 201)["input"] == {}
    bodies: list[dict[str, Any]] = [{"json": {"input": None}}, {"json": {}}, {}]
    for nothing in bodies:
        assert expect(rerun(alice, task, **nothing), 201)["input"] == {"a": 1}
    assert list(problem(rerun(alice, task, json={"name": "x"}), 422)["errors"]) == ["name"]


def test_rerun_takes_other_labels(alice: ApiClient) -> None:
    task = alice.start(labels={"env": "prod", "version": "1"})
    for labels in ({"env": "test"}, {}):
        assert expect(rerun(alice, task, json={"labels": labels}), 201)["labels"] == labels
    assert expect(rerun(alice, task, json={"labels": None}), 201)["labels"] == task["labels"]
    assert len(expect(alice.get("/task?label=env:prod"), 200)) == 2
    assert "labels" in problem(rerun(alice, task, json={"labels": {"Env": "x"}}), 422)["errors"]


def test_running_task_can_be_run_again(alice: ApiClient) -> None:
    assert expect(rerun(alice, alice.start()), 201)["status"] == "running"


def test_agent_key_may_run_again_and_it_is_unclaimed(alice: ApiClient) -> None:
    agent = alice.agent_key()
    task = agent.start()
    assert expect(rerun(agent, task), 201)["claimedAt"] is None
    other = alice.start("translator")
    problem(rerun(agent, other), 404)


def test_rerun_of_what_is_not_there_is_404(alice: ApiClient, bob: ApiClient) -> None:
    problem(rerun(bob, alice.start()), 404)
    problem(rerun(alice, {"id": str(uuid4())}), 404)


def test_rerun_is_idempotent(alice: ApiClient) -> None:
    task, other = alice.start(), alice.start()
    first = rerun(alice, task, key="k")
    again = rerun(alice, task, key="k")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert expect(again, 201)["id"] == expect(first, 201)["id"]
    for reused in (
        rerun(alice, task, key="k", json={"input": {"a": 1}}),
        rerun(alice, other, key="k"),
        alice.post("/task", json={"agentId": "summarizer"}, headers={"Idempotency-Key": "k"}),
    ):
        assert problem(reused, 422)["code"] == "idempotency_key_reused"
    assert len(expect(alice.get("/task"), 200)) == 3


def test_callback_that_is_no_longer_allowed_starts_nothing(alice: ApiClient, app: Flask) -> None:
    task = alice.start(callback="http://127.0.0.1:9/hook")
    app.config["CALLBACK_ALLOWED"] = Destinations.parse("external")
    assert list(problem(rerun(alice, task), 422)["errors"]) == ["callback"]
    assert len(expect(alice.get("/task"), 200)) == 1


# --- parents -----------------------------------------------------------------------------


def test_child_names_its_parent(alice: ApiClient) -> None:
    parent = alice.start()
    child = alice.start("translator", parentId=parent["id"].upper())
    assert child["parentId"] == parent["id"]
    assert alice.task(child) == child
    children = expect(alice.get(f"/task?parentId={parent['id']}"), 200)
    assert [listed["id"] for listed in children] == [child["id"]]


@one_database
def test_parent_that_the_key_cannot_see_is_422(alice: ApiClient, bob: ApiClient) -> None:
    agent = alice.agent_key()
    hidden = [bob.start()["id"], str(uuid4()), "no-uuid", 5]
    for parent_id in hidden:
        body = {"agentId": "summarizer", "parentId": parent_id}
        assert list(problem(alice.post("/task", json=body), 422)["errors"]) == ["parentId"]
    of_other_agent = alice.start("translator")
    body = {"agentId": "summarizer", "parentId": of_other_agent["id"]}
    assert list(problem(agent.post("/task", json=body), 422)["errors"]) == ["parentId"]


def etag(alice: ApiClient, task: dict[str, Any]) -> str:
    return str(alice.get(f"/task/{task['id']}").headers["ETag"])


def test_deleted_task_is_not_a_parent_and_cannot_run_again(alice: ApiClient) -> None:
    parent = alice.start()
    child = alice.start(parentId=parent["id"])
    again = expect(rerun(alice, parent), 201)
    before = [etag(alice, started) for started in (child, again)]
    expect(alice.delete(f"/task/{parent['id']}"), 200)
    assert alice.task(child)["parentId"] is None
    assert alice.task(again)["rerunOf"] is None
    after = [etag(alice, started) for started in (child, again)]
    assert all(new != old for new, old in zip(after, before, strict=True))
    assert alice.task(child)["updatedAt"] >= child["updatedAt"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_child_that_is_deleted_in_between_leaves_no_other_with_its_parent(
    alice: ApiClient, app: Flask
) -> None:
    """On PostgreSQL a row may go between its selection and its update."""
    parent = alice.start()
    children = [alice.start(parentId=parent["id"]) for _ in range(4)]
    other = ApiClient(app, alice.name, alice.key)
    with ThreadPoolExecutor(1) as pool, app.app_context(), transaction() as connection:
        # As long as this transaction is open, the deletion of the parent waits for the child.
        connection.execute(delete(Task).where(Task.id == children[0]["id"]))
        deletion = pool.submit(other.delete, f"/task/{parent['id']}")
        until(lambda: is_waiting_for_a_lock(app))
    expect(deletion.result(), 200)
    assert [alice.task(child)["parentId"] for child in children[1:]] == [None] * 3
