"""Idempotency: a repeated request counts once."""

import threading
from typing import Any
from uuid import uuid4

from flask import Flask

from tests.support import receiver as play
from tests.support.api_client import ApiClient, expect, is_replay, problem
from tests.support.receiver import Receiver

FIELDS = {"agentId": "summarizer", "input": {"a": 1, "b": [2, None]}}


def start(person: ApiClient, key: str, **fields: Any) -> Any:
    return person.post("/task", json=FIELDS | fields, headers={"Idempotency-Key": key})


def test_replay_is_the_task_as_it_now_is(alice: ApiClient) -> None:
    alice.register()
    task = expect(start(alice, "k"), 201)
    alice.append(task, "meanwhile")
    alice.report(task, status="complete", output={"sum": 3}, name="renamed")
    again = start(alice, "k")
    assert is_replay(again)
    assert expect(again, 201) == alice.task(task)
    assert again.headers["Location"] == f"task/{task['id']}"


def test_body_may_be_written_another_way(alice: ApiClient) -> None:
    alice.register()
    first = start(alice, "k")
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    for text in (
        b'{"agentId":"summarizer","input":{"a":1,"b":[2,null]}}',
        b' {\n"input": {"b": [2, null], "a": 1},\t"agentId": "summarizer"} ',
        b'{"agentId":"summari\\u007aer","input":{"\\u0061":1,"b":[2,null]}}',
    ):
        again = alice.post("/task", data=text, headers=headers)
        assert is_replay(again)
        assert expect(again, 201) == expect(first, 201)


OTHER_WISHES: tuple[dict[str, Any], ...] = (
    {"name": "x"}, {"input": {"a": 1, "b": [None, 2]}}, {"input": {}}, {"claim": True},
    {"timeout": 60}, {"callback": "https://example.com/"},
)  # fmt: skip


def test_another_body_under_the_same_key_is_422(alice: ApiClient) -> None:
    alice.register()
    task = expect(start(alice, "k"), 201)
    for other in OTHER_WISHES:
        problem(start(alice, "k", **other), 422)
    assert expect(alice.get("/task"), 200) == [task]
    assert expect(start(alice, "k"), 201) == task


def test_key_is_taken_as_it_is(alice: ApiClient) -> None:
    alice.register()
    keys = ("k", "K", "kk", "x" * 255, "x" * 254, "a b  c", "a b c", '"k"', "%_\\'", "clé", "a,b")
    tasks = []
    for key in keys:
        first = start(alice, key)
        assert not is_replay(first)
        tasks.append(expect(first, 201))
    assert [expect(start(alice, key), 201) for key in keys] == tasks
    assert len(expect(alice.get("/task"), 200)) == len(keys)


def test_refused_start_leaves_its_key_free(alice: ApiClient) -> None:
    problem(start(alice, "k"), 422)  # the agent is not registered
    alice.register()
    problem(start(alice, "k", callback="ftp://example.com"), 422)
    first = start(alice, "k")
    expect(first, 201)
    assert not is_replay(first)


def test_team_shares_its_keys(alice: ApiClient, app: Flask) -> None:
    """The key is unique per user, whichever of the user's API keys it comes with."""
    alice.register()
    created = expect(alice.post("/key", json={"name": "colleague"}), 201)
    colleague, agent = ApiClient(app, "alice", created["key"]), alice.agent_key()
    task = expect(start(alice, "k"), 201)
    for person in (colleague, agent):
        assert expect(start(person, "k"), 201) == task


def test_agent_key_gets_no_task_of_another_agent_by_its_idempotency_key(alice: ApiClient) -> None:
    alice.register("summarizer")
    task = expect(start(alice, "k"), 201)
    translator = alice.agent_key("translator")
    problem(translator.get(f"/task/{task['id']}"), 404)
    unfit = problem(start(translator, "k"), 422)
    assert list(unfit["errors"]) == ["agentId"]


def test_equal_report_while_the_callback_is_on_its_way_does_not_wait_for_it(
    alice: ApiClient, app: Flask, receiver: Receiver
) -> None:
    released = threading.Event()

    def answer_when_released(exchange: play.Exchange) -> None:
        released.wait(5)
        play.answer(204)(exchange)

    receiver.answer = answer_when_released
    task = alice.start(callback=receiver.url, name=str(uuid4()))
    path, changes = f"/task/{task['id']}", {"status": "complete"}
    app.config["CALLBACK_TIMEOUT"] = 10.0
    sender = ApiClient(app, alice.name, alice.key)
    slow: list[Any] = []
    thread = threading.Thread(target=lambda: slow.append(sender.patch(path, json=changes)))
    thread.start()
    receiver.wait_for(1)
    again = alice.patch(path, json=changes)
    assert slow == []
    released.set()
    thread.join()
    assert expect(again, 200) == expect(slow[0], 200)
    assert again.headers["Callback-Status"] == "none"
    assert slow[0].headers["Callback-Status"] == "delivered"
    assert len(receiver.requests) == 1
