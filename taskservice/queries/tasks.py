"""Reads of single tasks."""

from collections.abc import Iterable
from typing import Any, TypeVar

from sqlalchemy import bindparam, exists, literal_column, or_, select

from taskservice.auth import Caller, visible_agents, visible_tasks
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Log, Task
from taskservice.database.transactions import reading
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    TaskAndLines,
    TaskRow,
    TaskVersion,
)
from taskservice.errors import not_found
from taskservice.schemas.columns import TASK_COLUMNS
from taskservice.services import logs
from taskservice.terms import RUNNING

R = TypeVar("R")


def with_log(columns: Iterable[Any]) -> AnySelect:
    statement: AnySelect = select(*columns, Log.id.label("log_id"))
    return statement.outerjoin(Log, Log.task_id == Task.id)


tasks_with_log = with_log(TASK_COLUMNS)
_ONE = (Task.id == bindparam("task_id"), visible_tasks)
_TASK = Statement[TaskRow](tasks_with_log.where(*_ONE))
_VERSION = Statement[TaskVersion](select(Task.version, Task.status, Task.questions).where(*_ONE))
_TASK_AND_LINES = Statement[TaskAndLines](
    with_log((*TASK_COLUMNS, logs.small_log_text.label("lines"))).where(*_ONE)
)
_HAS_WAITING = exists().where(
    Task.user_id == Agent.user_id,
    Task.agent_id == Agent.id,
    # A literal, as in the index of these tasks, so that it is used.
    Task.status == literal_column(f"'{RUNNING}'"),
    Task.claimed_at.is_(None),
)
_IS_CLAIMED = exists().where(
    Task.user_id == Agent.user_id,
    Task.agent_id == Agent.id,
    Task.claim_key == bindparam("claim_key"),
)
_AGENT_HAS_TASK = select(or_(_HAS_WAITING, _IS_CLAIMED)).where(
    visible_agents, Agent.id == bindparam("agent_id")
)
_relatives = select(
    Task.id,
    Task.name,
    Task.agent_id,
    Task.status,
    Task.error_type,
    Task.created_at,
    Task.claimed_at,
    Task.finished_at,
)
_CHILDREN = Statement[AnyRow](
    _relatives.where(Task.parent_id == bindparam("parent_id", type_=Identifier), visible_tasks)
    .order_by(Task.created_at, Task.id)
    .limit(bindparam("count"))
)
_NEWEST_RERUN = Statement[AnyRow](
    _relatives.where(Task.rerun_of == bindparam("rerun_of", type_=Identifier), visible_tasks)
    .order_by(Task.created_at.desc(), Task.id.desc())
    .limit(1)
)
_TASK_BY_ID = Statement[TaskRow](tasks_with_log.where(Task.id == bindparam("task_id")))


def get(caller: Caller, task_id: str) -> TaskRow:
    """A task that the caller may see. Raises 404."""
    return _found(find(caller, task_id))


def _found(row: R | None) -> R:
    if row is None:
        raise not_found("task")
    return row


def find(caller: Caller, task_id: str) -> TaskRow | None:
    """A task that the caller may see, or None."""
    with reading() as connection:
        return _TASK.one_or_none(connection, task_id=task_id, **caller.scope)


def children(caller: Caller, task_id: str, count: int) -> list[AnyRow]:
    """At most `count` of the tasks that a task has started, the oldest first."""
    wanted = {"parent_id": task_id, "count": count, **caller.scope}
    with reading() as connection:
        return list(_CHILDREN.all(connection, **wanted))


def newest_rerun(caller: Caller, task_id: str) -> AnyRow | None:
    with reading() as connection:
        return _NEWEST_RERUN.one_or_none(connection, rerun_of=task_id, **caller.scope)


def get_version(caller: Caller, task_id: str) -> TaskVersion:
    """The version of a task that the caller may see. Raises 404."""
    with reading() as connection:
        return _found(_VERSION.one_or_none(connection, task_id=task_id, **caller.scope))


def get_with_lines(caller: Caller, task_id: str) -> TaskAndLines:
    """A task that the caller may see, with the lines of a small log. Raises 404."""
    with reading() as connection:
        return _found(_TASK_AND_LINES.one_or_none(connection, task_id=task_id, **caller.scope))


def has_task_for_claim(caller: Caller, agent_id: str, key: str | None) -> bool:
    """Whether a claim with this idempotency key would return a task, an earlier one included.

    Raises 404 for an unknown agent.
    """
    wanted = {"agent_id": agent_id, "claim_key": key, **caller.scope}
    with reading() as connection:
        has_task = connection.scalar(_AGENT_HAS_TASK, wanted)
    if has_task is None:
        raise not_found("agent")
    return has_task


def find_by_id(task_id: str) -> TaskRow | None:
    """A task of any user: for the service itself, never for a caller."""
    with reading() as connection:
        return _TASK_BY_ID.one_or_none(connection, task_id=task_id)
