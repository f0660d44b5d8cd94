"""Agents: registered, changed, deleted, and read, with their health and their load."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, case, exists, func, insert, select, update
from sqlalchemy import delete as delete_from

from taskservice.auth import Caller, of_user, visible_agents
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import ANNOTATIONS, Agent, Task
from taskservice.database.transactions import reading, retry_on_conflict, transaction
from taskservice.database.types import AnyRow, in_pages
from taskservice.errors import Problem, invalid, not_found
from taskservice.schemas import strict_json
from taskservice.schemas.users import AGENT_COLUMNS, AGENT_OF_TASK_COLUMNS, agent_schema
from taskservice.services.tasks import is_unclaimed
from taskservice.terms import AGENT_HAS_TASKS, AGENT_ID, CANCELLED, COMPLETE, RUNNING

# What the caller may see of the agents, or of one.
_AGENTS = select(*AGENT_COLUMNS).where(visible_agents).order_by(Agent.id)
_PAGE = _AGENTS.where(Agent.id > bindparam("after")).limit(bindparam("count"))
_TOOLS = _AGENTS.where(Agent.tool).limit(bindparam("count"))
_TOOL_IDS = _TOOLS.with_only_columns(Agent.id)
_THIS = (visible_agents, Agent.id == bindparam("agent_id"))
_AGENT = select(*AGENT_COLUMNS).where(*_THIS)


@retry_on_conflict
def put(caller: Caller, agent_id: str, fields: dict[str, Any]) -> tuple[Any, bool]:
    """Register an agent, or change its `fields`; returns it, and whether it is new.

    Raises 422 for an invalid id, and 404 when an agent key names another agent.
    """
    if not AGENT_ID.fullmatch(agent_id):
        raise invalid({"agentId": [f"Must match {AGENT_ID.pattern}"]})
    if caller.agent_id not in (None, agent_id):
        raise not_found("agent")
    # Null leaves a field as it is.
    given = {name: value for name, value in fields.items() if value is not None}
    if "annotations" in given:
        # Hints that are left out have their defaults, whatever the agent had before.
        given["annotations"] = strict_json.loads(ANNOTATIONS.encode()) | given["annotations"]
    values = agent_schema.stored(given)
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
        agent = _found(connection.execute(_AGENT.with_for_update(), here).one_or_none())
        if connection.execute(delete_from(Agent).where(*_THIS, ~has_tasks), here).rowcount == 0:
            raise Problem(409, "The agent has tasks; delete them first", code=AGENT_HAS_TASKS)
    return agent


# Reads of agents.

# How many agents of a list one read takes: each has up to 20 KB.
AGENTS_PER_READ = 50
# How many of them a page offers to choose from.
MAX_CHOICES = 1_000
# How many finished tasks tell the health of an agent.
RECENT = 30
# How many running tasks of a user are counted by agent.
MAX_RUNNING = 2_000
_RUNS = Statement[AnyRow](
    select(Task.id, Task.name, Task.status, Task.error_type, Task.claimed_at, Task.finished_at)
    .where(of_user, Task.agent_id == bindparam("agent_id"), Task.finished_at.is_not(None))
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
    .where(of_user, Task.agent_id == bindparam("agent_id"))
    .order_by(Task.created_at.desc(), Task.id.desc())
    .limit(1)
)
_IS_WAITING = (of_user, Task.agent_id == bindparam("agent_id"), is_unclaimed)
_WAITING = Statement[AnyRow](
    select(func.count()).select_from(
        select(Task.id)
        .where(*_IS_WAITING)
        .order_by(Task.created_at, Task.id)
        .limit(bindparam("maximum"))
        .subquery()
    )
)
# Claims take the oldest waiting task, so the last ones that were claimed stand right before it.
_BEFORE_WAITING = (
    select(Task.claimed_at)
    .where(
        of_user,
        Task.agent_id == bindparam("agent_id"),
        Task.created_at <= select(func.min(Task.created_at)).where(*_IS_WAITING).scalar_subquery(),
    )
    .order_by(Task.created_at.desc(), Task.id.desc())
    .limit(bindparam("count"))
    .subquery()
)
_LAST_CLAIM = Statement[AnyRow](select(func.max(_BEFORE_WAITING.c.claimed_at)))
# The oldest, since claims take the oldest first.
_RUNNING = Statement[AnyRow](
    select(Task.agent_id, Task.claimed_at)
    .where(of_user, Task.status == RUNNING)
    .order_by(Task.created_at, Task.id)
    .limit(MAX_RUNNING + 1)
)


class Load(NamedTuple):
    """How many tasks of an agent wait, at most as many as were asked for, and how many run.

    Unless `is_complete`, more may run.
    """

    waiting: int
    running: int
    is_complete: bool


def list_all(caller: Caller) -> Iterator[Sequence[AnyRow]]:
    """All agents that the caller may see, ordered by id, some at a time."""

    def read(last: AnyRow | None, count: int) -> Sequence[AnyRow]:
        wanted = {"after": last.id if last else "", "count": count, **caller.scope}
        with reading() as connection:
            return connection.execute(_PAGE, wanted).all()

    return in_pages(read, AGENTS_PER_READ)


def ids(caller: Caller, count: int | None = None) -> Sequence[str]:
    """The ids of the first `count` agents that the caller may see, or of all, in order."""
    with reading() as connection:
        found = _AGENTS.with_only_columns(Agent.id).limit(count)
        return connection.scalars(found, caller.scope).all()


def choices(caller: Caller) -> Sequence[str]:
    """The ids of the first MAX_CHOICES agents."""
    return ids(caller, MAX_CHOICES)


def list_tools(caller: Caller, count: int) -> Sequence[AnyRow]:
    """At most `count` of the agents that are tools of MCP, ordered by id."""
    with reading() as connection:
        return connection.execute(_TOOLS, {"count": count, **caller.scope}).all()


def tool_ids(caller: Caller, count: int) -> Sequence[str]:
    """The ids of the agents that `list_tools` returns."""
    with reading() as connection:
        return connection.scalars(_TOOL_IDS, {"count": count, **caller.scope}).all()


def get(caller: Caller, agent_id: str) -> AnyRow:
    """An agent that the caller may see. Raises 404."""
    here = {"agent_id": agent_id, **caller.scope}
    with reading() as connection:
        return _found(connection.execute(_AGENT, here).one_or_none())


def _found(agent: AnyRow | None) -> AnyRow:
    if agent is None:
        raise not_found("agent")
    return agent


def health(agents: Sequence[AnyRow]) -> dict[str, dict[str, Any]]:
    """Agent -> its health as HealthOfAgentSchema describes it; the agents are of one user."""
    return {agent.id: health_of(found) for agent, found in runs(agents, RECENT)}


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
    """The task of the agent that was started last; its `input` is None if it is longer."""
    values = {"user_id": agent.user_id, "agent_id": agent.id, "max_input": max_input}
    with reading() as connection:
        return _NEWEST_TASK.one_or_none(connection, **values)


def loads(agents: Sequence[AnyRow], maximum: int) -> dict[str, Load]:
    """Agent -> its load; the agents are of one user."""
    if not agents:
        return {}
    user_id = agents[0].user_id
    with reading() as connection:
        found = _RUNNING.all(connection, user_id=user_id)
        running = Counter(task.agent_id for task in found if task.claimed_at)
        return {
            agent.id: Load(
                _WAITING.scalar(connection, user_id=user_id, agent_id=agent.id, maximum=maximum),
                running[agent.id],
                len(found) <= MAX_RUNNING,
            )
            for agent in agents
        }


def last_claim(user_id: str, agent_id: str) -> str | None:
    """When a worker last claimed a task of an agent that has one waiting, as far as is known."""
    wanted = {"user_id": user_id, "agent_id": agent_id, "count": RECENT}
    with reading() as connection:
        return _LAST_CLAIM.scalar(connection, **wanted)  # type: ignore[no-any-return]


def health_of(recent: Sequence[AnyRow]) -> dict[str, Any]:
    """The health that these tasks of one agent tell, oldest first."""
    # Here, since few requests need it.
    from statistics import median

    counted = [task for task in recent if task.error_type != CANCELLED]
    complete = [task for task in counted if task.status == COMPLETE]
    durations = [lasted for task in counted if (lasted := seconds(task)) is not None]
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
        "medianSeconds": round(median(durations), 3) if durations else None,
    }


def seconds(task: AnyRow) -> float | None:
    """The duration of a finished task; None if no agent claimed it."""
    if task.claimed_at is None:
        return None
    return max(0.0, clock.seconds_between(task.claimed_at, task.finished_at))


def list_by_use(caller: Caller, start: int, count: int) -> Sequence[AnyRow]:
    """Agents with the start of their last task, `last_used_at`: newest first, unused ones last."""
    last_used_at = (
        select(func.max(Task.created_at))
        .where(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)
        .scalar_subquery()
        .label("last_used_at")
    )
    agents = (
        select(*AGENT_COLUMNS, last_used_at)
        .where(visible_agents)
        .order_by(last_used_at.desc().nulls_last(), Agent.id)
    )
    with reading() as connection:
        return connection.execute(agents.offset(start).limit(count), caller.scope).all()


def by_id(user_id: str, agent_ids: Collection[str]) -> dict[str, AnyRow]:
    agents = select(*AGENT_OF_TASK_COLUMNS).where(
        Agent.user_id == user_id, Agent.id.in_(sorted(agent_ids))
    )
    with reading() as connection:
        return {row.id: row for row in connection.execute(agents)}
