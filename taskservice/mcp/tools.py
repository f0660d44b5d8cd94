"""Agents as tools: their names and definitions."""

import hashlib
import re
from collections import Counter
from typing import Any

from taskservice.auth import caller
from taskservice.database.types import AnyRow
from taskservice.mcp.fixed_tools import FIXED
from taskservice.schemas import strict_json
from taskservice.services import agents as agent_queries

# Clients send all tools to their model with each request; the other agents are for `start_task`.
MAX_AGENTS = 64
# How many of them are told by their ids.
MAX_OTHERS = 64
MAX_NAME = 40
# The characters of an id that a name can't have.
_UNFIT = re.compile("[^a-z0-9_]")


def agent_of(name: str) -> str | None:
    """The id of the agent that a tool runs; None if there is no such tool."""
    agent_id = _agents_by_name().get(name)
    return agent_id if agent_id in agent_queries.tool_ids(caller, MAX_AGENTS) else None


def _agents_by_name() -> dict[str, str]:
    """Name of a tool -> the id of its agent, for all agents of the caller.

    Those that are no tools have names too. Otherwise a name could pass to another agent, and a
    client that has kept its tools, or a prompt, would start that one. An id that is a name is
    always the name of its agent; of others with the same name none has it. Two agents with the
    same digest have no name.
    """
    names = {agent_id: _UNFIT.sub("_", agent_id) for agent_id in agent_queries.ids(caller)}
    claims = Counter(names.values())
    for agent_id, name in names.items():
        is_taken = agent_id != name and claims[name] > 1
        if is_taken or len(name) > MAX_NAME or name in FIXED:
            digest = hashlib.sha256(agent_id.encode()).hexdigest()
            names[agent_id] = f"{name[: MAX_NAME - 7]}_{digest[:6]}"
    claims = Counter(names.values())
    return {name: id for id, name in names.items() if id == name or claims[name] == 1}


def definitions() -> list[dict[str, Any]]:
    """What `tools/list` has of each tool."""
    names = {agent_id: name for name, agent_id in _agents_by_name().items()}
    agents = agent_queries.list_tools(caller, MAX_AGENTS + MAX_OTHERS)
    tools = [agent for agent in agents[:MAX_AGENTS] if agent.id in names]
    fixed = {name: tool.definition for name, tool in FIXED.items()}
    if others := ", ".join(agent.id for agent in agents if agent not in tools):
        fixed["start_task"]["description"] += f" These agents have no tool of their own: {others}."
    return [*(_definition(names[agent.id], agent) for agent in tools), *fixed.values()]


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
