"""Odd values in each place of a request to `/mcp`: no answer is a failure of the service."""

import json
from base64 import b64encode
from collections.abc import Iterator

from tests.support.api_client import ApiClient
from tests.support.mcp import CAPABILITIES_KEY, FORMS, MODERN, TASKS, VERSION_KEY, McpClient

# Past all numbers of Python, an integer to JSON Schema, and between two doubles.
LONG_NUMBERS = ["1" * 30, "5.0", "5." + "0" * 30, "4." + "9" * 30, "-0.0", "1e-300"]
ODD = [
    *LONG_NUMBERS, "null", "true", "-1", '""', '"\\u0000"', '"%s"' % ("x" * 70_000), '"\u202e"',
    "[]", "[[]]", "{}", '{"a": null}', '{"action": "accept", "content": {"a": %s}}' % ("9" * 40),
]  # fmt: skip
TASK = "TASK"
PARAMETERS: dict[str, dict[str, str]] = {
    "server/discover": {"unknown": "{}"},
    "tools/list": {"cursor": "null"},
    "tools/call": {
        "name": '"wait_task"',
        "arguments": '{"taskId": TASK}',
        "requestState": TASK,
        "inputResponses": "{}",
        "task": "{}",
    },
    "tasks/get": {"taskId": TASK},
    "tasks/update": {"taskId": TASK, "inputResponses": "{}"},
    "tasks/cancel": {"taskId": TASK},
}
ARGUMENTS: dict[str, dict[str, str]] = {
    "start_task": {"agentId": '"summarizer"', "input": "{}"},
    "rerun_task": {"taskId": TASK, "input": "{}"},
    "wait_task": {"taskId": TASK, "seconds": "0"},
    "read_log": {"taskId": TASK, "after": "0", "limit": "1"},
    "list_tasks": {"agentId": '"summarizer"', "status": '"running"', "limit": "1"},
    "search_logs": {"text": '"a"', "agentId": '"summarizer"', "limit": "1", "cursor": '"a"'},
    "attention": {},
    "answer_task": {"taskId": TASK, "questionId": TASK, "content": "{}", "decline": "false"},
    "cancel_task": {"taskId": TASK},
}


def with_odd_values(fields: dict[str, str]) -> Iterator[str]:
    """The text of objects with these members, one of which is odd in each."""
    for odd_name in fields:
        for odd in ODD:
            members = [f'"{name}":{text}' for name, text in {**fields, odd_name: odd}.items()]
            yield f"{{{','.join(members)}}}"


def bodies(task_id: str) -> Iterator[tuple[str, str]]:
    """(method, params as JSON)."""
    for method, fields in PARAMETERS.items():
        for params in with_odd_values(fields):
            yield method, params.replace(TASK, f'"{task_id}"')
    for name, fields in ARGUMENTS.items():
        for arguments in with_odd_values(fields):
            params = f'{{"name":"{name}","arguments":{arguments}}}'
            yield "tools/call", params.replace(TASK, f'"{task_id}"')


def test_odd_values_are_never_a_failure_of_the_service(alice: ApiClient) -> None:
    task = alice.start()
    # No call waits for its end.
    alice.report(task, status="complete")
    meta = json.dumps({VERSION_KEY: MODERN, CAPABILITIES_KEY: TASKS | FORMS})
    mcp = McpClient(alice)
    for method, params in bodies(task["id"]):
        with_meta = f'{{"_meta":{meta},{params[1:]}'
        body = f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{with_meta}}}'
        headers: dict[str, str | None] = {
            "MCP_Protocol_Version": MODERN,
            "Mcp_Method": method,
            "Mcp_Name": None,
        }
        name = json.loads(params).get("name")
        if isinstance(name, str):
            headers["Mcp_Name"] = f"=?base64?{b64encode(name.encode()).decode()}?="
        answer = mcp.post(body.encode(), **headers)
        assert answer.status in (200, 400), (body[:300], answer)
        assert {"result", "error"} & answer.json.keys()
