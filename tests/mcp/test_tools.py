"""Agents as tools, the tools that every user has, and what their results contain."""

import hashlib
import json
import re
from typing import Any

import pytest
from flask import Flask

from taskservice import auth
from taskservice.background.maintenance import Maintenance
from taskservice.services import lists, search
from taskservice.terms import MAX_LABELS
from tests.support.api_client import ApiClient, expect
from tests.support.clocks import Clocks
from tests.support.internals import end_for_silence, hang
from tests.support.marks import one_database
from tests.support.mcp import TASKS, Json, McpClient, structured

READING = ["wait_task", "read_log", "list_tasks", "search_logs", "attention"]
FIXED = ["start_task", "rerun_task", *READING, "answer_task", "cancel_task"]
# What every client takes as a name.
NAME = re.compile("[a-z0-9_]{1,40}")


def hashed(agent_id: str, beginning: str) -> str:
    return f"{beginning}_{hashlib.sha256(agent_id.encode()).hexdigest()[:6]}"


# --- the list ----------------------------------------------------------------------------


def test_agents_are_tools_before_the_fixed_ones(alice: ApiClient, mcp: McpClient) -> None:
    alice.register(
        "backup", name="Nightly backup ü", description="Saves everything.\n名前", tool=True
    )
    alice.register("a-2.b", tool=True)
    tools = mcp.tools()
    assert list(tools) == ["a_2_b", "backup", *FIXED]
    assert tools["a_2_b"]["description"] == "Starts a task of the agent a-2.b."
    assert tools["backup"] == {
        "name": "backup",
        "title": "Nightly backup ü",
        "description": "Saves everything.\n名前",
        "inputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
    }


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
    "required": ["city"],
    "additionalProperties": False,
}


def test_tool_has_the_schema_and_the_hints_of_its_agent(alice: ApiClient, mcp: McpClient) -> None:
    alice.register("weather", inputSchema=SCHEMA, annotations={"readOnlyHint": True}, tool=True)
    tool = mcp.tools()["weather"]
    assert tool["inputSchema"] == SCHEMA
    assert tool["annotations"] == {"readOnlyHint": True, "openWorldHint": True}
    unfit: Json = {"days": 8, "more": 1}
    started: Json = {"agentId": "weather", "input": unfit}
    for name, arguments in (("weather", unfit), ("start_task", started)):
        refused = mcp.call(name, arguments)
        assert refused["isError"] is True
        for place in ("city", "days", "more"):
            assert f"input.{place}: " in refused["content"][0]["text"]
    assert expect(alice.get("/task"), 200) == []


def test_agent_that_is_not_a_tool_is_started_by_id_alone(alice: ApiClient, mcp: McpClient) -> None:
    alice.register("hidden", tool=False)
    assert list(mcp.tools()) == FIXED
    assert mcp.modern("tools/call", {"name": "hidden"}).refused == (200, -32602)
    assert structured(mcp.call("start_task", {"agentId": "hidden"}))["agentId"] == "hidden"


@one_database
def test_fixed_tools_say_what_they_do_and_take(mcp: McpClient) -> None:
    tools = mcp.tools()
    assert list(tools) == FIXED
    for tool in tools.values():
        assert tool["title"]
        assert tool["description"]
        assert tool["inputSchema"]["type"] == "object"
        assert "outputSchema" not in tool
        for field in tool["inputSchema"]["properties"].values():
            assert field["description"]
    reads = [name for name, tool in tools.items() if tool["annotations"]["readOnlyHint"]]
    assert reads == READING


def test_no_agent_of_another_user_is_a_tool(
    alice: ApiClient, bob: ApiClient, mcp: McpClient
) -> None:
    bob.register("secret", tool=True)
    assert "secret" not in mcp.tools()
    assert mcp.modern("tools/call", {"name": "secret"}).refused == (200, -32602)


