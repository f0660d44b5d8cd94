"""Registers, changes, deletes and reads agents, with their health, load and output numbers."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy import delete as delete_from

from taskservice import error_codes, terms
from taskservice.auth import Caller, is_of_agent, tasks_of_user, visible_agents
from taskservice.database import clock, transactions
from taskservice.database.connections import Statement
from taskservice.database.models import ANNOTATIONS, Agent, Task
from taskservice.database.rows import AgentRow, EndedTaskRow, TaskRow
from taskservice.database.transactions import read_all, read_one, reading, transaction
from taskservice.database.types import AnyRow, database_now
from taskservice.errors import Problem, invalid, not_found, require
from taskservice.schemas import strict_json
from taskservice.schemas.strict_json import fragment
from taskservice.schemas.users import AGENT_COLUMNS, AGENT_OF_TASK_COLUMNS, agent_schema
from taskservice.services import expected_runs, mutes
from taskservice.services.tasks import is_claimed, is_of_this_agent, is_unclaimed, of_this_agent

_AGENTS = select(*AGENT_COLUMNS).where(visible_agents).order_by(Agent.id)
_THIS = (visible_agents, Agent.id == bindparam("agent_id"))
_AGENT = select(*AGENT_COLUMNS).where(*_THIS)
# Schedules a hang check of each claimed task of the agent, since a new `expect` can change the
# result.
_CHECK_TASKS = update(Task).where(is_of_this_agent, is_claimed).values(hang_check_at=database_now())


@transactions.retry_on_conflict
def put(caller: Caller, agent_id: str, fields: dict[str, Any]) -> tuple[Any, bool]:
    """Register or change an agent; returns the agent and whether it is new. Raises 404 and 422."""
    if not terms.AGENT_ID.fullmatch(agent_id):
        raise invalid({"agentId": [f"Must match {terms.AGENT_ID.pattern}"]})
    if caller.agent_id not in (None, agent_id):
        raise not_found("agent")
    # Null leaves a field unchanged, except that it removes `expect`, ends the mute and resets
    # `tool` to its default.
    changes = {
        name: value
        for name, value in fields.items()
        if value is not None or name in ("expect", "tool", "mutedUntil")
    }
    is_mute, muted_until = "mutedUntil" in changes, changes.pop("mutedUntil", None)
    values, now = columns(changes), clock.now()
    this_agent = {"agent_id": agent_id, **caller.scope}
    with transaction() as connection:
        if "expect" in changes:
            # Lock the tasks before the agent, in the same order as a transaction that ends a task;
            # otherwise the two could deadlock.
            connection.execute(
                _CHECK_TASKS, {"of_user_id": caller.user_id, "of_agent_id": agent_id}
            )
        since = {"tool_since": tool_since(now)} if "tool" in changes else {}
        change = update(Agent).where(*_THIS).values(values | since).returning(*AGENT_COLUMNS)
        changed = connection.execute(change if values else _AGENT, this_agent).one_or_none()
        is_new = changed is None
        if is_new:
            identity = {"user_id": caller.user_id, "id": agent_id, "created_at": now}
            new = {"name": agent_id, "description": "", **values, **identity}
            changed = connection.execute(insert(Agent).returning(*AGENT_COLUMNS), new).one()
        if is_mute:
            mutes.change(connection, caller, agent_id, muted_until)
            changed = connection.execute(_AGENT, this_agent).one()
    return changed, is_new


def columns(fields: dict[str, Any]) -> dict[str, Any]:
    """The values of an agent's columns, by column name, for the fields of a request. Raises 422."""
    if "annotations" in fields:
        # An omitted hint gets its default, even if the agent had another value.
        hints = strict_json.loads(ANNOTATIONS.encode()) | fields["annotations"]
        fields = fields | {"annotations": hints}
    values = agent_schema.stored(fields)
    if "expect" in fields:
        values |= expected_runs.columns(fields["expect"], clock.now())
    if fields.get("mutedUntil") is not None:
        values["muted_at"] = clock.now()
    return values


