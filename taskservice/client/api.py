"""One function for each request that the client and the runner both make."""

import time
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

from taskservice.client import answers
from taskservice.client.answers import RETRYABLE, SHORT_FIELDS, Invalid, NotFound
from taskservice.client.http import Connection, delays, pause_after
from taskservice.terms import ErrorType, Status

# An agent as `Client.agents` reads it.


class FinishedTask(TypedDict):
    """One of an agent's last tasks; `seconds` is null if no agent claimed it."""

    id: str
    status: Status
    errorType: NotRequired[ErrorType | None]
    finishedAt: str
    seconds: float | None


class Health(TypedDict):
    """How an agent's last 30 tasks went, the oldest first; cancelled ones count for no rate."""

    recent: list[FinishedTask]
    successRate: float | None
    lastSuccessAt: str | None
    medianSeconds: float | None


class Annotations(TypedDict, total=False):
    """What an agent does, in the words of MCP's tools."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class Agent(TypedDict):
    """An agent's JSON; `health` is there where it was asked for."""

    id: str
    name: str
    description: str
    userId: str
    createdAt: str
    inputSchema: dict[str, Any]
    annotations: Annotations
    tool: bool
    health: NotRequired[Health]


# One function for each request that the client and the runner both make.

# A task in an answer comes without its log, which can be long.
SHORT = {"fields": SHORT_FIELDS}
SHORT_TASK = answers.task(SHORT_FIELDS)
_STARTED = answers.task(SHORT_FIELDS, 201)
_HEALTH = {"expand": "health"}


def start_task(
    connection: Connection, fields: Mapping[str, Any], idempotency_key: str, **options: Any
) -> dict[str, Any]:
    """Start a task, once for each idempotency key; register its agent if that is new."""
    try:
        return _start_task(connection, fields, idempotency_key, options)
    except Invalid as error:
        if "agentId" not in error.errors:
            raise
    register_agent(connection, fields["agentId"], {}, **options)
    return _start_task(connection, fields, idempotency_key, options)


def _start_task(
    connection: Connection, fields: Mapping[str, Any], key: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    headers = {"Idempotency-Key": key}
    task: dict[str, Any] = connection.call(
        "POST", "/task", _STARTED, json=fields, headers=headers, **options
    ).data
    return task


def rerun_task(
    connection: Connection, task_id: str, input: Mapping[str, Any] | None, idempotency_key: str
) -> dict[str, Any]:
    """Run a task again, once for each idempotency key; `input` is None for the same input."""
    task: dict[str, Any] = connection.call(
        "POST",
        f"/task/{path_segment(task_id)}/rerun",
        _STARTED,
        json={} if input is None else {"input": input},
        headers={"Idempotency-Key": idempotency_key},
    ).data
    return task


def read_task(connection: Connection, task_id: str) -> dict[str, Any]:
    path = f"/task/{path_segment(task_id)}"
    task: dict[str, Any] = connection.call("GET", path, SHORT_TASK, params=SHORT).data
    return task


def delete_task(connection: Connection, task_id: str) -> None:
    path = f"/task/{path_segment(task_id)}"
    _delete(connection, path, answers.task("id"), params={"fields": "id"})


def delete_agent(connection: Connection, agent_id: str) -> None:
    _delete(connection, f"/agent/{path_segment(agent_id)}", answers.AGENT)


def _delete(connection: Connection, path: str, shape: answers.Shape, **options: Any) -> None:
    """Delete something; with 404 after a lost answer, the first request has deleted it."""
    until = time.monotonic() + connection.patience
    is_retry = False
    for delay in delays():
        try:
            connection.once("DELETE", path, shape, **options)
            return
        except NotFound:
            if is_retry:
                return
            raise
        except RETRYABLE as error:
            if time.monotonic() + pause_after(error, delay) > until:
                raise
            time.sleep(pause_after(error, delay))
            is_retry = True


def list_agents(connection: Connection, has_health: bool) -> list[Agent]:
    """All agents that the key may see, by their ids."""
    shape = answers.AGENTS_WITH_HEALTH if has_health else answers.FULL_AGENTS
    query = _HEALTH if has_health else {}
    agents: list[Agent] = connection.call("GET", "/agent", shape, params=query).data
    return agents


def register_agent(
    connection: Connection, agent_id: str, fields: Mapping[str, Any], **options: Any
) -> None:
    """Register an agent, or change those `fields` of it that are not None."""
    given = {name: value for name, value in fields.items() if value is not None}
    path = f"/agent/{path_segment(agent_id)}"
    connection.call("PUT", path, answers.AGENT, json=given, **options)


def path_segment(text: str) -> str:
    """An id as one segment of a path; text that would lead to another path matches no id."""
    return quote(text.replace("/", "-"), safe="", errors="replace") if text.strip(".") else "-"
