"""Routes of agents: list, get, put, delete."""

from typing import Any

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers, waits
from taskservice.api.door import operation
from taskservice.api.tasks import idempotency_key, replay_headers
from taskservice.auth import caller
from taskservice.error_codes import AGENT_HAS_TASKS
from taskservice.problems import not_found
from taskservice.schemas import (
    AGENT_ID,
    EXAMPLE_MOMENT,
    PutAgentSchema,
    agent_schema,
    task_schema,
)
from taskservice.services import agents as service

agents = Blueprint("agents", __name__)

put_schema = PutAgentSchema()


@agents.get("/agent")
@operation("listAgents", answers={200: [agent_schema]})
def list_all() -> Response:
    """List agents.

    All that the key may see: an agent key sees its own.
    """
    return answers.dumped(agent_schema, queries.agents(caller), many=True)


@agents.get("/agent/<agent_id>")
@operation("getAgent", answers={200: agent_schema})
def get(agent_id: str) -> Response:
    """Get an agent."""
    agent = queries.agent(caller, known(agent_id))
    if agent is None:
        raise not_found("Agent")
    return answers.dumped(agent_schema, agent)


@agents.put("/agent/<agent_id>")
@operation("putAgent", body=put_schema, answers={200: agent_schema, 201: agent_schema})
def put(agent_id: str, body: dict[str, Any]) -> Response:
    """Register or change an agent.

    201 when it is new; its name is its id until it gets another.
    """
    agent, is_new = service.put(caller, agent_id, body)
    return answers.dumped(agent_schema, agent, 201 if is_new else 200)


@agents.post("/agent/<agent_id>/claim")
@operation(
    "claimTask",
    headers=["Prefer", "Idempotency-Key"],
    answers={200: task_schema, 204: None},
    answer_headers=["Preference-Applied", "Idempotency-Replayed"],
    example={"claimedAt": EXAMPLE_MOMENT},
)
def claim(agent_id: str) -> Response:
    """Claim a task.

    Takes the oldest running task of the agent that nobody has claimed, or answers 204. No task
    is given twice, whoever asks at once. From then on it must not stay silent for longer than
    its `timeout`. With `Prefer: wait`, it waits for one. With an `Idempotency-Key`, a claim whose
    answer was lost can be repeated, and gives the same task.
    """
    task, replayed = waits.for_claim(known(agent_id), idempotency_key())
    if task is None:
        return Response(status=204)
    return answers.task(task, headers=replay_headers(replayed))


@agents.delete("/agent/<agent_id>")
@operation(
    "deleteAgent",
    user_key=True,
    answers={200: agent_schema},
    errors=[AGENT_HAS_TASKS],
)
def delete(agent_id: str) -> Response:
    """Delete an agent.

    Its keys go with it.
    """
    return answers.dumped(agent_schema, service.delete_for_good(caller, known(agent_id)))


def known(agent_id: str) -> str:
    """The id; what has not the form of one is the id of no agent."""
    if not AGENT_ID.fullmatch(agent_id):
        raise not_found("Agent")
    return agent_id