def test_name_that_is_too_long_taken_or_fixed_ends_with_a_digest(
    alice: ApiClient, mcp: McpClient
) -> None:
    long, other = "a" * 40 + "1", "a" * 40 + "2"
    for agent_id in ("b-c", "b.c", "b_c", "start-task", "wait_task", long, other, "a" * 40):
        alice.register(agent_id, tool=True)
    assert {name: tool["title"] for name, tool in mcp.tools().items() if name not in FIXED} == {
        "a" * 40: "a" * 40,
        hashed(long, "a" * 33): long,
        hashed(other, "a" * 33): other,
        hashed("b-c", "b_c"): "b-c",
        hashed("b.c", "b_c"): "b.c",
        hashed("b_c", "b_c"): "b_c",
        hashed("start-task", "start_task"): "start-task",
        hashed("wait_task", "wait_task"): "wait_task",
    }
    follower = McpClient(alice, TASKS)
    for name, tool in mcp.tools().items():
        assert NAME.fullmatch(name)
        if name not in FIXED:
            task = alice.task({"id": follower.call(name)["taskId"]})
            assert task["agentId"] == tool["title"]


def test_name_never_passes_to_an_agent_with_another_id(alice: ApiClient, mcp: McpClient) -> None:
    follower = McpClient(alice, TASKS)

    def runs(name: str) -> str | None:
        """The agent whose task a call of this tool starts; None if there is no such tool."""
        answer = follower.modern("tools/call", {"name": name})
        if "error" in answer.json:
            assert answer.refused == (200, -32602)
            return None
        return str(expect(alice.get(f"/task/{answer.result['taskId']}"), 200)["agentId"])

    alice.register("deploy_prod", tool=True)
    assert runs("deploy_prod") == "deploy_prod"
    alice.register("deploy-prod", tool=True)
    assert runs("deploy_prod") is None
    assert runs(hashed("deploy_prod", "deploy_prod")) == "deploy_prod"
    assert runs(hashed("deploy-prod", "deploy_prod")) == "deploy-prod"
    # Nor does an agent without a tool leave its name to another.
    alice.register("clean-up", tool=True)
    assert runs("clean_up") == "clean-up"
    alice.register("clean.up", tool=False)
    assert runs("clean_up") is None
    assert runs(hashed("clean-up", "clean_up")) == "clean-up"
    # An ID is the name that another has by its digest.
    taken = hashed("clean-up", "clean_up")
    alice.register(taken, tool=True)
    assert runs(taken) is None
    assert runs(hashed(taken, taken[:33])) == taken


def test_agents_whose_digests_are_the_same_are_started_by_id_alone(
    alice: ApiClient, mcp: McpClient
) -> None:
    agents = [f"{'a' * 38}-{number}" for number in (351, 4113)]
    for agent_id in agents:
        alice.register(agent_id, tool=True)
    (name,) = {hashed(agent_id, "a" * 33) for agent_id in agents}
    tools = mcp.tools()
    assert list(tools) == FIXED
    assert tools["start_task"]["description"].endswith(f"no separate tool: {', '.join(agents)}.")
    assert mcp.modern("tools/call", {"name": name}).refused == (200, -32602)


def test_agent_is_a_tool_from_the_first_claim_of_a_worker_on(
    alice: ApiClient, mcp: McpClient, clocks: Clocks
) -> None:
    alice.register("backup")
    assert list(mcp.tools()) == FIXED
    expect(alice.post("/agent/backup/claim"), 204)
    # No round of maintenance was between, and another process reads it in the database.
    auth.worker_claims.clear()
    assert list(mcp.tools()) == ["backup", *FIXED]
    clocks.go_on(31 * 86_400)
    assert list(mcp.tools()) == FIXED
    expect(alice.post("/agent/backup/claim"), 204)
    assert list(mcp.tools()) == ["backup", *FIXED]


