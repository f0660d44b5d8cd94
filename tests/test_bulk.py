"""One action on many tasks: each as its own route does it."""

import json
from typing import Any
from uuid import uuid4

from flask import Flask

from tests.support.api_client import ApiClient, expect, problem
from tests.support.deliveries import deliveries_of, finish, looping
from tests.support.marks import one_database
from tests.support.receiver import Receiver
from tests.support.waiting import until

Task = dict[str, Any]


def act(person: ApiClient, action: str, *tasks: Task | str, key: str = "") -> dict[str, Any]:
    ids = [task if isinstance(task, str) else task["id"] for task in tasks]
    headers = {"Idempotency-Key": key} if key else {}
    body = {"action": action, "taskIds": ids}
    return dict(expect(person.post("/task/bulk", json=body, headers=headers), 200))


def refusals(result: dict[str, Any]) -> dict[str, str]:
    return {refusal["id"]: refusal["code"] for refusal in result["refused"]}


def test_cancel_ends_each_task_as_its_own_route_does(alice: ApiClient) -> None:
    tasks = [alice.start(claim=True), alice.start(), alice.start()]
    alice.append(tasks[0], "a line")
    expect(alice.post(f"/task/{tasks[1]['id']}/cancel"), 200)
    finish(alice, tasks[2])
    question = {"message": "Deploy?"}
    expect(alice.post(f"/task/{tasks[0]['id']}/question", json=question), 201)
    result = act(alice, "cancel", *tasks)
    assert result == {"done": 2, "refused": [{"id": tasks[2]["id"], "code": "task_finished"}]}
    first, second = (alice.task(task) for task in tasks[:2])
    assert first["error"] == second["error"]
    assert (first["endedBy"], first["questions"]) == (second["endedBy"], [])
    assert alice.task(tasks[2])["status"] == "complete"


def test_delete_removes_each_task(alice: ApiClient) -> None:
    tasks = [alice.start() for _ in range(3)]
    child = alice.start(parentId=tasks[0]["id"])
    assert act(alice, "delete", *tasks) == {"done": 3, "refused": []}
    (left,) = expect(alice.get("/task"), 200)
    assert (left["id"], left["parentId"]) == (child["id"], None)
    assert refusals(act(alice, "delete", tasks[0])) == {tasks[0]["id"]: "not_found"}


def test_rerun_starts_a_copy_of_each_task(alice: ApiClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tasks = [alice.start(input={"a": value}) for value in (1, "one", 3)]
    alice.register(inputSchema=schema)
    result = act(alice, "rerun", *tasks)
    assert (result["done"], refusals(result)) == (2, {tasks[1]["id"]: "invalid"})
    again = [alice.task({"id": task_id}) for task_id in result["tasks"]]
    assert [task["rerunOf"] for task in again] == [tasks[0]["id"], tasks[2]["id"]]
    assert [task["input"] for task in again] == [{"a": 1}, {"a": 3}]


def test_rerun_that_is_repeated_with_its_key_starts_nothing(alice: ApiClient) -> None:
    tasks = [alice.start(), alice.start()]
    result = act(alice, "rerun", *tasks, key="once")
    assert act(alice, "rerun", *tasks, key="once") == result
    assert len(expect(alice.get("/task"), 200)) == 4
    assert act(alice, "rerun", *tasks)["tasks"] != result["tasks"]
    too_long = {"Idempotency-Key": "x" * 256}
    body = {"action": "rerun", "taskIds": [tasks[0]["id"]]}
    problem(alice.post("/task/bulk", json=body, headers=too_long), 422)


def test_tasks_of_others_and_unknown_ids_are_not_found(alice: ApiClient, bob: ApiClient) -> None:
    hers, his = alice.start(), bob.start()
    strange = [str(uuid4()), "no id", "", "\0", "x" * 1_000]
    for action in ("cancel", "rerun", "delete"):
        result = act(alice, action, his, *strange, hers)
        assert result["done"] == 1
        names = [his["id"], *(text.replace("\0", "\ufffd") for text in strange)]
        assert refusals(result) == dict.fromkeys(names, "not_found")
    assert bob.task(his) == his


def test_duplicates_count_once(alice: ApiClient) -> None:
    task = alice.start()
    result = act(alice, "rerun", task, task["id"].upper(), task)
    assert (result["done"], len(result["tasks"])) == (1, 1)
    assert act(alice, "delete", task, task) == {"done": 1, "refused": []}
    assert act(alice, "delete", "gone", "gone")["refused"] == [{"id": "gone", "code": "not_found"}]


@one_database
def test_invalid_requests_change_nothing(alice: ApiClient) -> None:
    task = alice.start()
    ids = [task["id"]]
    bodies: list[Any] = [
        {"action": "delete", "taskIds": []}, {"action": "delete"}, {"taskIds": ids},
        {"action": "remove", "taskIds": ids}, {"action": "delete", "taskIds": [1]},
        {"action": "delete", "taskIds": task["id"]}, {"action": "delete", "taskIds": [*ids, None]},
        {"action": "delete", "taskIds": ids, "input": {}},
        {"action": "delete", "taskIds": ids * 1_001},
    ]  # fmt: skip
    for body in bodies:
        problem(alice.post("/task/bulk", json=body), 422)
    body = {"action": "delete", "taskIds": ids}
    problem(alice.agent_key().post("/task/bulk", json=body), 403)
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE"):
        refused = alice.request(method, "/task/bulk", json={"name": "bulk"})
        assert refused.status_code == 405
        assert set(refused.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    assert alice.task(task) == task


def test_loop_posts_the_webhooks(alice: ApiClient, app: Flask, receiver: Receiver) -> None:
    tasks = [alice.start(callback=receiver.url) for _ in range(3)]
    assert act(alice, "cancel", *tasks)["done"] == 3
    assert not receiver.requests
    for task in tasks:
        (delivery,) = deliveries_of(alice, task)
        assert (delivery["state"], delivery["attempts"]) == ("pending", [])
    with looping(app):
        until(lambda: all(deliveries_of(alice, task)[0]["state"] == "delivered" for task in tasks))
    assert {json.loads(request.body)["id"] for request in receiver.requests} == {
        task["id"] for task in tasks
    }