def delete(caller: Caller, agent_id: str) -> Any:
    """Delete an agent and its keys; returns the agent. Raises 404, and 409 while it has tasks."""
    ids = {"agent_id": agent_id, **caller.scope}
    has_tasks = exists().where(is_of_agent)
    with transaction() as connection:
        agent = require(connection.execute(_AGENT.with_for_update(), ids).one_or_none(), "agent")
        if connection.execute(delete_from(Agent).where(*_THIS, ~has_tasks), ids).rowcount == 0:
            raise Problem(
                409, "The agent has tasks; delete them first", code=error_codes.AGENT_HAS_TASKS
            )
    return agent


AGENTS_PER_READ = 50  # a row of `agents` takes up to 20 KB
MAX_CHOICES = 1_000  # the maximum number of agents in the list of a form
RECENT = 30  # an agent's health is computed from this many recently finished tasks
MIN_USUAL = 3  # an agent needs this many complete tasks to have a usual duration
MAX_RUNNING = 2_000  # the maximum number of running tasks of a user that are counted
_RUNS = Statement[EndedTaskRow](
    select(Task.id, Task.name, Task.status, Task.error_type, Task.version)
    .add_columns(Task.claimed_at, Task.finished_at, Task.seconds)
    .where(*of_this_agent, Task.finished_at.is_not(None))
    .order_by(Task.finished_at.desc())
    .limit(bindparam("count"))
)
_short_input = case((func.length(Task.input) <= bindparam("max_input"), Task.input))
_NEWEST_TASK = Statement[TaskRow](
    select(Task.id, Task.name, Task.created_at, _short_input.label("input"))
    .where(*of_this_agent)
    .order_by(Task.created_at.desc(), Task.id.desc())
    .limit(1)
)
_WAITING = Statement[AnyRow](
    select(func.count()).select_from(
        select(Task.id)
        .where(*of_this_agent, is_unclaimed)
        .order_by(Task.created_at, Task.id)
        .limit(bindparam("maximum"))
        .subquery()
    )
)
# The oldest tasks include the claimed tasks, since workers claim the oldest tasks first.
_RUNNING = Statement[AnyRow](
    select(Task.agent_id, Task.claimed_at)
    .where(tasks_of_user, Task.status == terms.RUNNING)
    .order_by(Task.created_at, Task.id)
    .limit(MAX_RUNNING + 1)
)


class Load(NamedTuple):
    """How many tasks of an agent are waiting, up to a maximum, and how many are running.

    If `is_complete` is false, the agent may have more than `running` running tasks.
    """

    waiting: int
    running: int
    is_complete: bool


def list_all(caller: Caller) -> Iterator[Sequence[AgentRow]]:
    """All agents that the caller may see, in batches, ordered by ID."""
    return transactions.in_pages(_AGENTS, (Agent.id,), AGENTS_PER_READ, caller.scope)


def ids(caller: Caller, count: int | None = None) -> Sequence[str]:
    """The sorted IDs of the agents that the caller may see, at most `count`; None means all."""
    return [
        row.id for row in read_all(_AGENTS.with_only_columns(Agent.id).limit(count), **caller.scope)
    ]


def ids_with_beginnings(caller: Caller, beginnings: Collection[str], length: int) -> Sequence[str]:
    """The IDs that start with one of `beginnings`, which have `length` characters each.

    In the IDs, `.` and `-` are first replaced with `_`.
    """
    plain = func.replace(func.replace(Agent.id, ".", "_"), "-", "_")
    these = _AGENTS.with_only_columns(Agent.id).where(func.substr(plain, 1, length).in_(beginnings))
    return [row.id for row in read_all(these, **caller.scope)]


TOOL_SECONDS = 30 * 86_400  # how long an agent remains an MCP tool without a worker


def list_tools(caller: Caller, count: int) -> Sequence[AgentRow]:
    """The `count` agents that have been MCP tools for the longest time."""
    tools = select(*AGENT_COLUMNS).where(visible_agents, is_tool(clock.now()))
    since = func.coalesce(Agent.tool_since, Agent.created_at)
    return read_all(tools.order_by(since, Agent.id).limit(count), **caller.scope)


