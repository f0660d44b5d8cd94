"""The page of agents, each with its most recent tasks."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.auth.authentication import caller
from taskservice.dashboard.pages import page
from taskservice.dashboard.shared_pages import shared
from taskservice.queries import agents as agent_queries
from taskservice.queries import lists as list_queries
from taskservice.queries.selections import Selection

agents = Blueprint("agents", __name__)

PAGE_SIZE = 50
MAX_PAGE = 1_000_000
RECENT_TASKS = 5


@agents.get("/agents", strict_slashes=False)
@shared
def list_all() -> Response:
    number = min(max(request.args.get("page", 1, int), 1), MAX_PAGE)
    found = agent_queries.list_by_use(caller, (number - 1) * PAGE_SIZE, PAGE_SIZE + 1)
    shown = found[:PAGE_SIZE]
    return page(
        "agents.html",
        agents=[(agent, _recent_tasks(agent.id)) for agent in shown if agent.last_used_at],
        unused=[agent for agent in shown if not agent.last_used_at],
        is_first=number == 1,
        next=number + 1 if len(found) > PAGE_SIZE else None,
    )


def _recent_tasks(agent_id: str) -> list[Any]:
    found = list_queries.positions(caller, Selection(agent_id=agent_id), None, RECENT_TASKS)
    return list_queries.summaries(caller, found.positions)
