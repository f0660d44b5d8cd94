"""The methods of the extension for tasks: `tasks/get`, `tasks/update`, `tasks/cancel`."""

from typing import Any

from taskservice.auth import caller
from taskservice.errors import Problem
from taskservice.mcp import questions, refusals, results
from taskservice.mcp.calls import TASKS, Call
from taskservice.mcp.protocol import INVALID_PARAMS, MISSING_CAPABILITY, RpcError
from taskservice.services import reports, tasks
from taskservice.terms import TASK_FINISHED
from taskservice.web.request import require_id


def get(call: Call) -> dict[str, Any]:
    """The state of a task, with its result or with what it asks."""
    return results.detailed(call, tasks.get(caller, _task_id(call)))


def update(call: Call) -> dict[str, Any]:
    """Answer what a task asks."""
    questions.answer_forms(_task_id(call), call.params.get("inputResponses"))
    return {}


def cancel(call: Call) -> dict[str, Any]:
    """Cancel a task; one that has ended stays as it is."""
    try:
        reports.cancel(caller, _task_id(call))
    except Problem as problem:
        if problem.code != TASK_FINISHED:
            raise
    return {}


METHODS = {"tasks/get": get, "tasks/update": update, "tasks/cancel": cancel}


def run(call: Call) -> dict[str, Any]:
    """The result of a method of this extension. Raises RpcError."""
    if not call.declares_tasks:
        needed: dict[str, Any] = {"extensions": {TASKS: {}}}
        data = {"requiredCapabilities": needed}
        raise RpcError(MISSING_CAPABILITY, f"The request must declare {TASKS}", data)
    try:
        return METHODS[call.method](call)
    except refusals.REFUSED as error:
        raise RpcError(INVALID_PARAMS, refusals.reason(error)) from None


def _task_id(call: Call) -> str:
    return require_id("task", str(call.params.get("taskId")))