def is_tool(now: str) -> ColumnElement[bool]:
    # Without a worker, a call of the tool would only wait.
    is_served = Agent.worker_seen_at >= clock.moved(now, -TOOL_SECONDS)
    return or_(Agent.tool.is_(True), and_(Agent.tool.is_(None), is_served))


def has_worker(agent: AgentRow) -> bool:
    """Whether a worker of the agent was seen in the time for which an agent remains a tool."""
    return (agent.worker_seen_at or "") >= clock.moved(clock.now(), -TOOL_SECONDS)


def tool_since(now: str) -> ColumnElement[Any]:
    """The new value of `Agent.tool_since` for an agent that is a tool from now on."""
    return case((is_tool(now), Agent.tool_since), else_=literal(now, Agent.tool_since.type))


def get(caller: Caller, agent_id: str) -> AgentRow:
    """An agent that the caller may see. Raises 404."""
    agent: AgentRow = require(read_one(_AGENT, agent_id=agent_id, **caller.scope), "agent")
    return agent


def runs(agent: AgentRow, count: int = RECENT) -> Sequence[EndedTaskRow]:
    """The last finished tasks of an agent, oldest first."""
    return read_all(_RUNS, user_id=agent.user_id, agent_id=agent.id, count=count)[::-1]


def newest_task(agent: AgentRow, max_input: int) -> TaskRow | None:
    """The newest task of an agent; its `input` is None if it is longer than `max_input`."""
    this_agent = {"user_id": agent.user_id, "agent_id": agent.id}
    return read_one(_NEWEST_TASK, max_input=max_input, **this_agent)


def loads(caller: Caller, agents: Sequence[AgentRow], maximum: int) -> dict[str, Load]:
    """The loads of these agents, by agent ID; the agents belong to the caller's user."""
    user_id = caller.user_id
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


def health(agent: AgentRow, recent: Sequence[TaskRow]) -> dict[str, Any]:
    """The health of an agent, as in HealthOfAgentSchema; `recent` is the result of `runs`."""
    counted = [task for task in recent if task.error_type != terms.CANCELLED]
    complete = [task for task in counted if task.status == terms.COMPLETE]
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
    """The usual duration of an agent's tasks, in seconds; None if too few tasks are complete."""
    recent = _RUNS.all(connection, user_id=user_id, agent_id=agent_id, count=RECENT)
    complete = [task for task in recent if task.status == terms.COMPLETE]
    return _median_seconds(complete) if len(complete) >= MIN_USUAL else None


def _median_seconds(tasks: Sequence[TaskRow]) -> float | None:
    # Imported here, since few requests need this module.
    from statistics import median

    durations = [lasted for task in tasks if (lasted := seconds(task)) is not None]
    return round(median(durations), 3) if durations else None


def seconds(task: TaskRow | AnyRow) -> float | None:
    """The duration of a finished task in seconds; None if it is running or was never claimed."""
    if task.claimed_at is None or task.finished_at is None:
        return None
    if task.seconds is not None:
        return float(task.seconds)
    return max(0.0, clock.seconds_between(task.claimed_at, task.finished_at))


def list_by_use(caller: Caller, first: Sequence[str], start: int, count: int) -> Sequence[AgentRow]:
    """The agents with the IDs in `first`, then the other agents, most recently used first.

    Each agent has `last_used_at`.
    """
    newest = select(func.max(Task.created_at)).where(is_of_agent)
    last_used_at = newest.scalar_subquery().label("last_used_at")
    places = {agent_id: place for place, agent_id in enumerate(first)}
    place = [case(places, value=Agent.id, else_=len(first))] if first else []
    agents = select(*AGENT_COLUMNS, last_used_at).where(visible_agents)
    in_order = agents.order_by(*place, last_used_at.desc().nulls_last(), Agent.id)
    return read_all(in_order.offset(start).limit(count), **caller.scope)


def by_id(user_id: str, agent_ids: Collection[str]) -> dict[str, AgentRow]:
    these = (Agent.user_id == user_id, Agent.id.in_(sorted(agent_ids)))
    return {row.id: row for row in read_all(select(*AGENT_OF_TASK_COLUMNS).where(*these))}


# The numbers in the outputs of an agent's last tasks, exactly as they were reported.

