"""Questions of tasks, as forms of a client and as tools of a model."""

from functools import partial
from typing import Any

import pytest

from tests.support.api_client import ApiClient, expect
from tests.support.concurrency import at_once
from tests.support.mcp import (
    FORMS,
    TASKS,
    Answer,
    Json,
    McpClient,
    register_served_tool,
    structured,
)

SCHEMA = {
    "type": "object",
    "properties": {"deploy": {"type": "boolean", "title": "Deploy?"}},
    "required": ["deploy"],
}
YES: Json = {"action": "accept", "content": {"deploy": True}}
NO: Json = {"action": "accept", "content": {"deploy": False}}
DECLINED: Json = {"action": "decline"}
CLOSED: Json = {"action": "cancel"}


@pytest.fixture
def task(alice: ApiClient) -> Json:
    return alice.start(claim=True)


@pytest.fixture
def follower(alice: ApiClient) -> McpClient:
    """A client that follows tasks and shows forms, as Claude Code does."""
    return McpClient(alice, TASKS, FORMS)


@pytest.fixture
def forms(alice: ApiClient) -> McpClient:
    """A client that shows forms, but does not follow tasks."""
    return McpClient(alice, FORMS)


@pytest.fixture
def plain(alice: ApiClient) -> McpClient:
    """A client that does neither."""
    return McpClient(alice)


def ask(person: ApiClient, task: Json, message: str = "Deploy to production?") -> Json:
    body = {"message": message, "schema": SCHEMA}
    return dict(expect(person.post(f"/task/{task['id']}/question", json=body), 201))


def question_of(person: ApiClient, task: Json, question: Json) -> Json:
    return dict(expect(person.get(f"/task/{task['id']}/question/{question['id']}"), 200))


def form(message: str = "Deploy to production?") -> Json:
    params = {"mode": "form", "message": message, "requestedSchema": SCHEMA}
    return {"method": "elicitation/create", "params": params}


def update(mcp: McpClient, task: Json, responses: Any) -> Answer:
    params = {"taskId": task["id"], "inputResponses": responses}
    return mcp.modern("tasks/update", params)


# --- a task of the client ----------------------------------------------------------------


