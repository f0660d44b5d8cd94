"""The official Python client starts tools, watches them, answers a question and cancels.

It prints what it showed as one JSON object. `argv`: the endpoint, the key, and the mode:
`auto` for the newest version, `legacy` for those with `initialize`.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import CallToolResult, ElicitResult

url, key, mode = sys.argv[1:]
asked: list[str] = []


async def on_question(_context: Any, params: Any) -> ElicitResult:
    asked.append(params.message)
    return ElicitResult(action="accept", content={"confirm": True})


def shown(result: CallToolResult) -> dict[str, Any]:
    (block,) = result.content
    return {
        "isError": result.is_error,
        "text": block.text,
        "structured": result.structured_content,
    }


async def use(client: Client) -> dict[str, Any]:
    steps: dict[str, Any] = {
        "version": client.protocol_version,
        "server": client.server_info.name if client.server_info else None,
        "instructions": client.instructions,
        "tools": [tool.name for tool in (await client.list_tools()).tools],
    }
    call = client.call_tool
    steps["greet"] = shown(await call("greet", {"name": "World"}))
    steps["wrong input"] = shown(await call("greet", {"nme": "World"}))
    steps["fails"] = shown(await call("failing_job", {}))

    deleted = shown(await call("confirm_delete", {"filename": "old.txt"}))
    if mode == "legacy":
        steps["question"] = deleted
        task_id = deleted["structured"]["taskId"]
        question = deleted["structured"]["questions"][0]
        answer = {"questionId": question["questionId"], "content": {"confirm": True}}
        await call("answer_task", {"taskId": task_id, **answer})
        deleted = shown(await call("wait_task", {"taskId": task_id}))
    steps["deleted"] = deleted

    slow = {"agentId": "slow_compute", "input": {"seconds": 600, "label": "long"}}
    steps["started"] = shown(await call("start_task", slow))
    task = {"taskId": steps["started"]["structured"]["taskId"]}
    while not (await call("read_log", task)).structured_content["lines"]:
        pass
    steps["watched"] = shown(await call("wait_task", {**task, "seconds": 0}))
    steps["log"] = shown(await call("read_log", task))
    steps["listed"] = shown(await call("list_tasks", {"agentId": "slow_compute", "limit": 1}))
    steps["cancelled"] = shown(await call("cancel_task", task))
    steps["afterwards"] = shown(await call("wait_task", task))
    return steps


async def main() -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with create_mcp_http_client(headers) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, elicitation_callback=on_question) as client:
            steps = await use(client)
    print(json.dumps(steps | {"asked": asked}))


asyncio.run(main())
