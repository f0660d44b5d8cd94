"""One action on a thousand tasks."""

from flask import Flask

from tests.support.api_client import ApiClient, expect
from tests.support.internals import copy_task


def test_others_tasks_are_left_out_of_a_thousand(
    alice: ApiClient, bob: ApiClient, app: Flask
) -> None:
    people = (alice, bob)
    tasks = [person.start(callback="https://myapp.example/hook") for person in people]
    hers, his = (copy_task(app, task, 500) for task in tasks)
    for action in ("cancel", "delete"):
        body = {"action": action, "taskIds": [*hers, *his]}
        result = expect(alice.post("/task/bulk", json=body), 200)
        refused = {refusal["id"]: refusal["code"] for refusal in result["refused"]}
        assert (result["done"], refused) == (500, dict.fromkeys(his, "not_found"))
    assert [task["id"] for task in expect(alice.get("/task"), 200)] == [tasks[0]["id"]]
    assert len(expect(bob.get("/task?status=running&fields=id"), 200)) == 501
