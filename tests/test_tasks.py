"""Tasks: start, list, get, cancel, delete."""

import re
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.api_client import ApiClient, check_invalid_fields, expect, problem
from tests.support.marks import one_database

FIELDS_OF_THE_SOURCE = {
    "id", "name", "agentId", "userId", "createdAt", "logs", "output", "status", "callback",
}  # fmt: skip
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_started_task_has_all_fields(alice: ApiClient) -> None:
    alice.register("summarizer", name="The summarizer")
    response = alice.post(
        "/task",
        json={
            "agentId": "summarizer",
            "input": {"text": "to sum up"},
            "callback": "https://myapp.example/api/v1/callback/2100aaa",
        },
    )
    task = expect(response, 201)
    assert task.keys() > FIELDS_OF_THE_SOURCE
    assert response.headers["Location"] == f"task/{task['id']}"
    assert UUID(task["id"]).version == 7
    assert MOMENT.fullmatch(task["createdAt"])
    assert task["updatedAt"] == task["createdAt"]
    assert task["name"] == "The summarizer"
    assert task["userId"] == expect(alice.get("/user"), 200)["id"]
    assert task["input"] == {"text": "to sum up"}
    assert (task["logs"], task["firstLog"], task["logCount"]) == ([], 1, 0)
    assert (task["status"], task["output"], task["error"]) == ("running", {}, None)
    assert (task["claimedAt"], task["finishedAt"]) == (None, None)
    assert task["callback"] == "https://myapp.example/api/v1/callback/2100aaa"
    assert alice.task(task) == task


@one_database
def test_null_for_an_optional_field_is_as_leaving_it_out(alice: ApiClient) -> None:
    nothing: dict[str, Any] = dict.fromkeys(["name", "input", "callback", "timeout", "claim"])
    task = alice.start(**nothing)
    assert (task["name"], task["input"], task["callback"]) == ("summarizer", {}, None)
    assert task["claimedAt"] is None


def test_task_started_with_claim_is_claimed(alice: ApiClient) -> None:
    task = alice.start(claim=True)
    assert task["claimedAt"] == task["createdAt"]


def test_task_started_with_an_agent_key_is_claimed(alice: ApiClient) -> None:
    agent = alice.agent_key()
    task = expect(agent.post("/task", json={"agentId": "summarizer"}), 201)
    assert task["claimedAt"] == task["createdAt"]


def test_unregistered_agent_is_named(alice: ApiClient) -> None:
    body = problem(alice.post("/task", json={"agentId": "nobody"}), 422)
    assert list(body["errors"]) == ["agentId"]


INVALID: dict[str, list[Any]] = {
    "name": ["", "x" * 201, 7],
    "input": [[], {"x": "y" * 1024 * 1024}],
    "timeout": [-1, 1.5, True, "60"],
    "claim": ["yes", 1],
    "agentId": [None, 5],
    "status": ["complete"],
    "id": [str(uuid4())],
    "callback": [
        "ftp://example.com/", "https://user:secret@example.com/", "https://example.com/#part",
        "https://example.com:0/", "https:///path", "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/", "https://example.com/" + "x" * 2000, 5,
    ],
}  # fmt: skip


