"""Agents: registered, changed, listed and removed."""

from functools import partial
from typing import Any

import pytest
from flask import Flask

from taskservice.terms import MAX_DESCRIPTION, MAX_NAME
from tests.support.api_client import ApiClient, check_invalid_fields, expect, problem
from tests.support.internals import rows
from tests.support.marks import one_database


def test_put_registers_an_agent(alice: ApiClient) -> None:
    fields = {"name": "The summarizer", "description": "Sums up what it is given."}
    response = alice.put("/agent/summarizer", json=fields)
    agent = expect(response, 201)
    described = {"id", "name", "description", "userId", "createdAt"}
    others = {"inputSchema", "annotations", "tool", "expect", "mutedUntil", "mutedBy"}
    assert agent.keys() == described | others
    assert (agent["id"], agent["name"]) == ("summarizer", "The summarizer")
    assert agent["description"] == "Sums up what it is given."
    assert agent["userId"] == expect(alice.get("/user"), 200)["id"]
    assert agent["createdAt"].endswith("Z")
    assert expect(alice.get("/agent/summarizer"), 200) == agent


def test_name_is_the_id_by_default(alice: ApiClient) -> None:
    forms: tuple[dict[str, None] | None, ...] = (None, {}, {"name": None, "description": None})
    for number, fields in enumerate(forms):
        agent = expect(alice.put(f"/agent/summarizer-{number}", json=fields), 201)
        assert (agent["name"], agent["description"]) == (f"summarizer-{number}", "")


def test_omitted_fields_stay(alice: ApiClient) -> None:
    agent = alice.register(name="a name", description="a description")
    assert expect(alice.put("/agent/summarizer"), 200) == agent
    names = ("name", "description", "inputSchema", "annotations")
    nothing = dict.fromkeys(names)
    assert expect(alice.put("/agent/summarizer", json=nothing), 200) == agent
    renamed = expect(alice.put("/agent/summarizer", json={"name": "new"}), 200)
    assert renamed == agent | {"name": "new"}
    described = expect(alice.put("/agent/summarizer", json={"description": "new"}), 200)
    assert described == renamed | {"description": "new"}
    hidden = expect(alice.put("/agent/summarizer", json={"tool": False}), 200)
    assert hidden == described | {"tool": False}
    assert expect(alice.put("/agent/summarizer", json=nothing), 200) == hidden


DEFAULT_HINTS = {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True}


def test_null_resets_whether_an_agent_is_a_tool(alice: ApiClient) -> None:
    agent = alice.register(tool=True)
    assert expect(alice.put("/agent/summarizer"), 200) == agent
    assert alice.register(tool=None) == agent | {"tool": None}


def test_agent_is_a_tool_that_may_destroy_until_it_says_otherwise(alice: ApiClient) -> None:
    agent = alice.register()
    assert (agent["inputSchema"], agent["tool"]) == ({"type": "object"}, None)
    assert agent["annotations"] == DEFAULT_HINTS
    hints = {"title": "Sum up", "readOnlyHint": True, "idempotentHint": True}
    changed = alice.register(annotations=hints)
    assert changed == agent | {"annotations": DEFAULT_HINTS | hints}
    # Hints are replaced together: what is left out has its default again.
    fewer = alice.register(annotations={"destructiveHint": False})
    assert fewer["annotations"] == DEFAULT_HINTS | {"destructiveHint": False}
    assert alice.register(annotations={})["annotations"] == DEFAULT_HINTS
    assert expect(alice.get("/agent"), 200) == [expect(alice.get("/agent/summarizer"), 200)]


def test_tasks_keep_the_name_they_were_started_with(alice: ApiClient) -> None:
    alice.register(name="old")
    task = alice.start()
    alice.register(name="new")
    assert alice.task(task)["name"] == "old"
    embedded = expect(alice.get("/task?expand=agent"), 200)[0]["agent"]
    assert embedded["name"] == "new"
    assert embedded.keys() == {"id", "name", "description", "userId", "createdAt"}


FIT_IDS = ("a", "7", "summarizer", "a.b-c_d", "0..", "a-", "x" * 64)
UNFIT_IDS = (
    "A", "Summarizer", "-a", ".a", "_a", ".", "..", "a b", "a+b", "a:b", "a@b", "a~", "ä", "a%0A",
    "%0Aa", "%00", "a%00", "%ff", "x" * 65, "٣", "a\u0301", "ﬁ", "x" * 5000,
)  # fmt: skip


def test_ids_of_the_right_form_are_fit(alice: ApiClient) -> None:
    for agent_id in FIT_IDS:
        agent = expect(alice.put(f"/agent/{agent_id}"), 201)
        assert agent["id"] == agent_id
        assert expect(alice.get(f"/agent/{agent_id}"), 200) == agent


