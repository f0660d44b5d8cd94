"""Routes of agents: list, get, put, delete."""

from typing import Any

from flask import Blueprint, Response

from taskservice.api.tasks import idempotency_key, replay_headers
from taskservice.auth.authentication import caller
from taskservice.contract.error_codes import AGENT_HAS_TASKS
from taskservice.contract.terms import AGENT_ID
from taskservice.problems import not_found
from taskservice.queries import agents as agent_queries
from taskservice.schemas.answers import agent_schema, task_schema
from taskservice.schemas.fields import EXAMPLE_MOMENT
from taskservice.schemas.requests import PutAgentSchema
from taskservice.services import agents as agent_service
from taskservice.web import long_poll, responses
from taskservice.web.request import operation

agents = Blueprint("agents", __name__)

put_schema = PutAgentSchema()


@agents.get("/agent")
@operation("listAgents", answers={200: [agent_schema]})
def list_all() -> Response:
    """List agents.

    All that the key may see: an agent key sees its own.
    """
    return responses.dump(agent_schema, agent_queries.list_all(caller), many=True)


@agents.get("/agent/<agent_id>")
@operation("getAgent", answers={200: agent_schema})
def get(agent_id: str) -> Response:
    """Get an agent."""
    agent = agent_queries.find(caller, known(agent_id))
    if agent is None:
        raise not_found("Agent")
    return responses.dump(agent_schema, agent)


@agents.put("/agent/<agent_id>")
@operation("putAgent", body=put_schema, answers={200: agent_schema, 201: agent_schema})
def put(agent_id: str, body: dict[str, Any]) -> Response:
    """Register or change an agent.

    201 when it is new; its name is its id until it gets another.
    """
    agent, is_new = agent_service.put(caller, agent_id, body)
    return responses.dump(agent_schema, agent, 201 if is_new else 200)


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
    task, replayed = long_poll.for_claim(known(agent_id), idempotency_key())
    if task is None:
        return Response(status=204)
    return responses.task(task, headers=replay_headers(replayed))


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
    return responses.dump(agent_schema, agent_service.delete_for_good(caller, known(agent_id)))


def known(agent_id: str) -> str:
    """The id; what has not the form of one is the id of no agent."""
    if not AGENT_ID.fullmatch(agent_id):
        raise not_found("Agent")
    return agent_id