def test_agent_is_a_tool_while_a_worker_was_seen_in_the_last_30_days(
    app: Flask, alice: ApiClient, mcp: McpClient, clocks: Clocks
) -> None:
    for agent_id, tool in (("served", None), ("idle", None), ("chosen", True), ("hidden", False)):
        alice.register(agent_id, tool=tool)
    assert list(mcp.tools()) == ["chosen", *FIXED]
    assert mcp.modern("tools/call", {"name": "served"}).refused == (200, -32602)
    for agent_id in ("served", "hidden"):
        expect(alice.post(f"/agent/{agent_id}/claim"), 204)
    Maintenance(app).do_round()
    assert list(mcp.tools()) == ["chosen", "served", *FIXED]
    assert McpClient(alice, TASKS).call("served")["resultType"] == "task"
    clocks.go_on(29 * 86_400)
    assert list(mcp.tools()) == ["chosen", "served", *FIXED]
    clocks.go_on(86_400 + 60)
    assert list(mcp.tools()) == ["chosen", *FIXED]


def test_agents_that_were_tools_first_stay(
    app: Flask, alice: ApiClient, mcp: McpClient, clocks: Clocks
) -> None:
    alice.register("old")
    for number in range(64):
        alice.register(f"agent-{number:02}", tool=True)
    first = [f"agent_{number:02}" for number in range(64)]
    assert list(mcp.tools()) == first + FIXED
    # Whatever is registered later, gets a worker, or is chosen again.
    alice.register("0", tool=True)
    expect(alice.post("/agent/old/claim"), 204)
    Maintenance(app).do_round()
    alice.register("agent-63", tool=True)
    tools = mcp.tools()
    assert list(tools) == first + FIXED
    assert tools["start_task"]["description"].endswith("no separate tool: 0, old.")
    assert mcp.modern("tools/call", {"name": "old"}).refused == (200, -32602)
    # One that was not a tool for a time comes after the others.
    alice.register("agent-00", tool=False)
    assert list(mcp.tools()) == ["0", *first[1:], *FIXED]
    alice.register("agent-00", tool=True)
    assert list(mcp.tools()) == ["0", *first[1:], *FIXED]


TEXTS = [
    "名前 🎉",
    "עברית",
    "العربية",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "e\u0301",
    "'\"\\",
]


def test_names_in_every_script_are_told_as_they_are(alice: ApiClient, mcp: McpClient) -> None:
    for number, text in enumerate(TEXTS):
        alice.register(f"agent{number}", name=text, description=text, tool=True)
    tools = mcp.tools()
    for number, text in enumerate(TEXTS):
        tool = tools[f"agent{number}"]
        assert (tool["title"], tool["description"]) == (text, text)
    started = structured(mcp.call("start_task", {"agentId": "agent0", "input": {"名": TEXTS}}))
    task = expect(alice.get(f"/task/{started['taskId']}"), 200)
    assert (task["name"], task["input"]) == (TEXTS[0], {"名": TEXTS})
    alice.append(task, *TEXTS)
    read = structured(mcp.call("read_log", {"taskId": task["id"]}))
    assert read["lines"] == TEXTS


def test_numbers_are_kept_exactly(alice: ApiClient, mcp: McpClient) -> None:
    alice.register(tool=True)
    text = '{"n":12345678901234567890123,"x":0.1000000000000000000001}'
    arguments = f'{{"agentId":"summarizer","input":{text}}}'
    call = f'{{"name":"start_task","arguments":{arguments}}}'
    body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{call}}}'.encode()
    task_id = mcp.post(body).result["structuredContent"]["taskId"]
    assert f'"input":{text}' in alice.get(f"/task/{task_id}").text
    alice.patch(f"/task/{task_id}", data=b'{"status":"complete","output":' + text.encode() + b"}",
                content_type="application/json")  # fmt: skip
    result = mcp.call("wait_task", {"taskId": task_id})
    assert result["content"][0]["text"] == text


