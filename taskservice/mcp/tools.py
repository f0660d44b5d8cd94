"""Agents as tools: their names and definitions."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from taskservice.auth.authentication import caller
from taskservice.database.rows import AnyRow
from taskservice.mcp.fixed_tools import FIXED
from taskservice.queries import agents as agent_queries
from taskservice.schemas import strict_json

# Clients send all tools to their model with each request; the other agents are for `start_task`.
MAX_AGENTS = 64
# How many of them are told by their ids.
MAX_OTHERS = 64
MAX_NAME = 40


def agent_of(name: str) -> str | None:
    """The id of the agent that a tool runs; None if there is no such tool."""
    return _by_name(agent_queries.tool_ids(caller, MAX_AGENTS)).get(name)


def _by_name(agent_ids: Iterable[str]) -> dict[str, str]:
    """Name of a tool -> the id of its agent; the ids ascend."""
    found: dict[str, str] = {}
    for agent_id in agent_ids:
        name = re.sub("[^a-z0-9_]", "_", agent_id)
        if len(name) > MAX_NAME or name in FIXED or name in found:
            digest = hashlib.sha256(agent_id.encode()).hexdigest()
            name = f"{name[: MAX_NAME - 7]}_{digest[:6]}"
        found[name] = agent_id
    return found


def definitions() -> list[dict[str, Any]]:
    """What `tools/list` has of each tool."""
    agents = agent_queries.list_tools(caller, MAX_AGENTS + MAX_OTHERS)
    names = _by_name(agent.id for agent in agents[:MAX_AGENTS])
    fixed = {name: tool.definition for name, tool in FIXED.items()}
    if others := ", ".join(agent.id for agent in agents[MAX_AGENTS:]):
        fixed["start_task"]["description"] += f" These agents have no tool of their own: {others}."
    return [*map(_definition, names, agents), *fixed.values()]


def _definition(name: str, agent: AnyRow) -> dict[str, Any]:
    return {
        "name": name,
        "title": agent.name,
        # Some models refuse a tool without one.
        "description": agent.description or f"Starts a task of the agent {agent.id}.",
        "inputSchema": strict_json.fragment(agent.input_schema),
        "annotations": _annotations(agent),
    }


def _annotations(agent: AnyRow) -> dict[str, Any]:
    hints: dict[str, Any] = strict_json.loads(agent.annotations.encode())
    if hints.get("readOnlyHint"):
        # Its default is meant for tools that change something.
        hints.pop("destructiveHint", None)
    return hints
