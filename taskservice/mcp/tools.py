"""Agents as tools: their names and definitions."""

import hashlib
import re
from typing import Any

from taskservice.auth.authentication import caller
from taskservice.database.rows import AnyRow
from taskservice.mcp.fixed_tools import FIXED
from taskservice.queries import agents as agent_queries
from taskservice.schemas import strict_json

# Clients send all tools to their model with each request; the other agents are for `start_task`.
MAX_AGENTS = 64
MAX_NAME = 40


def agents_by_name() -> dict[str, AnyRow]:
    """Name of a tool -> its agent, in the order of their ids."""
    found: dict[str, AnyRow] = {}
    for agent in agent_queries.list_tools(caller, MAX_AGENTS):
        name = re.sub("[^a-z0-9_]", "_", agent.id)
        if len(name) > MAX_NAME or name in FIXED or name in found:
            digest = hashlib.sha256(agent.id.encode()).hexdigest()
            name = f"{name[: MAX_NAME - 7]}_{digest[:6]}"
        found[name] = agent
    return found


def definitions() -> list[dict[str, Any]]:
    """What `tools/list` has of each tool."""
    agents = [_definition(name, agent) for name, agent in agents_by_name().items()]
    return [*agents, *(tool.definition for tool in FIXED.values())]


def _definition(name: str, agent: AnyRow) -> dict[str, Any]:
    return {
        "name": name,
        "title": agent.name,
        "description": agent.description,
        "inputSchema": strict_json.fragment(agent.input_schema),
        "annotations": strict_json.fragment(agent.annotations),
    }
