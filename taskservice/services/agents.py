"""Agents: registered, changed and deleted."""

from typing import Any

from sqlalchemy import bindparam, exists, insert, select, update
from sqlalchemy import delete as delete_from

from taskservice.auth import Caller, visible_agents
from taskservice.database import clock
from taskservice.database.models import ANNOTATIONS, Agent, Task
from taskservice.database.transactions import retry_on_conflict, transaction
from taskservice.errors import Problem, invalid, not_found
from taskservice.schemas import strict_json
from taskservice.schemas.columns import AGENT_COLUMNS
from taskservice.terms import AGENT_HAS_TASKS, AGENT_ID

_VISIBLE = (visible_agents, Agent.id == bindparam("agent_id"))
_CHANGE = update(Agent).where(*_VISIBLE).returning(*AGENT_COLUMNS)
_REGISTER = insert(Agent).returning(*AGENT_COLUMNS)
_LOOK = select(*AGENT_COLUMNS).where(*_VISIBLE)
_HAS_TASKS = exists().where(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)
_DELETE = delete_from(Agent).where(*_VISIBLE, ~_HAS_TASKS)


@retry_on_conflict
def put(caller: Caller, agent_id: str, fields: dict[str, Any]) -> tuple[Any, bool]:
    """Register an agent, or change its `fields`; returns it, and whether it is new.

    Raises 422 for an invalid id, and 404 when an agent key names another agent.
    """
    if not AGENT_ID.fullmatch(agent_id):
        raise invalid({"agentId": [f"Must match {AGENT_ID.pattern}"]})
    if caller.agent_id not in (None, agent_id):
        raise not_found("agent")
    values = _values(fields)
    here = {"agent_id": agent_id, **caller.scope}
    with transaction() as connection:
        statement = _CHANGE.values(values) if values else _LOOK
        changed = connection.execute(statement, here).one_or_none()
        if changed is not None:
            return changed, False
        new = {
            "name": agent_id,
            "description": "",
            **values,
            "user_id": caller.user_id,
            "id": agent_id,
            "created_at": clock.now(),
        }
        return connection.execute(_REGISTER, new).one(), True


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns that PutAgentSchema's fields set; null leaves one as it is."""
    values = {name: value for name, value in fields.items() if value is not None}
    if "inputSchema" in values:
        values["input_schema"] = strict_json.dumps(values.pop("inputSchema")).decode()
    if "annotations" in values:
        # Hints that are left out have their defaults, whatever the agent had before.
        hints = strict_json.loads(ANNOTATIONS.encode()) | values["annotations"]
        values["annotations"] = strict_json.dumps(hints).decode()
    return values


def delete(caller: Caller, agent_id: str) -> Any:
    """Delete an agent and its keys; returns it. Raises 404, and 409 while it has tasks."""
    here = {"agent_id": agent_id, **caller.scope}
    with transaction() as connection:
        agent = connection.execute(_LOOK.with_for_update(), here).one_or_none()
        if agent is None:
            raise not_found("agent")
        if connection.execute(_DELETE, here).rowcount == 0:
            raise Problem(409, "The agent has tasks; delete them first", code=AGENT_HAS_TASKS)
    return agent