# --- results -----------------------------------------------------------------------------


def result_of(mcp: McpClient, task: Json) -> Json:
    return mcp.call("wait_task", {"taskId": task["id"], "seconds": 0})


def test_running_task_has_its_last_lines_and_what_to_do_next(
    alice: ApiClient, mcp: McpClient
) -> None:
    task = alice.start()
    assert structured(result_of(mcp, task))["note"] == "waits for a worker"
    expect(alice.post("/agent/summarizer/claim"), 200)
    assert "note" not in structured(result_of(mcp, task))
    alice.append(task, *(f"line {number}" for number in range(10)))
    alice.report(task, note="10 of 20 lines")
    result = result_of(mcp, task)
    assert structured(result) == {
        "taskId": task["id"],
        "agentId": "summarizer",
        "status": "running",
        "log": [f"line {number}" for number in range(5, 10)],
        "note": "10 of 20 lines",
        "next": "Call wait_task with this taskId.",
    }
    assert json.loads(result["content"][0]["text"]) == structured(result)
    assert "isError" not in result


OUTPUTS: list[tuple[Json, str]] = [
    ({}, "{}"),
    ({"text": "All of it:\n名前"}, "All of it:\n名前"),
    ({"text": ""}, ""),
    ({"text": 5}, '{"text":5}'),
    ({"sum": 1, "text": "a"}, '{"sum":1,"text":"a"}'),
    ({"ü": ["\u202e"]}, '{"ü":["\u202e"]}'),
]


@pytest.mark.parametrize(("output", "text"), OUTPUTS)
@one_database
def test_complete_task_has_its_output_twice(
    alice: ApiClient, mcp: McpClient, output: Json, text: str
) -> None:
    task = alice.start()
    alice.report(task, status="complete", output=output)
    result = result_of(mcp, task)
    assert result["content"] == [{"type": "text", "text": text}]
    assert structured(result)["output"] == output
    assert structured(result)["status"] == "complete"


def test_output_of_a_megabyte_is_told_by_its_start(alice: ApiClient, mcp: McpClient) -> None:
    task = alice.start()
    output = {"text": "ü" * 524_000}
    # With escapes it would be longer than a body may be.
    report = json.dumps({"status": "complete", "output": output}, ensure_ascii=False).encode()
    path = f"/task/{task['id']}"
    expect(alice.patch(path, data=report, content_type="application/json"), 200)
    text = json.dumps(output, ensure_ascii=False, separators=(",", ":"))
    content = structured(result_of(mcp, task))
    assert content["outputBytes"] == len(text.encode())
    assert text.startswith(content["outputStart"])
    assert 32_000 < len(content["outputStart"].encode()) <= 32 * 1024
    assert "output" not in content
    path = re.findall(r"GET (\S+)", content["next"])[0]
    assert expect(alice.get(path.removeprefix("/api/v1")), 200) == {"output": output}


def test_failed_task_is_an_error_with_its_log(alice: ApiClient, mcp: McpClient) -> None:
    task = alice.start()
    alice.append(task, *(f"line {number}" for number in range(30)), "x" * 60_000)
    alice.report(task, status="error", error={"message": "m" * 60_000})
    result = result_of(mcp, task)
    assert result["isError"] is True
    content = structured(result)
    assert (content["status"], content["error"]["type"]) == ("error", "failed")
    assert content["error"]["message"] == "m" * 7_999 + "…"
    assert content["log"] == [f"line {number}" for number in range(11, 30)] + ["x" * 999 + "…"]
    assert json.loads(result["content"][0]["text"]) == content


