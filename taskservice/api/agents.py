"""Routes for agents, for claims of tasks, for numbers in outputs, and for the attention list."""

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response

from taskservice.auth import Caller
from taskservice.database.rows import AgentRow
from taskservice.error_codes import AGENT_HAS_TASKS
from taskservice.schemas import examples, requests
from taskservice.schemas import users as user_schemas
from taskservice.schemas.tasks import expanded_task_schema
from taskservice.services import agents as agent_service
from taskservice.services import attention as attention_service
from taskservice.web import responses, waiting
from taskservice.web.request import idempotency_key, operation

blueprint = Blueprint("agents", __name__)
attention = Blueprint("attention", __name__)


@blueprint.get("/agent")
@operation("listAgents", [user_schemas.expanded_agent_schema], query=requests.AgentQuerySchema())
def list_all(caller: Caller, query: dict[str, Any]) -> Response:
    """List agents.

    Returns all agents that the key has access to; an agent key has access to its own agent only.
    The list is streamed: if an error occurs midway, the connection closes before the array is
    complete.
    """
    return responses.array(_expanded(page, query) for page in agent_service.list_all(caller))


@blueprint.get("/agent/<agent_id>")
@operation("getAgent", user_schemas.expanded_agent_schema, query=requests.AgentQuerySchema())
def get(caller: Caller, agent_id: str, query: dict[str, Any]) -> Response:
    """Get an agent."""
    return responses.json(_expanded([agent_service.get(caller, agent_id)], query)[0])


def _expanded(agents: Sequence[AgentRow], query: dict[str, Any]) -> list[dict[str, Any]]:
    """The agents as JSON, with the objects that `expand` names."""
    dumped: list[dict[str, Any]] = user_schemas.agent_schema.dump(agents, many=True)
    if "expand" in query:
        for agent, agent_json in zip(agents, dumped, strict=True):
            agent_json["health"] = agent_service.health(agent, agent_service.runs(agent))
    return dumped


@blueprint.put("/agent/<agent_id>")
@operation(
    "putAgent",
    body=requests.PutAgentSchema(),
    responses={200: user_schemas.expanded_agent_schema, 201: user_schemas.expanded_agent_schema},
)
def put(caller: Caller, agent_id: str, body: dict[str, Any]) -> Response:
    """Register or change an agent.

    Fields that are null or left out keep their values, except that `"expect": null` removes the
    expected runs. Setting `expect` clears the late state and restarts the schedule at the current
    time. Returns 201 if the agent is new. The name of a new agent defaults to its ID.
    """
    agent, is_new = agent_service.put(caller, agent_id, body)
    return responses.dump(user_schemas.agent_schema, agent, 201 if is_new else 200)


@blueprint.post("/agent/<agent_id>/claim")
@operation(
    "claimTask",
    query=requests.TaskQuerySchema(),
    headers=["Prefer", "Idempotency-Key"],
    responses={200: expanded_task_schema, 204: None},
    response_headers=["Idempotency-Replayed"],
    example={"claimedAt": examples.TIME},
)
def claim(caller: Caller, agent_id: str, query: dict[str, Any]) -> Response:
    """Claim a task.

    Claims the oldest unclaimed running task of the agent; returns 204 if there is none. Only one
    caller can claim a task. A claimed task times out if its agent sends no append or report for
    `timeout` seconds. With `Prefer: wait`, the request waits until there is a task to claim. With
    an `Idempotency-Key`, a client that lost the response can repeat the claim and gets the same
    task.
    """
    task, replayed = waiting.for_claim(agent_id, idempotency_key())
    if task is None:
        return responses.FastResponse(status=204)
    headers = responses.replayed_header(replayed)
    return responses.task(task, responses.shape(caller, query), headers=headers)


@blueprint.get("/agent/<agent_id>/numbers")
@operation(
    "listNumbers",
    (user_schemas.NumberPathsSchema(), [user_schemas.OutputNumberSchema()]),
    query=requests.NumbersQuerySchema(),
)
def list_numbers(caller: Caller, agent_id: str, query: dict[str, Any]) -> Response:
    """List the numbers in an agent's outputs.

    Without `path`, returns `{"paths": [{path, last, count}]}`: the paths of numbers in the outputs
    of the last 100 finished tasks. The list contains at most 50 paths, the most frequent first.
    With `path`, returns the most recent numbers at this path, oldest first:
    `[{taskId, finishedAt, value}]`. A path is a key of the output, or two nested keys joined by a
    dot; it has at most 200 characters.
    """
    if "path" not in query:
        return responses.json({"paths": agent_service.number_paths(caller, agent_id)})
    limit = query.get("limit", 100)
    return responses.json(agent_service.numbers_at(caller, agent_id, query["path"], limit))


@blueprint.delete("/agent/<agent_id>")
@operation(
    "deleteAgent", user_schemas.expanded_agent_schema, user_key=True, errors=[AGENT_HAS_TASKS]
)
def delete(caller: Caller, agent_id: str) -> Response:
    """Delete an agent.

    Also deletes the API keys of the agent.
    """
    return responses.dump(user_schemas.agent_schema, agent_service.delete(caller, agent_id))


@attention.get("/attention")
@operation("listAttention", [user_schemas.AttentionSchema()])
def list_attention(caller: Caller) -> Response:
    """List what needs attention.

    Returns at most 100 items that need a person's attention: the most urgent kind first, and within
    a kind the oldest item first. With an agent key, returns the items of its agent, except items
    about callbacks and hooks.
    """
    return responses.json(attention_service.list_all(caller))