@one_database
def test_invalid_start_is_422_and_names_its_field(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    alice.register()
    post = partial(alice.post, "/task")
    check_invalid_fields(post, {"agentId": "summarizer"}, INVALID, subtests)
    assert expect(alice.get("/task"), 200) == []


def test_limits_themselves_are_fit(alice: ApiClient) -> None:
    largest = {"x": "y" * (1024 * 1024 - len('{"x":""}'))}
    task = alice.start(name="ü" * 200, input=largest, timeout=0)
    assert alice.task(task)["input"] == largest


def test_list_is_newest_first_and_equals_each_task(alice: ApiClient) -> None:
    tasks = [alice.start(name=f"task {number}") for number in range(5)]
    alice.append(tasks[1], "one", "two")
    alice.report(tasks[2], status="complete", output={"answer": 42})
    listed = expect(alice.get("/task"), 200)
    assert [task["id"] for task in listed] == [task["id"] for task in reversed(tasks)]
    assert listed == [alice.task(task) for task in reversed(tasks)]


def test_expand_embeds_agent_and_user(alice: ApiClient) -> None:
    task = alice.start()
    agent = expect(alice.get("/agent/summarizer"), 200)
    # What only tools need is not in each task.
    for name in ("inputSchema", "annotations", "tool", "expect", "mutedUntil", "mutedBy"):
        del agent[name]
    user = expect(alice.get("/user"), 200)
    del user["key"]
    expanded = task | {"agent": agent, "user": user}
    path = f"/task/{task['id']}?expand=agent,user"
    assert expect(alice.get(path), 200) == expanded
    assert expect(alice.get("/task?expand=agent,user"), 200) == [expanded]
    assert expect(alice.get("/task?expand=user"), 200) == [task | {"user": user}]
    assert expect(alice.delete(path), 200) == expanded


def test_fields_limit_the_answer(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "a line")
    narrowed = {"id": task["id"], "status": "running"}
    assert expect(alice.get(f"/task/{task['id']}?fields=status,id"), 200) == narrowed
    assert expect(alice.get("/task?fields=id,status"), 200) == [narrowed]
    assert expect(alice.get("/task?fields=logs"), 200) == [{"logs": ["a line"]}]
    (with_agent,) = expect(alice.get("/task?fields=id&expand=agent"), 200)
    assert with_agent.keys() == {"id", "agent"}


def test_report_need_not_return_the_log(alice: ApiClient) -> None:
    task = alice.start()
    alice.append(task, "a line")
    path, narrow = f"/task/{task['id']}", "fields=id,status"
    running = {"id": task["id"], "status": "running"}
    assert expect(alice.patch(f"{path}?{narrow}", json={"output": {"sum": 1}}), 200) == running
    expanded = expect(alice.patch(f"{path}?expand=agent&fields=logs", json={"name": "other"}), 200)
    assert expanded["logs"] == ["a line"]
    assert expanded["agent"]["id"] == "summarizer"
    ended = running | {"status": "error"}
    assert expect(alice.post(f"{path}/cancel?{narrow}"), 200) == ended
    assert expect(alice.delete(f"{path}?{narrow}"), 200) == ended


def test_start_claim_and_rerun_are_shaped_too(alice: ApiClient) -> None:
    alice.register()
    shape, body = "fields=status&expand=agent", {"agentId": "summarizer"}
    once = {"Idempotency-Key": "once"}
    started = alice.post(f"/task?{shape}", json=body, headers=once)
    claimed = alice.post(f"/agent/summarizer/claim?{shape}")
    path = f"/task/{started.headers['Location'].removeprefix('task/')}"
    agent = expect(alice.get(f"{path}?expand=agent"), 200)["agent"]
    for response, status in (
        (started, 201), (claimed, 200), (alice.post(f"{path}/rerun?{shape}"), 201),
    ):  # fmt: skip
        assert expect(response, status) == {"status": "running", "agent": agent}
    replayed = alice.post("/task?fields=agentId", json=body, headers=once)
    assert expect(replayed, 201) == body
    assert replayed.headers["Idempotency-Replayed"] == "true"
    problem(alice.post(f"{path}/rerun?fields=nonsense"), 422)
    assert len(expect(alice.get("/task"), 200)) == 2


@one_database
def test_unfit_query_changes_nothing(alice: ApiClient) -> None:
    task = alice.start()
    path, query = f"/task/{task['id']}", "?fields=id,nonsense"
    problem(alice.post(f"/task{query}", json={"agentId": "summarizer"}), 422)
    problem(alice.post(f"/agent/summarizer/claim{query}"), 422)
    problem(alice.patch(f"{path}{query}", json={"status": "complete"}), 422)
    problem(alice.post(f"{path}/cancel{query}"), 422)
    problem(alice.delete(f"{path}{query}"), 422)
    assert expect(alice.get("/task"), 200) == [task]


@one_database
def test_unfit_query_is_422(alice: ApiClient, subtests: pytest.Subtests) -> None:
    task = alice.start()
    for query, name in (
        ("fields=id,nonsense", "fields"), ("expand=agent,nonsense", "expand"),
        ("fields=", "fields"), ("nonsense=1", "nonsense"), ("fields=id&fields=name", "fields"),
        ("apikey=abc", "apikey"),
    ):  # fmt: skip
        with subtests.test(query):
            for path in ("/task", f"/task/{task['id']}"):
                assert list(problem(alice.get(f"{path}?{query}"), 422)["errors"]) == [name]


def test_cancelled_task_is_an_error_of_its_own_type(alice: ApiClient) -> None:
    task = alice.start()
    response = alice.post(f"/task/{task['id']}/cancel")
    cancelled = expect(response, 200)
    assert (cancelled["status"], cancelled["error"]["type"]) == ("error", "cancelled")
    assert cancelled["error"]["message"]
    assert cancelled["finishedAt"] == cancelled["updatedAt"]
    assert response.headers["Callback-Status"] == "none"
    assert alice.task(task) == cancelled


def test_cancelling_again_changes_nothing(alice: ApiClient) -> None:
    task = alice.start()
    first = expect(alice.post(f"/task/{task['id']}/cancel"), 200)
    assert expect(alice.post(f"/task/{task['id']}/cancel"), 200) == first


def test_finished_task_cannot_be_cancelled(alice: ApiClient) -> None:
    task = alice.start()
    finished = alice.report(task, status="complete")
    body = problem(alice.post(f"/task/{task['id']}/cancel"), 409)
    assert body["task"] == {"id": task["id"], "status": "complete", "error": None}
    assert alice.task(task) == finished


def test_deleted_task_is_returned_and_gone(alice: ApiClient) -> None:
    other, task = alice.start(), alice.start()
    alice.append(task, "one", "two")
    before = alice.task(task)
    assert expect(alice.delete(f"/task/{task['id']}"), 200) == before
    for response in (
        alice.get(f"/task/{task['id']}"),
        alice.delete(f"/task/{task['id']}"),
        alice.patch(f"/task/{task['id']}", json={}),
        alice.post(f"/task/{task['id']}/cancel"),
        alice.post(f"/task/{task['id']}/logs", json={"logs": []}),
    ):
        assert problem(response, 404)["detail"] == "Task's ID is not found"
    assert [task["id"] for task in expect(alice.get("/task"), 200)] == [other["id"]]


def test_id_that_is_not_a_uuid_is_404(alice: ApiClient, subtests: pytest.Subtests) -> None:
    for text in ("taskid123", "0", "%00", "ü", "{}", "x" * 3000, "a" * 36):
        with subtests.test(text[:40]):
            assert problem(alice.get(f"/task/{text}"), 404)["detail"] == "Task's ID is not found"


def test_id_in_upper_case_is_the_same_id(alice: ApiClient) -> None:
    task = alice.start()
    assert expect(alice.get(f"/task/{task['id'].upper()}"), 200) == task


def test_idempotency_key_is_unique_per_user(alice: ApiClient, bob: ApiClient) -> None:
    headers = {"Idempotency-Key": "k"}
    ids = set()
    for person in (alice, bob):
        person.register()
        response = person.post("/task", json={"agentId": "summarizer"}, headers=headers)
        ids.add(expect(response, 201)["id"])
    assert len(ids) == 2


def test_deleting_a_task_frees_its_idempotency_key(alice: ApiClient) -> None:
    alice.register()
    fields, headers = {"agentId": "summarizer"}, {"Idempotency-Key": "k"}
    task = expect(alice.post("/task", json=fields, headers=headers), 201)
    expect(alice.delete(f"/task/{task['id']}"), 200)
    again = alice.post("/task", json=fields, headers=headers)
    assert expect(again, 201)["id"] != task["id"]
