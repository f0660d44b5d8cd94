"""Reads of single tasks."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import bindparam, exists, literal_column, select

from taskservice.auth.caller import Caller, visible_agents, visible_tasks
from taskservice.contract.terms import RUNNING
from taskservice.database.models import Agent, Log, Task
from taskservice.database.rows import AnySelect, TaskRow
from taskservice.database.transactions import reading
from taskservice.problems import not_found
from taskservice.schemas.columns import TASK_COLUMNS


def with_log(columns: Iterable[Any]) -> AnySelect:
    statement: AnySelect = select(*columns, Log.id.label("log_id"))
    return statement.outerjoin(Log, Log.task_id == Task.id)


tasks_with_log = with_log(TASK_COLUMNS)
_TASK = tasks_with_log.where(Task.id == bindparam("task_id"), visible_tasks)
_HAS_WAITING = exists().where(
    Task.user_id == Agent.user_id,
    Task.agent_id == Agent.id,
    # A literal, as in the index of these tasks, so that it is used.
    Task.status == literal_column(f"'{RUNNING}'"),
    Task.claimed_at.is_(None),
)
_AGENT_HAS_WAITING = select(_HAS_WAITING).where(visible_agents, Agent.id == bindparam("agent_id"))
_TASK_BY_ID = tasks_with_log.where(Task.id == bindparam("task_id"))


def get(caller: Caller, task_id: str) -> TaskRow:
    """A task that the caller may see. Raises 404."""
    task = find(caller, task_id)
    if task is None:
        raise not_found("task")
    return task


def find(caller: Caller, task_id: str) -> TaskRow | None:
    with reading() as connection:
        row = connection.execute(_TASK, {"task_id": task_id, **caller.scope}).one_or_none()
        return cast(TaskRow | None, row)


def has_waiting_task(caller: Caller, agent_id: str) -> bool:
    """Whether there is a task that the agent could claim. Raises 404 for an unknown agent."""
    with reading() as connection:
        has_waiting = connection.scalar(_AGENT_HAS_WAITING, {"agent_id": agent_id, **caller.scope})
    if has_waiting is None:
        raise not_found("agent")
    return has_waiting


def find_by_id(task_id: str) -> TaskRow | None:
    """A task of any user: for the service itself, never for a caller."""
    with reading() as connection:
        row = connection.execute(_TASK_BY_ID, {"task_id": task_id}).one_or_none()
        return cast(TaskRow | None, row)
