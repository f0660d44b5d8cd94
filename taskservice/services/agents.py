"""Agents: registered, changed, deleted, and read, with their health and their load."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, case, exists, func, insert, or_, select, update
from sqlalchemy import delete as delete_from

from taskservice.auth import Caller, LastUses, tasks_of_user, visible_agents
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import ANNOTATIONS, Agent, Task
from taskservice.database.transactions import (
    in_pages,
    read_all,
    read_one,
    reading,
    retry_on_conflict,
    transaction,
)
from taskservice.database.types import AnyRow
from taskservice.errors import Problem, invalid, not_found, require
from taskservice.schemas import strict_json
from taskservice.schemas.users import AGENT_COLUMNS, AGENT_OF_TASK_COLUMNS, agent_schema
from taskservice.services import expected_runs
from taskservice.services.events import this_agent
from taskservice.services.tasks import is_unclaimed
from taskservice.terms import AGENT_HAS_TASKS, AGENT_ID, BROKEN, CANCELLED, COMPLETE, RUNNING

# The agents that the caller may see, and one of them.
_AGENTS = select(*AGENT_COLUMNS).where(visible_agents).order_by(Agent.id)
_TOOLS = _AGENTS.where(Agent.tool).limit(bindparam("count"))
_TOOL_IDS = _TOOLS.with_only_columns(Agent.id)
_THIS = (visible_agents, Agent.id == bindparam("agent_id"))
_AGENT = select(*AGENT_COLUMNS).where(*_THIS)


@retry_on_conflict
def put(caller: Caller, agent_id: str, fields: dict[str, Any]) -> tuple[Any, bool]:
    """Register or change an agent; returns it, and whether it is new. Raises 404 and 422."""
    if not AGENT_ID.fullmatch(agent_id):
        raise invalid({"agentId": [f"Must match {AGENT_ID.pattern}"]})
    if caller.agent_id not in (None, agent_id):
        raise not_found("agent")
    # Null leaves a field as it is, but ends the expectation of runs.
    changes = {
        name: value for name, value in fields.items() if value is not None or name == "expect"
    }
    if "annotations" in changes:
        # An omitted hint gets its default, even if the agent had another value.
        changes["annotations"] = strict_json.loads(ANNOTATIONS.encode()) | changes["annotations"]
    values = agent_schema.stored(changes)
    if "expect" in changes:
        values |= expected_runs.columns(changes["expect"], clock.now())
    here = {"agent_id": agent_id, **caller.scope}
    with transaction() as connection:
        change = update(Agent).where(*_THIS).values(values).returning(*AGENT_COLUMNS)
        changed = connection.execute(change if values else _AGENT, here).one_or_none()
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
        return connection.execute(insert(Agent).returning(*AGENT_COLUMNS), new).one(), True


def delete(caller: Caller, agent_id: str) -> Any:
    """Delete an agent and its keys; returns it. Raises 404, and 409 while it has tasks."""
    here = {"agent_id": agent_id, **caller.scope}
    has_tasks = exists().where(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)
    with transaction() as connection:
        agent = require(connection.execute(_AGENT.with_for_update(), here).one_or_none(), "agent")
        if connection.execute(delete_from(Agent).where(*_THIS, ~has_tasks), here).rowcount == 0:
            raise Problem(409, "The agent has tasks; delete them first", code=AGENT_HAS_TASKS)
    return agent


# The claims of workers, by user and agent.
worker_claims = LastUses[tuple[str, str]]()


def record_workers() -> None:
    """Store when a worker last asked this process for a task of each agent, to the minute."""
    # Another process may have stored a later claim.
    is_later = or_(Agent.worker_seen_at.is_(None), Agent.worker_seen_at < bindparam("at"))
    claim = update(Agent).where(*this_agent, is_later).values(worker_seen_at=bindparam("at"))
    # In the order in which other transactions lock agents.
    claims = [
        {"of_user_id": user_id, "of_agent_id": agent_id, "at": time}
        for (user_id, agent_id), time in sorted(worker_claims.take().items())
    ]
    if claims:
        with transaction() as connection:
            connection.execute(claim, claims)


# Agents per read of a list: each has up to 20 KB.
AGENTS_PER_READ = 50
# Maximum number of agents that a page offers as choices.
MAX_CHOICES = 1_000
# The number of finished tasks from which an agent's health is computed.
RECENT = 30
# Maximum number of a user's running tasks that are counted by agent.
MAX_RUNNING = 2_000
_RUNS = Statement[AnyRow](
    select(Task.id, Task.name, Task.status, Task.error_type, Task.claimed_at, Task.finished_at)
    .where(tasks_of_user, Task.agent_id == bindparam("agent_id"), Task.finished_at.is_not(None))
    .order_by(Task.finished_at.desc())
    .limit(bindparam("count"))
)
_NEWEST_TASK = Statement[AnyRow](
    select(
        Task.id,
        Task.name,
        Task.created_at,
        case((func.length(Task.input) <= bindparam("max_input"), Task.input)).label("input"),
    )
    .where(tasks_of_user, Task.agent_id == bindparam("agent_id"))
    .order_by(Task.created_at.desc(), Task.id.desc())
    .limit(1)
)
_WAITING = Statement[AnyRow](
    select(func.count()).select_from(
        select(Task.id)
        .where(tasks_of_user, Task.agent_id == bindparam("agent_id"), is_unclaimed)
        .order_by(Task.created_at, Task.id)
        .limit(bindparam("maximum"))
        .subquery()
    )
)
# The oldest, since claims take the oldest first.
_RUNNING = Statement[AnyRow](
    select(Task.agent_id, Task.claimed_at)
    .where(tasks_of_user, Task.status == RUNNING)
    .order_by(Task.created_at, Task.id)
    .limit(MAX_RUNNING + 1)
)


class Load(NamedTuple):
    """An agent's waiting tasks, up to a maximum, and running ones; more unless `is_complete`."""

    waiting: int
    running: int
    is_complete: bool


