"""Calls that start tasks, and the extension for clients that follow them."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask

from taskservice import resources
from taskservice.config import Config
from taskservice.database.engine import Database
from taskservice.database.watcher import WaitSlots
from taskservice.mcp import tool_calls
from tests.support.api_client import ApiClient, expect
from tests.support.internals import end_for_silence, in_use, set_columns
from tests.support.marks import one_database
from tests.support.mcp import FORMS, TASKS, Json, McpClient, register_served_tool, structured
from tests.support.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def mcp(alice: ApiClient) -> McpClient:
    """A client that follows tasks and shows forms."""
    alice.register(tool=True)
    return McpClient(alice, TASKS, FORMS)


@pytest.fixture
def plain(alice: ApiClient) -> McpClient:
    """A client that does neither."""
    register_served_tool(alice)
    return McpClient(alice)


def claimed(person: ApiClient, agent_id: str = "summarizer") -> Json:
    """The next task of an agent, as soon as there is one."""

    def claim() -> Any:
        return person.post(f"/agent/{agent_id}/claim").json

    return dict(until(claim))


# --- a call that becomes a task ----------------------------------------------------------


def test_call_becomes_a_task_that_a_worker_can_claim(mcp: McpClient, alice: ApiClient) -> None:
    result = mcp.call("summarizer", {"mailbox": "office"})
    assert result["resultType"] == "task"
    task = claimed(alice)
    assert result["taskId"] == task["id"]
    assert (task["input"], task["labels"]) == ({"mailbox": "office"}, {"via": "mcp"})
    assert (task["callback"], task["name"]) == (None, "summarizer")
    assert {name: result[name] for name in ("status", "createdAt", "lastUpdatedAt", "ttlMs")} == {
        "status": "working",
        "createdAt": task["createdAt"],
        "lastUpdatedAt": task["createdAt"],
        "ttlMs": None,
    }
    assert result["pollIntervalMs"] == 2_000
    assert result["statusMessage"] == "waits for a worker"
    assert not {"result", "task", "requestState", "inputRequests"} & result.keys()


def test_task_that_ends_at_once_is_a_result(mcp: McpClient, alice: ApiClient) -> None:
    with mcp.calling("summarizer") as call:
        alice.report(claimed(alice), status="complete", output={"sum": 15})
        result = call.result()
    if result["resultType"] == "task":
        # The machine was too slow for half a second.
        result = mcp.state(result["taskId"])["result"]
    assert structured(result)["output"] == {"sum": 15}


@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_client_without_the_extension_never_gets_a_task(
    plain: McpClient, alice: ApiClient, era: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(getattr(plain, era), "tools/call", {"name": "summarizer"})
        alice.report(claimed(alice), status="complete", output={"text": "Done: ü"})
        result = call.result().result
    assert result["content"] == [{"type": "text", "text": "Done: ü"}]
    era_keys = {"resultType", "_meta"} if era == "modern" else set()
    assert result.keys() == {"content", "structuredContent"} | era_keys


# --- without a worker --------------------------------------------------------------------


@pytest.mark.parametrize("is_run", [False, True], ids=["nobody", "a run of the agent"])
def test_call_for_an_agent_without_a_worker_is_answered_at_once(
    alice: ApiClient, is_run: bool
) -> None:
    alice.register(tool=True)
    if is_run:
        alice.start(claim=True)
    began = time.monotonic()
    result = structured(McpClient(alice).call("summarizer"))
    assert time.monotonic() - began < tool_calls.MAX_SECONDS
    assert (result["agentId"], result["status"]) == ("summarizer", "running")
    assert result["noWorker"] == "No worker has asked for a task of this agent yet"
    assert "taskservice work --agent summarizer -- CMD" in result["next"]
    waited = structured(
        McpClient(alice).call("wait_task", {"taskId": result["taskId"], "seconds": 0})
    )
    assert waited == result
    task = claimed(alice)
    assert task["id"] == result["taskId"]


def test_worker_that_takes_the_task_is_waited_for(
    alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has just started, so this process knows nothing of it yet."""
    monkeypatch.setattr(tool_calls, "SHORT_SECONDS", PATIENCE_SECONDS)
    alice.register(tool=True)
    with McpClient(alice).calling("summarizer") as call:
        alice.report(claimed(alice), status="complete", output={"sum": 15})
        assert structured(call.result())["output"] == {"sum": 15}


