"""The methods of the Model Context Protocol, for each protocol version."""

from collections.abc import Callable
from typing import Any

from taskservice import __version__
from taskservice.auth import caller
from taskservice.error_codes import TASK_FINISHED
from taskservice.errors import Problem
from taskservice.mcp import protocol, results, tool_calls
from taskservice.mcp.protocol import MISSING_CAPABILITY, Call, RpcError
from taskservice.services import reports, tasks
from taskservice.web.request import require_id

SERVER = {"name": "taskservice", "title": "taskservice", "version": __version__}
INSTRUCTIONS = (
    "Each tool named after an agent starts a task, which a worker runs. The task keeps running "
    "even if this conversation ends. If the status in a result is running, call wait_task with "
    "its taskId until the task has ended; read_log returns its log. If a result contains "
    "questions, ask your user, then call answer_task. If the result of a call was lost, call "
    "list_tasks before you repeat the call: the task may already be running."
)


def initialize(call: Call) -> dict[str, Any]:
    version = call.params.get("protocolVersion")
    return {
        "protocolVersion": version if version in protocol.LEGACY else protocol.LEGACY[0],
        "capabilities": {"tools": {}},
        "serverInfo": SERVER,
        "instructions": INSTRUCTIONS,
    }


def discover(call: Call) -> dict[str, Any]:
    return {
        "supportedVersions": protocol.VERSIONS,
        "capabilities": {"tools": {}, "extensions": {protocol.TASKS: {}}},
        "instructions": INSTRUCTIONS,
    }


def get_task(call: Call) -> dict[str, Any]:
    return results.task_state(call, tasks.get(caller, _task_id(call)))


def update_task(call: Call) -> dict[str, Any]:
    results.answer_forms(_task_id(call), call.params.get("inputResponses"))
    return {}


def cancel_task(call: Call) -> dict[str, Any]:
    """Cancel a task; a finished task is not changed."""
    try:
        reports.cancel(caller, _task_id(call))
    except Problem as problem:
        if problem.code != TASK_FINISHED:
            raise
    return {}


def _task_id(call: Call) -> str:
    return require_id("task", str(call.params.get("taskId")))


Method = Callable[[Call], dict[str, Any]]
_TASKS = {"tasks/get": get_task, "tasks/update": update_task, "tasks/cancel": cancel_task}
_BOTH: dict[str, Method] = {
    "tools/list": lambda call: {"tools": tool_calls.definitions()},
    "tools/call": tool_calls.run,
}
MODERN_METHODS = {**_BOTH, "server/discover": discover, **_TASKS}
LEGACY_METHODS = {**_BOTH, "initialize": initialize, "ping": lambda call: {}}
CACHED = ("tools/list", "server/discover")
CACHE = {"ttlMs": 60_000, "cacheScope": "private"}


def result_of(call: Call) -> dict[str, Any]:
    """The result of a call. Raises RpcError."""
    methods = MODERN_METHODS if call.is_modern else LEGACY_METHODS
    if call.method not in methods:
        status = 404 if call.is_modern else 200
        raise RpcError(protocol.METHOD_NOT_FOUND, f"No such method: {call.method}", status=status)
    if call.method in _TASKS and not call.declares_tasks:
        data: dict[str, Any] = {"requiredCapabilities": {"extensions": {protocol.TASKS: {}}}}
        raise RpcError(MISSING_CAPABILITY, f"The request must declare {protocol.TASKS}", data)
    try:
        result = methods[call.method](call)
    except results.REFUSED as error:
        raise RpcError(protocol.INVALID_PARAMS, results.reason(error)) from None
    if not call.is_modern:
        return result
    cache = CACHE if call.method in CACHED else {}
    return {"resultType": "complete", **result, **cache, "_meta": {protocol.SERVER_KEY: SERVER}}