def list_all(caller: Caller) -> Iterator[Sequence[AnyRow]]:
    """All agents that the caller may see, ordered by id, some at a time."""
    return in_pages(_AGENTS, (Agent.id,), AGENTS_PER_READ, caller.scope)


def ids(caller: Caller, count: int | None = None) -> Sequence[str]:
    """The ids of the first `count` agents that the caller may see, or of all, in order."""
    first = _AGENTS.with_only_columns(Agent.id).limit(count)
    return [row.id for row in read_all(first, **caller.scope)]


def choices(caller: Caller) -> Sequence[str]:
    """The ids of the first MAX_CHOICES agents."""
    return ids(caller, MAX_CHOICES)


def list_tools(caller: Caller, count: int) -> Sequence[AnyRow]:
    """The first `count` agents that are MCP tools, ordered by id."""
    return read_all(_TOOLS, count=count, **caller.scope)


def tool_ids(caller: Caller, count: int) -> Sequence[str]:
    """The ids of the agents that `list_tools` returns."""
    return [row.id for row in read_all(_TOOL_IDS, count=count, **caller.scope)]


def get(caller: Caller, agent_id: str) -> AnyRow:
    """An agent that the caller may see. Raises 404."""
    return require(read_one(_AGENT, agent_id=agent_id, **caller.scope), "agent")


def health(agents: Sequence[AnyRow]) -> dict[str, dict[str, Any]]:
    """Agent id -> health, as in HealthOfAgentSchema; all agents belong to one user."""
    return {agent.id: health_of(agent, recent) for agent, recent in runs(agents, RECENT)}


