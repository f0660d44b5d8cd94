"""Routes of agents: list, get, put, delete."""

from typing import Any

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers
from taskservice.api.door import accepts
from taskservice.auth import caller
from taskservice.problems import not_found
from taskservice.schemas import AGENT_ID, PutAgentSchema, agent_schema
from taskservice.services import agents as service
from taskservice.services import tasks as task_service

agents = Blueprint("agents", __name__)

put_schema = PutAgentSchema()


@agents.get("/agent")
@accepts()
def list_all() -> Response:
    """All agents that the key may see."""
    return answers.dumped(agent_schema, queries.agents(caller), many=True)


@agents.get("/agent/<agent_id>")
@accepts()
def get(agent_id: str) -> Response:
    """One agent."""
    agent = queries.agent(caller, known(agent_id))
    if agent is None:
        raise not_found("Agent")
    return answers.dumped(agent_schema, agent)


@agents.put("/agent/<agent_id>")
@accepts(body=put_schema)
def put(agent_id: str, body: dict[str, Any]) -> Response:
    """Register an agent, or change its name or description."""
    agent, is_new = service.put(caller, agent_id, body)
    return answers.dumped(agent_schema, agent, 201 if is_new else 200)


@agents.post("/agent/<agent_id>/claim")
@accepts()
def claim(agent_id: str) -> Response:
    """Take the oldest unclaimed running task of the agent."""
    task = task_service.claim(caller, known(agent_id))
    return Response(status=204) if task is None else answers.task(task)


@agents.delete("/agent/<agent_id>")
@accepts()
def delete(agent_id: str) -> Response:
    """Delete an agent that has no tasks."""
    caller.require_user_key()
    return answers.dumped(agent_schema, service.delete_for_good(caller, known(agent_id)))


def known(agent_id: str) -> str:
    """The id; what has not the form of one is the id of no agent."""
    if not AGENT_ID.fullmatch(agent_id):
        raise not_found("Agent")
    return agent_id