def test_ids_of_another_form_are_refused(
    alice: ApiClient, app: Flask, subtests: pytest.Subtests
) -> None:
    before = rows(app)
    for agent_id in UNFIT_IDS:
        with subtests.test(agent_id[:20]):
            path = f"/agent/{agent_id}"
            assert list(problem(alice.put(path, json={}), 422)["errors"]) == ["agentId"]
            problem(alice.get(path), 404)
            problem(alice.delete(path), 404)
    assert rows(app) == before


INVALID: dict[str, list[Any]] = {
    "name": ["", "ü" * (MAX_NAME + 1), 5, ["x"]],
    "description": ["ü" * (MAX_DESCRIPTION + 1), {}],
    "annotations": [
        {"readOnlyHint": "yes"}, {"readOnlyHint": None}, {"nonsense": True}, {"title": 5}, True,
    ],
    "tool": ["yes"], "inputSchema": [[], {}],
    "id": ["other"], "userId": ["other"], "createdAt": [None], "nonsense": [None],
}  # fmt: skip


@one_database
def test_invalid_agent_is_422_and_changes_nothing(
    alice: ApiClient, subtests: pytest.Subtests
) -> None:
    put = partial(alice.put, "/agent/summarizer")
    check_invalid_fields(put, {}, INVALID, subtests)
    problem(alice.get("/agent/summarizer"), 404)
    agent = alice.register()
    check_invalid_fields(put, {"description": "new"}, INVALID, subtests)
    assert expect(alice.get("/agent/summarizer"), 200) == agent


def test_limits_themselves_are_fit(alice: ApiClient) -> None:
    assert MAX_NAME == 200
    fields = {"name": "ü" * MAX_NAME, "description": "𝛂" * MAX_DESCRIPTION}
    agent = alice.register(**fields)
    assert {name: agent[name] for name in fields} == fields


def test_list_is_sorted_by_id(alice: ApiClient) -> None:
    assert expect(alice.get("/agent"), 200) == []
    ids = ["b", "a", "a-b", "a.b", "a_b", "ab", "a1", "10", "9", "aa"]
    agents = {agent_id: alice.register(agent_id) for agent_id in ids}
    assert expect(alice.get("/agent"), 200) == [agents[agent_id] for agent_id in sorted(ids)]


def test_deleted_agent_is_returned_and_gone(alice: ApiClient) -> None:
    agent, other = alice.register("summarizer", name="x"), alice.register("translator")
    assert expect(alice.delete("/agent/summarizer"), 200) == agent
    problem(alice.get("/agent/summarizer"), 404)
    problem(alice.delete("/agent/summarizer"), 404)
    assert expect(alice.get("/agent"), 200) == [other]
    unfit = problem(alice.post("/task", json={"agentId": "summarizer"}), 422)
    assert list(unfit["errors"]) == ["agentId"]


def test_agent_with_tasks_cannot_be_deleted(alice: ApiClient) -> None:
    task = alice.start()
    problem(alice.delete("/agent/summarizer"), 409)
    alice.report(task, status="complete")
    problem(alice.delete("/agent/summarizer"), 409)
    expect(alice.get("/agent/summarizer"), 200)
    expect(alice.delete(f"/task/{task['id']}"), 200)
    expect(alice.delete("/agent/summarizer"), 200)


def test_keys_of_a_deleted_agent_are_gone_with_it(alice: ApiClient) -> None:
    summarizer, translator = alice.agent_key("summarizer"), alice.agent_key("translator")
    expect(alice.delete("/agent/summarizer"), 200)
    problem(summarizer.get("/user"), 401)
    expect(translator.get("/user"), 200)
    left = {key["agentId"] for key in expect(alice.get("/key"), 200)}
    assert left == {None, "translator"}
    # The ID is free again, and an old key does not open the new agent.
    alice.register("summarizer")
    problem(summarizer.get("/user"), 401)


def test_ids_are_unique_per_user_only(alice: ApiClient, bob: ApiClient) -> None:
    hers = expect(alice.put("/agent/summarizer", json={"name": "hers"}), 201)
    his = expect(bob.put("/agent/summarizer", json={"name": "his"}), 201)
    task = alice.start()
    assert expect(alice.get("/agent/summarizer"), 200) == hers
    assert expect(bob.get("/agent"), 200) == [his]
    # Alice's task does not keep bob's agent.
    assert expect(bob.delete("/agent/summarizer"), 200) == his
    assert expect(alice.get("/agent/summarizer"), 200) == hers
    assert alice.task(task) == task