def runs(agents: Sequence[AnyRow], count: int) -> list[tuple[AnyRow, list[AnyRow]]]:
    """Each agent with its last finished tasks, oldest first."""
    with reading() as connection:
        return [
            (
                agent,
                _RUNS.all(connection, user_id=agent.user_id, agent_id=agent.id, count=count)[::-1],
            )
            for agent in agents
        ]


def newest_task(agent: AnyRow, max_input: int) -> AnyRow | None:
    """The newest task of an agent; its `input` is None if it is longer than `max_input`."""
    values = {"user_id": agent.user_id, "agent_id": agent.id, "max_input": max_input}
    return read_one(_NEWEST_TASK, **values)


def loads(agents: Sequence[AnyRow], maximum: int) -> dict[str, Load]:
    """Agent id -> load; all agents belong to one user."""
    if not agents:
        return {}
    user_id = agents[0].user_id
    with reading() as connection:
        tasks = _RUNNING.all(connection, user_id=user_id)
        running = Counter(task.agent_id for task in tasks if task.claimed_at)
        return {
            agent.id: Load(
                _WAITING.scalar(connection, user_id=user_id, agent_id=agent.id, maximum=maximum),
                running[agent.id],
                len(tasks) <= MAX_RUNNING,
            )
            for agent in agents
        }


def health_of(agent: AnyRow, recent: Sequence[AnyRow]) -> dict[str, Any]:
    """The health of an agent, computed from its tasks `recent`, oldest first."""
    counted = [task for task in recent if task.error_type != CANCELLED]
    complete = [task for task in counted if task.status == COMPLETE]
    return {
        "recent": [
            {
                "id": task.id,
                "status": task.status,
                "errorType": task.error_type,
                "finishedAt": task.finished_at,
                "seconds": seconds(task),
            }
            for task in recent
        ],
        "successRate": len(complete) / len(counted) if counted else None,
        "lastSuccessAt": complete[-1].finished_at if complete else None,
        "medianSeconds": _median_seconds(counted),
        "state": agent.state,
        "stateSince": agent.state_since,
        "workerSeenAt": agent.worker_seen_at,
        "dueAt": agent.due_at,
        "lateSince": agent.late_since,
    }


def usual_seconds(connection: Connection, user_id: str, agent_id: str) -> float | None:
    """The usual duration of an agent's tasks, `medianSeconds` of its health."""
    recent = _RUNS.all(connection, user_id=user_id, agent_id=agent_id, count=RECENT)
    return _median_seconds([task for task in recent if task.error_type != CANCELLED])


def _median_seconds(counted: Sequence[AnyRow]) -> float | None:
    # Imported here, since few requests need it.
    from statistics import median

    durations = [lasted for task in counted if (lasted := seconds(task)) is not None]
    return round(median(durations), 3) if durations else None


def seconds(task: AnyRow) -> float | None:
    """The duration of a finished task; None if no agent claimed it."""
    if task.claimed_at is None:
        return None
    return max(0.0, clock.seconds_between(task.claimed_at, task.finished_at))


def list_by_use(caller: Caller, start: int, count: int) -> Sequence[AnyRow]:
    """Agents with `last_used_at`: broken ones first, then late ones, then the last used."""
    last_used_at = (
        select(func.max(Task.created_at))
        .where(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)
        .scalar_subquery()
        .label("last_used_at")
    )
    agents = (
        select(*AGENT_COLUMNS, last_used_at)
        .where(visible_agents)
        .order_by(
            case((Agent.state == BROKEN, 0), (Agent.late_since.is_not(None), 1), else_=2),
            last_used_at.desc().nulls_last(),
            Agent.id,
        )
    )
    return read_all(agents.offset(start).limit(count), **caller.scope)


def by_id(user_id: str, agent_ids: Collection[str]) -> dict[str, AnyRow]:
    agents = select(*AGENT_OF_TASK_COLUMNS).where(
        Agent.user_id == user_id, Agent.id.in_(sorted(agent_ids))
    )
    return {row.id: row for row in read_all(agents)}