# --- tasks/get ---------------------------------------------------------------------------


def test_running_task_is_working_with_its_note_or_its_last_line(
    mcp: McpClient, alice: ApiClient
) -> None:
    task_id = mcp.call("summarizer")["taskId"]
    assert mcp.state(task_id)["statusMessage"] == "waits for a worker"
    task = claimed(alice)
    assert mcp.state(task_id)["statusMessage"] == "is running"
    alice.append(task, "first", "second " + "x" * 300, "", " ")
    state = mcp.state(task_id)
    assert state["statusMessage"] == "second " + "x" * 192 + "…"
    alice.append(task, "\x1b]0;title\x07red\u202egnp.exe")
    assert mcp.state(task_id)["statusMessage"].isprintable()
    alice.report(task, note="34 of 68 pages")
    state = mcp.state(task_id)
    assert state["statusMessage"] == "34 of 68 pages"
    assert state["status"] == "working"
    assert state["lastUpdatedAt"] == alice.task(task)["updatedAt"]
    assert state["resultType"] == "complete"
    assert not {"result", "error", "inputRequests"} & state.keys()


def test_complete_task_is_completed_with_its_result(mcp: McpClient, alice: ApiClient) -> None:
    task_id = mcp.call("summarizer")["taskId"]
    alice.report(claimed(alice), status="complete", output={"sum": 15})
    state = mcp.state(task_id)
    assert state["status"] == "completed"
    assert structured(state["result"]) == {
        "taskId": task_id,
        "agentId": "summarizer",
        "status": "complete",
        "output": {"sum": 15},
    }
    assert state["result"]["content"] == [{"type": "text", "text": '{"sum":15}'}]
    assert "isError" not in state["result"]
    assert state["ttlMs"] is None


@pytest.mark.parametrize("error_type", ["failed", "timeout"])
def test_failed_task_is_completed_with_an_error(
    app: Flask, mcp: McpClient, alice: ApiClient, error_type: str
) -> None:
    """What its result contains is as in a call that waits."""
    task_id = mcp.call("summarizer")["taskId"]
    error = {"type": error_type, "message": "Its agent fell silent"}
    if error_type == "timeout":
        end_for_silence(app, {"id": task_id})
    else:
        alice.report(claimed(alice), status="error", error={"message": error["message"]})
    state = mcp.state(task_id)
    assert state["status"] == "completed"
    assert state["result"]["isError"] is True
    assert structured(state["result"])["error"] == error


def test_running_task_is_cancelled_and_a_finished_one_is_not(
    mcp: McpClient, alice: ApiClient
) -> None:
    finished = mcp.call("summarizer")["taskId"]
    alice.report(claimed(alice), status="complete")
    running = mcp.call("summarizer")["taskId"]
    for task_id, status in ((running, "cancelled"), (finished, "completed")):
        for _ in range(2):
            answer = mcp.modern("tasks/cancel", {"taskId": task_id}).result
            assert answer.keys() == {"resultType", "_meta"}
        assert mcp.state(task_id)["status"] == status
    assert alice.task({"id": running})["error"]["type"] == "cancelled"


@one_database
def test_old_task_is_polled_less_often(app: Flask, mcp: McpClient) -> None:
    task_id = mcp.call("summarizer")["taskId"]
    assert mcp.state(task_id)["pollIntervalMs"] == 2_000
    set_columns(app, {"id": task_id}, created_at="2026-01-01T00:00:00.000Z")
    assert mcp.state(task_id)["pollIntervalMs"] == 10_000