@pytest.mark.parametrize(
    ("method", "action", "reason"), [("POST", "/cancel", "cancelled"), ("DELETE", "", "not found")]
)
def test_task_that_is_cancelled_or_deleted_ends_the_call_that_waits(
    alice: ApiClient, mcp: McpClient, method: str, action: str, reason: str
) -> None:
    task = alice.start()
    with mcp.calling("wait_task", {"taskId": task["id"]}) as call:
        expect(alice.request(method, f"/task/{task['id']}{action}"), 200)
        result = call.result()
    assert result["isError"] is True
    assert reason in result["content"][0]["text"]


# --- the fixed tools ---------------------------------------------------------------------


def test_start_task_returns_at_once(alice: ApiClient, mcp: McpClient) -> None:
    alice.register(tool=True)
    content = structured(mcp.call("start_task", {"agentId": "summarizer", "input": {"a": 1}}))
    assert (content["status"], content["log"]) == ("running", [])
    task = expect(alice.get(f"/task/{content['taskId']}"), 200)
    assert (task["input"], task["labels"], task["claimedAt"]) == ({"a": 1}, {"via": "mcp"}, None)


def test_rerun_task_starts_the_same_again_or_with_another_input(
    alice: ApiClient, mcp: McpClient
) -> None:
    labels = {"env": "prod"}
    failed = alice.start(name="nightly", input={"a": 1}, labels=labels, claim=True)
    alice.report(failed, status="error", error={"message": "no"})
    again = structured(mcp.call("rerun_task", {"taskId": failed["id"].upper()}))
    assert (again["status"], again["agentId"]) == ("running", "summarizer")
    task = expect(alice.get(f"/task/{again['taskId']}"), 200)
    assert (task["rerunOf"], task["name"], task["input"]) == (failed["id"], "nightly", {"a": 1})
    assert (task["labels"], task["claimedAt"]) == (labels | {"via": "mcp"}, None)
    other = mcp.call("rerun_task", {"taskId": failed["id"], "input": {"a": 2}})
    assert alice.task({"id": structured(other)["taskId"]})["input"] == {"a": 2}


def test_rerun_of_a_task_with_all_the_labels_it_can_have(alice: ApiClient, mcp: McpClient) -> None:
    labels = {f"label{number}": "x" for number in range(MAX_LABELS)}
    task = alice.start(labels=labels)
    again = structured(mcp.call("rerun_task", {"taskId": task["id"]}))
    assert alice.task({"id": again["taskId"]})["labels"] == labels


def test_repeated_rerun_with_the_same_key_starts_one_task(alice: ApiClient, mcp: McpClient) -> None:
    task = alice.start()
    key = {"_meta": {"taskservice/idempotencyKey": "k-1"}}
    first, second = (mcp.call("rerun_task", {"taskId": task["id"]}, **key) for _ in range(2))
    assert structured(first)["taskId"] == structured(second)["taskId"]
    refused = mcp.call("rerun_task", {"taskId": task["id"], "input": {"b": 1}}, **key)
    assert refused["isError"] is True


def test_rerun_checks_the_input_by_the_schema_of_the_agent(
    alice: ApiClient, mcp: McpClient
) -> None:
    task = alice.start()
    alice.register(inputSchema=SCHEMA)
    refused = mcp.call("rerun_task", {"taskId": task["id"], "input": {"days": 8}})
    assert refused["isError"] is True
    assert "city" in refused["content"][0]["text"]


@pytest.mark.parametrize("tool", ["start_task", "rerun_task"])
def test_task_without_a_worker_starts_with_a_warning(
    alice: ApiClient, mcp: McpClient, tool: str
) -> None:
    task = alice.start("backup")
    arguments = {"taskId": task["id"]} if tool == "rerun_task" else {"agentId": "backup"}
    waiting = structured(mcp.call(tool, arguments))
    assert waiting["noWorker"] == "No worker has asked for a task of this agent yet"
    assert "Tell your user" in waiting["next"]
    expect(alice.post("/agent/backup/claim"), 200)
    seen = structured(mcp.call(tool, arguments))
    assert "noWorker" not in seen
    assert seen["next"] == "Call wait_task with this taskId."


