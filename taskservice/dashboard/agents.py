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
LAST_PAGE = 1_000_000


@agents.get("/agents", strict_slashes=False)
def list_all() -> Response:
    number = min(max(request.args.get("page", 1, int), 1), LAST_PAGE)
    found = queries.agents_by_use(caller, (number - 1) * PAGE, PAGE + 1)
    shown = found[:PAGE]
    return page(
        "agents.html",
        agents=[(agent, _last_tasks(agent.id)) for agent in shown if agent.last_used_at],
        unused=[agent for agent in shown if not agent.last_used_at],
        is_first=number == 1,
        next=number + 1 if len(found) > PAGE else None,
    )


def _last_tasks(agent_id: str) -> list[Any]:
    places = queries.places(caller, Selection(agent_id=agent_id), None, LAST_TASKS)
    return queries.summaries(caller, places)