def test_task_with_a_question_requires_input(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    state = follower.state(task["id"])
    assert state["status"] == "input_required"
    assert state["inputRequests"] == {question["id"]: form()}
    assert state["statusMessage"] == "asks: Deploy to production?"
    assert "requestState" not in state


def test_task_with_a_question_is_working_for_a_client_without_forms(
    alice: ApiClient, task: Json
) -> None:
    ask(alice, task)
    without_forms: list[Json] = [{}, {"elicitation": {"url": {}}}, {"elicitation": None}]
    for declares in without_forms:
        state = McpClient(alice, TASKS, declares).state(task["id"])
        assert (state["status"], "inputRequests" in state) == ("working", False)
        assert state["statusMessage"] == "asks: Deploy to production?"
    state = McpClient(alice, TASKS, {"elicitation": {"form": {}, "url": {}}}).state(task["id"])
    assert state["status"] == "input_required"


def test_accepted_form_answers_the_question(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    for _ in range(2):
        answer = update(follower, task, {question["id"]: YES})
        assert answer.result.keys() == {"resultType", "_meta"}
    answered = question_of(alice, task, question)
    assert (answered["state"], answered["answer"]) == ("answered", {"deploy": True})
    assert follower.state(task["id"])["status"] == "working"


def test_declined_form_declines_the_question(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    # Some clients send an empty content with it.
    for response in (DECLINED, DECLINED | {"content": {}}, DECLINED | {"_meta": {}}):
        assert update(follower, task, {question["id"]: response}).status == 200
    assert question_of(alice, task, question)["state"] == "declined"


def test_closed_form_leaves_the_question_open(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    assert update(follower, task, {question["id"]: CLOSED}).status == 200
    assert follower.state(task["id"])["status"] == "input_required"
    assert update(follower, task, {question["id"]: YES}).status == 200


def test_questions_may_be_answered_one_after_the_other(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    first, second = ask(alice, task, "First?"), ask(alice, task, "Second?")
    assert list(follower.state(task["id"])["inputRequests"]) == [first["id"], second["id"]]
    assert update(follower, task, {first["id"]: YES}).status == 200
    state = follower.state(task["id"])
    assert state["inputRequests"] == {second["id"]: form("Second?")}
    assert update(follower, task, {second["id"]: NO}).status == 200
    assert follower.state(task["id"])["status"] == "working"


def test_unknown_keys_are_ignored(
    follower: McpClient, alice: ApiClient, bob: ApiClient, task: Json
) -> None:
    other = bob.start(claim=True)
    others = ask(bob, other)
    responses: Json = {"nothing": {"ignored": True}, "": None, others["id"]: YES, "x": []}
    assert update(follower, task, responses).status == 200
    assert question_of(bob, other, others)["state"] == "open"


UNFIT: list[Any] = [
    {},
    [],
    "accept",
    True,
    {"action": "approve"},
    {"action": None},
    {"action": "accept"},
    {"action": "accept", "content": None},
    {"action": "accept", "content": []},
    {"action": "accept", "content": {"deploy": "yes"}},
    {"action": "accept", "content": {"deploy": True, "more": 1}},
]


def test_response_that_does_not_fit_is_invalid(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    for response in UNFIT:
        answer = update(follower, task, {question["id"]: response})
        assert answer.refused == (200, -32602), response
        assert question["id"] in answer.json["error"]["message"]
    no_objects: list[Any] = [None, [], "accept", 5]
    for responses in no_objects:
        assert update(follower, task, responses).refused == (200, -32602)
    assert question_of(alice, task, question)["state"] == "open"


def test_responses_that_fit_count_with_one_that_does_not(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    first, second = ask(alice, task, "First?"), ask(alice, task, "Second?")
    answer = update(follower, task, {first["id"]: {"action": "?"}, second["id"]: YES})
    assert answer.code == -32602
    assert second["id"] not in answer.json["error"]["message"]
    assert question_of(alice, task, first)["state"] == "open"
    assert question_of(alice, task, second)["state"] == "answered"


def test_of_two_clients_that_answer_at_once_one_wins_and_the_other_is_told(
    follower: McpClient, plain: McpClient, alice: ApiClient, task: Json
) -> None:
    for _ in range(5):
        question = ask(alice, task)
        arguments = {
            "taskId": task["id"],
            "questionId": question["id"],
            "content": {"deploy": False},
        }
        updated, answered = at_once(
            [
                partial(update, follower, task, {question["id"]: YES}),
                partial(
                    plain.modern, "tools/call", {"name": "answer_task", "arguments": arguments}
                ),
            ]
        )
        was_accepted = "result" in updated.json
        was_refused = answered.result.get("isError", False)
        assert was_accepted == was_refused
        stored = question_of(alice, task, question)["answer"]
        assert stored == {"deploy": was_accepted}
        told = updated.json["error"]["message"] if not was_accepted else str(answered.result)
        assert "The question is answered" in told


def test_form_that_comes_too_late_is_told_so(
    follower: McpClient, alice: ApiClient, task: Json
) -> None:
    question = ask(alice, task)
    expect(alice.delete(f"/task/{task['id']}/question/{question['id']}"), 200)
    answer = update(follower, task, {question["id"]: YES})
    assert answer.refused == (200, -32602)
    assert "The question is withdrawn" in answer.json["error"]["message"]
    assert update(follower, task, {question["id"]: CLOSED}).status == 200


# --- a client that shows forms without following tasks --------------------------------------


def claimed(person: ApiClient, mcp: McpClient) -> Json:
    """The task that a call has started, claimed by a worker."""
    response = person.post("/agent/summarizer/claim", headers={"Prefer": "wait=30"})
    return dict(expect(response, 200))


def test_call_asks_and_continues_with_its_task(forms: McpClient, alice: ApiClient) -> None:
    register_served_tool(alice)
    arguments = {"mailbox": "office"}
    with forms.calling("summarizer", arguments) as call:
        task = claimed(alice, forms)
        question = ask(alice, task)
        asked = call.result()
    assert asked["resultType"] == "input_required"
    assert asked["inputRequests"] == {question["id"]: form()}
    assert asked["requestState"] == task["id"]
    again = {"inputResponses": {question["id"]: YES}, "requestState": asked["requestState"]}
    with forms.calling("summarizer", arguments, **again) as call:
        path = f"/task/{task['id']}/question/{question['id']}"
        answered = expect(alice.get(path, headers={"Prefer": "wait=30"}), 200)
        alice.report(task, status="complete", output=answered["answer"])
        result = call.result()
    assert structured(result)["output"] == {"deploy": True}
    assert len(expect(alice.get("/task"), 200)) == 1


def test_wait_asks_too(forms: McpClient, alice: ApiClient, task: Json) -> None:
    with forms.calling("wait_task", {"taskId": task["id"]}) as call:
        question = ask(alice, task)
        asked = call.result()
    assert asked["resultType"] == "input_required"
    again = {"inputResponses": {question["id"]: DECLINED}, "requestState": asked["requestState"]}
    arguments = {"taskId": task["id"], "seconds": 0}
    result = forms.call("wait_task", arguments, **again)
    assert structured(result)["status"] == "running"
    assert question_of(alice, task, question)["state"] == "declined"


def test_closed_form_ends_the_call_with_the_question_open(
    forms: McpClient, alice: ApiClient, task: Json
) -> None:
    """`claude -p` closes each form by itself: asking again would never end."""
    alice.register(tool=True)
    question = ask(alice, task)
    again = {"inputResponses": {question["id"]: CLOSED}, "requestState": task["id"]}
    result = forms.call("summarizer", {}, **again)
    assert result["resultType"] == "complete"
    content = structured(result)
    assert content["status"] == "running"
    assert [asked["questionId"] for asked in content["questions"]] == [question["id"]]
    assert question_of(alice, task, question)["state"] == "open"


def test_response_that_does_not_fit_is_an_error_of_the_call(
    forms: McpClient, alice: ApiClient, task: Json
) -> None:
    alice.register(tool=True)
    question = ask(alice, task)
    again = {"inputResponses": {question["id"]: UNFIT[-1]}, "requestState": task["id"]}
    result = forms.call("summarizer", {}, **again)
    assert result["isError"] is True
    assert task["id"] in result["content"][0]["text"]
    assert question_of(alice, task, question)["state"] == "open"


def test_state_of_another_agent_user_or_task_starts_nothing(
    forms: McpClient, alice: ApiClient, bob: ApiClient, task: Json
) -> None:
    other, others, deleted = alice.start("other"), bob.start(), alice.start()
    alice.delete(f"/task/{deleted['id']}")
    before = expect(alice.get("/task?fields=id"), 200)
    states = [other["id"], others["id"], deleted["id"], "", "nothing", None, 5, {}]
    for state in states:
        call = {"name": "summarizer", "arguments": {}, "requestState": state}
        assert forms.modern("tools/call", call).refused == (200, -32602)
    call = {"name": "wait_task", "arguments": {"taskId": task["id"]}, "requestState": other["id"]}
    assert forms.modern("tools/call", call).refused == (200, -32602)
    assert expect(alice.get("/task?fields=id"), 200) == before


# --- a client without forms --------------------------------------------------------------


def test_call_that_waits_ends_with_the_question(
    plain: McpClient, alice: ApiClient, task: Json
) -> None:
    with plain.calling("wait_task", {"taskId": task["id"]}) as call:
        question = ask(alice, task)
        content = structured(call.result())
    assert content["status"] == "running"
    assert content["questions"] == [
        {"questionId": question["id"], "message": "Deploy to production?", "schema": SCHEMA}
    ]
    assert "answer_task" in content["next"]


def test_model_answers_by_a_tool(plain: McpClient, alice: ApiClient, task: Json) -> None:
    question = ask(alice, task)
    arguments = {"taskId": task["id"], "questionId": question["id"]}
    wrong = plain.call("answer_task", arguments | {"content": {"deploy": "yes"}})
    assert wrong["isError"] is True
    assert "content.deploy" in wrong["content"][0]["text"]
    both = plain.call("answer_task", arguments | {"content": {"deploy": True}, "decline": True})
    assert both["isError"] is True
    for _ in range(2):
        result = plain.call("answer_task", arguments | {"content": {"deploy": True}})
        assert structured(result)["state"] == "answered"
    assert question_of(alice, task, question)["answer"] == {"deploy": True}
    late = plain.call("answer_task", arguments | {"decline": True})
    assert late["content"][0]["text"].startswith("The question is answered: {")


def test_model_declines_by_a_tool(plain: McpClient, alice: ApiClient, task: Json) -> None:
    question = ask(alice, task)
    arguments = {"taskId": task["id"], "questionId": question["id"], "decline": True}
    assert structured(plain.call("answer_task", arguments))["state"] == "declined"


def test_message_of_a_question_is_told_as_it_is(
    plain: McpClient, follower: McpClient, alice: ApiClient, task: Json
) -> None:
    message = "<b>\u202e名前</b>\x1b[31m" + "x" * 3_900
    question = ask(alice, task, message)
    content = structured(plain.call("wait_task", {"taskId": task["id"], "seconds": 0}))
    assert content["questions"][0]["message"] == message
    state = follower.state(task["id"])
    assert state["inputRequests"][question["id"]]["params"]["message"] == message
    assert state["statusMessage"].isprintable()
    assert len(state["statusMessage"]) == 200