@one_database
def test_finished_task_tells_how_long_it_is_kept(
    app: Flask, config: Config, mcp: McpClient, alice: ApiClient
) -> None:
    app.config["RETENTION_DAYS"] = 2.0
    task_id = mcp.call("summarizer")["taskId"]
    assert mcp.state(task_id)["ttlMs"] is None
    alice.report(claimed(alice), status="complete")
    times = {"created_at": "2026-01-01T00:00:00.000Z", "finished_at": "2026-01-01T00:01:00.500Z"}
    set_columns(app, {"id": task_id}, **times)
    assert mcp.state(task_id)["ttlMs"] == 2 * 86_400_000 + 60_500


# --- waits -------------------------------------------------------------------------------


def test_calls_without_a_place_are_answered_at_once(
    app: Flask, plain: McpClient, alice: ApiClient
) -> None:
    """The app of the tests has two slots."""
    task = alice.start()
    with ExitStack() as stack:
        waiting = {"taskId": task["id"]}
        calls = [stack.enter_context(plain.calling("wait_task", waiting)) for _ in range(2)]
        until(lambda: len(resources.find(WaitSlots, app)._held) == 2)
        assert structured(plain.call("summarizer"))["status"] == "running"
        alice.report(task, status="complete")
        assert {structured(call.result())["status"] for call in calls} == {"complete"}


def test_call_that_waits_holds_no_connection(
    app: Flask, plain: McpClient, alice: ApiClient
) -> None:
    task = alice.start()
    with plain.calling("wait_task", {"taskId": task["id"]}) as call:
        until(lambda: len(resources.find(WaitSlots, app)._held) == 1)
        with app.app_context():
            reads = resources.find(Database).reads
            # Between two looks at the database, not counting the watcher's.
            until(lambda: in_use(reads) == 0)
        alice.report(task, status="complete")
        assert structured(call.result())["status"] == "complete"


def test_revoked_key_ends_the_call_that_waits(plain: McpClient, alice: ApiClient) -> None:
    task = alice.start()
    guest = alice.with_key("guest")
    key = next(key for key in expect(alice.get("/key"), 200) if key["name"] == "guest")
    params = {"name": "wait_task", "arguments": {"taskId": task["id"]}}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(McpClient(guest).modern, "tools/call", params)
        expect(alice.delete(f"/key/{key['id']}"), 200)
        answer = call.result()
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="taskservice"'


# --- idempotency -------------------------------------------------------------------------

KEY = "taskservice/idempotencyKey"


@pytest.mark.parametrize("is_header", [True, False])
def test_same_key_starts_once(mcp: McpClient, alice: ApiClient, is_header: bool) -> None:
    def call(arguments: Json) -> Json:
        params: Json = {"name": "summarizer", "arguments": arguments}
        if not is_header:
            params["_meta"] = {KEY: "k"}
        headers = {"Idempotency_Key": "k"} if is_header else {}
        return mcp.modern("tools/call", params, **headers).result

    first, again = call({"a": 1, "b": [2]}), call({"b": [2], "a": 1})
    assert first["taskId"] == again["taskId"]
    other = call({"a": 2})
    assert other["isError"] is True
    assert "Was used with another body" in other["content"][0]["text"]
    assert len(expect(alice.get("/task"), 200)) == 1


@one_database
def test_same_id_of_json_rpc_starts_twice(mcp: McpClient, alice: ApiClient) -> None:
    for _ in range(2):
        body = {"name": "start_task", "arguments": {"agentId": "summarizer"}}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}
        assert mcp.post(request).status == 200
    assert len(expect(alice.get("/task"), 200)) == 2


@one_database
def test_key_that_is_too_long_is_refused(mcp: McpClient, alice: ApiClient) -> None:
    for key in ("", "k" * 256):
        params = {"name": "summarizer", "_meta": {KEY: key}}
        assert mcp.modern("tools/call", params).result["isError"] is True
    assert expect(alice.get("/task"), 200) == []


def test_same_key_continues_with_the_same_task(plain: McpClient, alice: ApiClient) -> None:
    for _ in range(2):
        with plain.calling("summarizer", {}, _meta={KEY: "k"}) as call:
            if not expect(alice.get("/task?status=complete"), 200):
                alice.report(claimed(alice), status="complete", output={"sum": 15})
            assert structured(call.result())["output"] == {"sum": 15}
    assert len(expect(alice.get("/task"), 200)) == 1
