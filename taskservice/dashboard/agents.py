"""The page of agents, each with its last tasks."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice import queries
from taskservice.auth import caller
from taskservice.dashboard.door import page
from taskservice.queries import Selection

agents = Blueprint("agents", __name__)

PAGE = 50
LAST_TASKS = 5


@agents.get("/agents", strict_slashes=False)
def list_all() -> Response:
    after = request.args.get("after", "")
    found = [agent for agent in queries.agents(caller) if agent.id > after]
    shown = found[:PAGE]
    return page(
        "agents.html",
        agents=[(agent, _last_tasks(agent.id)) for agent in shown],
        next=shown[-1].id if len(found) > PAGE else None,
    )


def _last_tasks(agent_id: str) -> list[Any]:
    places = queries.places(caller, Selection(agent_id=agent_id), None, LAST_TASKS)
    return queries.summaries(caller, places)