def test_attention_is_what_the_api_lists(alice: ApiClient, bob: ApiClient, mcp: McpClient) -> None:
    assert structured(mcp.call("attention")) == {"items": []}
    for person in (alice, bob):
        person.report(person.start("backup", claim=True), status="error")
        asking = person.start(claim=True)
        expect(person.post(f"/task/{asking['id']}/question", json={"message": "Delete?"}), 201)
    items = structured(mcp.call("attention"))["items"]
    assert [(item["kind"], item["agentId"]) for item in items] == [
        ("question", "summarizer"),
        ("broken", "backup"),
    ]
    assert items == expect(alice.get("/attention"), 200)


def test_wait_task_returns_after_its_seconds_or_when_the_task_ends(
    alice: ApiClient, mcp: McpClient
) -> None:
    task = alice.start()
    for seconds in (0, 0.05, 1):
        result = mcp.call("wait_task", {"taskId": task["id"], "seconds": seconds})
        assert structured(result)["status"] == "running"
    with mcp.calling("wait_task", {"taskId": task["id"].upper(), "seconds": 45}) as call:
        alice.report(task, status="complete", output={"sum": 15})
        assert structured(call.result())["output"] == {"sum": 15}


def test_task_of_another_user_is_not_found_by_any_tool(bob: ApiClient, mcp: McpClient) -> None:
    task = bob.start(claim=True)
    question = expect(bob.post(f"/task/{task['id']}/question", json={"message": "May I?"}), 201)
    calls: dict[str, Json] = {
        "wait_task": {},
        "read_log": {},
        "rerun_task": {},
        "cancel_task": {},
        "answer_task": {"questionId": question["id"], "decline": True},
    }
    for name, arguments in calls.items():
        result = mcp.call(name, {"taskId": task["id"], **arguments})
        assert result["isError"] is True
        assert "not found" in result["content"][0]["text"]
    assert bob.task(task)["questions"] == [question]
    assert structured(mcp.call("list_tasks")) == {"tasks": []}


def read(mcp: McpClient, task: Json, **arguments: Any) -> Json:
    return structured(mcp.call("read_log", {"taskId": task["id"], **arguments}))


def test_read_log_has_the_last_hundred_lines_or_those_after_one(
    alice: ApiClient, mcp: McpClient
) -> None:
    task = alice.start()
    assert read(mcp, task) == {"taskId": task["id"], "status": "running", "lines": [], "next": 0}
    lines = [f"line {number}" for number in range(1, 251)]
    alice.append(task, *lines)
    last = read(mcp, task)
    assert (last["lines"], last["next"]) == (lines[150:], 250)
    assert read(mcp, task, limit=3)["lines"] == lines[247:]
    assert read(mcp, task, after=250)["lines"] == []
    assert read(mcp, task, after=1_000) == {**last, "lines": [], "next": 1_000}
    seen, after = list[str](), 0
    while (page := read(mcp, task, after=after, limit=60))["lines"]:
        seen += page["lines"]
        after = page["next"]
    assert seen == lines