SEARCHED = 100  # the number of tasks whose outputs are searched for paths
MAX_PATHS = 50
MAX_PATH = 200  # characters
# Only the first numbers of an output are read: at most MAX_PER_OUTPUT numbers, and at most
# MAX_NUMBERS_BYTES bytes of numbers and paths.
MAX_PER_OUTPUT = 100
MAX_NUMBERS_BYTES = 8 * 1024
MAX_BYTES = 4 * 1024 * 1024  # the maximum length of the outputs that one call reads
CACHE_SIZE = 1_000  # the number of outputs in the cache of a process; an entry has up to 50 KB

_OUTPUT = Statement[TaskRow](select(Task.output).where(Task.id == bindparam("task_id")))


class _Number(str):
    """The JSON text of a number in an output; strings in an output are plain `str`."""

    __slots__ = ()


# Long lists of numbers are ignored. Text in a string that looks like such a list is ignored too.
_LONG_LIST = re.compile(r"\[[-+.,0-9eE]{200,}\]")
_decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number)


class Number(NamedTuple):
    """A number in the output of a task; `text` is its JSON."""

    task_id: str
    finished_at: str
    text: str


def numbers_by_path(caller: Caller, agent_id: str) -> dict[str, list[Number]]:
    """The last numbers at each of the MAX_PATHS most frequent paths, oldest first. Raises 404."""
    by_path: dict[str, list[Number]] = {}
    for task, numbers in reversed([*_outputs(caller, agent_id, SEARCHED)]):
        for path, text in numbers.items():
            by_path.setdefault(path, []).append(Number(task.id, task.finished_at, text))
    paths = sorted(by_path, key=lambda path: -len(by_path[path]))
    return {path: by_path[path] for path in paths[:MAX_PATHS]}


def number_paths(caller: Caller, agent_id: str) -> list[dict[str, Any]]:
    """The paths that `numbers_by_path` finds, as in NumberPathSchema. Raises 404."""
    return [
        {"path": path, "last": fragment(numbers[-1].text), "count": len(numbers)}
        for path, numbers in numbers_by_path(caller, agent_id).items()
    ]


def numbers_at(caller: Caller, agent_id: str, path: str, limit: int) -> list[dict[str, Any]]:
    """The newest numbers at a path, oldest first, as in OutputNumberSchema. Raises 404."""
    at_path = (
        {"taskId": task.id, "finishedAt": task.finished_at, "value": fragment(numbers[path])}
        for task, numbers in _outputs(caller, agent_id, terms.MAX_LIMIT)
        if path in numbers
    )
    return list(islice(at_path, limit))[::-1]


def _outputs(
    caller: Caller, agent_id: str, count: int
) -> Iterator[tuple[EndedTaskRow, Mapping[str, str]]]:
    """The last finished tasks and their numbers by path, newest first; reads up to MAX_BYTES."""
    remaining = MAX_BYTES
    for task in reversed(runs(get(caller, agent_id), count)):
        size, numbers = _numbers(task.id, task.version)
        remaining -= size
        if remaining < 0:
            return
        yield task, numbers


@lru_cache(CACHE_SIZE)
def _numbers(task_id: str, version: int) -> tuple[int, Mapping[str, str]]:
    """The length of a task's output, and its first numbers by path; cached for each `version`."""
    text = getattr(read_one(_OUTPUT, task_id=task_id), "output", "{}")
    output = _decoder.decode(_LONG_LIST.sub("[]", text))
    by_path = (
        (path, str(value))
        for path, value in _values(output)
        if isinstance(value, _Number) and len(path) <= MAX_PATH
    )
    numbers: dict[str, str] = {}
    size = 0
    for path, number in islice(by_path, MAX_PER_OUTPUT):
        size += len(path.encode()) + len(number)
        if size > MAX_NUMBERS_BYTES:
            break
        numbers.setdefault(path, number)
    return len(text), numbers


def _values(output: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of an output with their paths: first the top-level keys, then nested keys."""
    yield from output.items()
    for key, value in output.items():
        if isinstance(value, dict) and len(key) <= MAX_PATH:
            yield from ((f"{key}.{inner}", nested) for inner, nested in value.items())
