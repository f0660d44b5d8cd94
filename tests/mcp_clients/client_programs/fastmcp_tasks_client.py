"""fastmcp with its tasks: starts tools in the background, watches, answers and cancels.

It prints what it showed as one JSON object. `argv`: the endpoint and the key.
"""

import asyncio
import json
import sys
from typing import Any

from fastmcp import Client
from fastmcp.exceptions import ToolError
from fastmcp_tasks.client import ToolTask, call_tool_task

url, key = sys.argv[1:]
asked: list[str] = []


async def on_question(message: str, _kind: Any, _params: Any, _context: Any) -> dict[str, Any]:
    asked.append(message)
    return {"confirm": True}


async def refusal(call: Any) -> str:
    """What the user is told of a call that does not succeed."""
    try:
        result = await call
    except ToolError as error:
        return str(error)
    raise AssertionError(f"It succeeded: {result}")


async def status_with_message(task: ToolTask, text: str) -> dict[str, Any]:
    """The first status whose message has this text."""
    while text not in ((status := await task.status()).status_message or ""):
        await asyncio.sleep(0.1)
    return {"status": status.status, "message": status.status_message}


async def use(client: Client) -> dict[str, Any]:
    steps: dict[str, Any] = {"tools": [tool.name for tool in await client.list_tools()]}
    steps["greet"] = (await client.call_tool("greet", {"name": "World"})).content[0].text
    steps["fails"] = await refusal(client.call_tool("failing_job", {}))

    asking = await call_tool_task(client, "confirm_delete", {"filename": "old.txt"})
    parked = await asking.wait(state="input_required")
    (request,) = parked.input_requests.values()
    steps["question"] = request["params"]
    steps["deleted"] = (await asking.result()).structured_content

    slow = await call_tool_task(client, "slow_compute", {"seconds": 600, "label": "long"})
    steps["started"] = slow.create_result.model_dump(by_alias=True, exclude={"meta"})
    steps["watched"] = await status_with_message(slow, "computing long")
    await slow.cancel()
    steps["cancelled"] = (await slow.wait()).status
    steps["afterwards"] = await refusal(slow.result())
    return steps


async def main() -> None:
    async with Client(url, auth=key, elicitation_handler=on_question) as client:
        steps = await use(client)
    print(json.dumps(steps | {"asked": asked}))


asyncio.run(main())