def test_page_of_a_log_has_at_most_32_kib(alice: ApiClient, mcp: McpClient) -> None:
    task = alice.start()
    lines = ["ü" * 5_000, "x" * 60_000, *["y" * 1_000] * 100, "名" * 20_000]
    alice.append(task, *lines)
    first = read(mcp, task, after=0, limit=1_000)
    assert (first["lines"], first["next"]) == (lines[:1], 1)
    second = read(mcp, task, after=1, limit=1_000)
    assert (second["lines"], second["next"]) == (["x" * 32 * 1024], 2)
    third = read(mcp, task, after=2, limit=1_000)
    assert (third["lines"], third["next"]) == (lines[2:34], 34)
    last = read(mcp, task)
    assert (last["lines"], last["next"]) == (["名" * (32 * 1024 // 3)], 103)


@one_database
def test_log_of_a_million_lines_is_read_at_both_ends(alice: ApiClient, mcp: McpClient) -> None:
    task = alice.start()
    for first in range(0, 1_000_000, 250_000):
        text = "".join(f"{number}\n" for number in range(first + 1, first + 250_001))
        path = f"/task/{task['id']}/logs"
        expect(alice.post(path, data=text, content_type="text/plain"), 201)
    last = read(mcp, task)
    assert (last["lines"][0], last["lines"][-1], last["next"]) == ("999901", "1000000", 1_000_000)
    middle = read(mcp, task, after=499_999, limit=2)
    assert (middle["lines"], middle["next"]) == (["500000", "500001"], 500_001)
    assert structured(result_of(mcp, task))["log"][-1] == "1000000"
    state = McpClient(alice, TASKS).state(task["id"])
    assert state["statusMessage"] == "1000000"


def test_list_tasks_has_the_newest_first(alice: ApiClient, mcp: McpClient) -> None:
    first = alice.start(name="first")
    second = alice.start("other", name="second")
    alice.report(first, status="error", error={"message": "locked" + "!" * 2_000})
    alice.report(second, note="half")
    assert structured(mcp.call("list_tasks"))["tasks"] == [
        {
            "taskId": second["id"],
            "agentId": "other",
            "status": "running",
            "name": "second",
            "createdAt": second["createdAt"],
            "finishedAt": None,
            "note": "half",
        },
        {
            "taskId": first["id"],
            "agentId": "summarizer",
            "status": "error",
            "name": "first",
            "createdAt": first["createdAt"],
            "finishedAt": alice.task(first)["finishedAt"],
            "error": {"type": "failed", "message": "locked" + "!" * 993 + "…"},
        },
    ]


def listed(mcp: McpClient, **arguments: Any) -> list[str]:
    return [task["taskId"] for task in structured(mcp.call("list_tasks", arguments))["tasks"]]


def test_list_tasks_is_filtered_and_limited(alice: ApiClient, mcp: McpClient) -> None:
    tasks = [alice.start() for _ in range(25)] + [alice.start("other")]
    alice.report(tasks[3], status="complete")
    newest = [task["id"] for task in reversed(tasks)]
    assert listed(mcp) == newest[:20]
    assert listed(mcp, limit=50) == newest
    assert listed(mcp, agentId="other") == newest[:1]
    assert listed(mcp, status="complete") == [tasks[3]["id"]]
    assert listed(mcp, agentId="other", status="complete") == listed(mcp, agentId="Nobody\0") == []


def test_list_tasks_knows_what_failed_and_what_waits(
    app: Flask, alice: ApiClient, mcp: McpClient
) -> None:
    waiting, running, failed, silent, failed_later, cancelled = (
        alice.start(claim=number > 0) for number in range(6)
    )
    for task in (failed, failed_later):
        alice.report(task, status="error", error={"message": "no"})
    end_for_silence(app, silent)
    expect(alice.post(f"/task/{cancelled['id']}/cancel"), 200)
    assert listed(mcp, status="waiting") == [waiting["id"]]
    assert listed(mcp, status="hanging") == []
    hang(app, running)
    assert listed(mcp, status="hanging") == [running["id"]]
    state = structured(mcp.call("wait_task", {"taskId": running["id"], "seconds": 0}))
    assert state["hangingSince"] == alice.task(running)["hangingSince"]
    assert listed(mcp, status="running") == [running["id"], waiting["id"]]
    assert listed(mcp, status="failed") == [failed_later["id"], silent["id"], failed["id"]]
    assert listed(mcp, status="failed", limit=2) == [failed_later["id"], silent["id"]]
    assert listed(mcp, status="failed", agentId="other") == []
    assert mcp.call("search_logs", {"text": "a", "status": "failed"})["isError"] is True


def test_list_tasks_continues_where_a_search_stops(
    alice: ApiClient, mcp: McpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "FIRST_SEARCHED", 1)
    monkeypatch.setattr(lists, "MAX_SEARCHED", 2)
    monkeypatch.setattr(lists, "MAX_CANDIDATES", 0)
    tasks = [alice.start() for _ in range(12)]
    for task in (tasks[0], tasks[1], tasks[7]):
        alice.report(task, status="complete")
    for limit, numbers in ((1, [7]), (2, [7, 1]), (50, [7, 1, 0])):
        complete = listed(mcp, agentId="summarizer", status="complete", limit=limit)
        assert complete == [tasks[number]["id"] for number in numbers]


def test_search_logs_finds_lines_and_says_how_to_continue(
    alice: ApiClient, bob: ApiClient, mcp: McpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = alice.start(), alice.start("other")
    alice.append(first, "ok", "Disk full", "disk again")
    alice.append(second, "disk <b>")
    bob.append(bob.start(), "disk of bob")
    newest = [(second, 1, "disk <b>"), (first, 2, "Disk full"), (first, 3, "disk again")]
    texts = [f"{task['id']}:{line}: {text}" for task, line, text in newest]
    whole = mcp.call("search_logs", {"text": "disk"})
    assert whole["content"][0]["text"].splitlines() == texts
    content = whole["structuredContent"]
    assert [hit["agentId"] for hit in content["hits"]] == ["other", "summarizer", "summarizer"]
    assert content["searched"]["until"] is None
    assert "next" not in content
    assert mcp.call("search_logs", {"text": "disk", "limit": 50}) == whole
    page = mcp.call("search_logs", {"text": "disk", "limit": 2})
    *lines, notice = page["content"][0]["text"].splitlines()
    assert lines == texts[:2]
    cursor = page["structuredContent"]["next"]
    assert first["createdAt"] in notice
    assert cursor in notice
    rest = mcp.call("search_logs", {"text": "disk", "cursor": cursor})
    assert rest["content"][0]["text"] == texts[2]
    agent = {"text": "DISK", "agentId": "other", "status": "running"}
    assert mcp.call("search_logs", agent)["content"][0]["text"] == texts[0]
    nothing = mcp.call("search_logs", {"text": "absent"})
    assert nothing["content"][0]["text"] == "No line contains this text."
    for wrong in ({"text": ""}, {"text": "a\nb"}, {"text": "a", "cursor": "x"}, {"limit": 1},
                  {"text": "a", "limit": 51}):  # fmt: skip
        assert mcp.call("search_logs", wrong)["isError"] is True
    # The search stops before it has found a line.
    monkeypatch.setattr(search, "SEARCH_BYTES", 1)
    monkeypatch.setattr(search, "TASKS_PER_READ", 1)
    assert "next" in mcp.call("search_logs", {"text": "full"})["structuredContent"]


@one_database
def test_search_logs_takes_one_of_the_places_for_searches(alice: ApiClient, mcp: McpClient) -> None:
    arguments = {"text": "hit"}
    with search.slots.hold(alice.start()["userId"]):
        response = mcp.modern("tools/call", {"name": "search_logs", "arguments": arguments})
    assert response.status == 503
    assert mcp.call("search_logs", arguments)["structuredContent"]["hits"] == []


def test_cancel_task_ends_a_running_task_alone(alice: ApiClient, mcp: McpClient) -> None:
    running, finished = alice.start(), alice.start()
    alice.report(finished, status="complete")
    for _ in range(2):
        result = mcp.call("cancel_task", {"taskId": running["id"]})
        assert structured(result)["error"]["type"] == "cancelled"
        assert "isError" not in result
    assert alice.task(running)["endedBy"] == alice.task(finished)["endedBy"]
    refused = mcp.call("cancel_task", {"taskId": finished["id"]})
    assert refused["isError"] is True
    assert "finished" in refused["content"][0]["text"]
