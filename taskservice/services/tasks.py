"""Locks a task that is to be changed, and deletes it."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    BindParameter,
    Connection,
    Float,
    bindparam,
    exists,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import delete as sql_delete

from taskservice.auth import Caller, visible_agents, visible_tasks
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Log, Task, TaskLabel
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    TaskAndLines,
    TaskRow,
    TaskVersion,
    database_now,
)
from taskservice.errors import Problem, invalid, not_found
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import TASK_COLUMNS
from taskservice.services import logs
from taskservice.terms import IDEMPOTENCY_KEY_REUSED, RUNNING, TASK_FINISHED, TIMEOUT

# Reads of single tasks.

R = TypeVar("R")


def with_log(columns: Iterable[Any]) -> AnySelect:
    statement: AnySelect = select(*columns, Log.id.label("log_id"))
    return statement.outerjoin(Log, Log.task_id == Task.id)


tasks_with_log = with_log(TASK_COLUMNS)
_ONE = (Task.id == bindparam("task_id"), visible_tasks)
_ONE_TASK = Statement[TaskRow](tasks_with_log.where(*_ONE))
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
        return _ONE_TASK.one_or_none(connection, task_id=task_id, **caller.scope)


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


# Removes tasks with all that belongs to them, some in one transaction.

# How many tasks lose their parent, or what they run again, in one transaction.
REFERENCES = 500

_IDS: BindParameter[Any] = bindparam("task_ids", expanding=True)
_DETACH_LOGS = (
    update(Log)
    .where(Log.task_id.in_(_IDS))
    .values(task_id=None, dropped_at=database_now(bindparam("seconds", type_=Float())))
)
# For each column that refers to tasks: some tasks that refer to one, and how they forget it. Two
# statements, since a task may be deleted in between: how many were changed says nothing.
_REFERENCES = tuple(
    (
        select(Task.id).where(column.in_(_IDS)).limit(bindparam("references")),
        update(Task)
        .where(Task.id.in_(bindparam("ids", expanding=True)))
        .values({column: None, Task.version: Task.version + 1, Task.updated_at: bindparam("now")}),
    )
    for column in (Task.parent_id, Task.rerun_of)
)
_DELETE = sql_delete(Task).where(Task.id.in_(_IDS))


def remove(connection: Connection, task_ids: Sequence[str], logs_dropped_ago: float = 0.0) -> bool:
    """Delete tasks that this transaction has locked; their logs were dropped some seconds ago.

    False if they are still there: REFERENCES tasks or more refer to them, so call it again.
    """
    here = {"task_ids": task_ids, "references": REFERENCES}
    for referring, forget in _REFERENCES:
        ids = connection.scalars(referring, here).all()
        if ids:
            connection.execute(forget, {"ids": ids, "now": clock.now()})
        if len(ids) == REFERENCES:
            return False
    detach_logs(connection, task_ids, logs_dropped_ago)
    connection.execute(_DELETE, {"task_ids": task_ids})
    return True


def detach_logs(connection: Connection, task_ids: Sequence[str], seconds: float = 0.0) -> None:
    """Detach the lines of tasks' logs, as if that had been `seconds` ago, for the sweep."""
    connection.execute(_DETACH_LOGS, {"task_ids": task_ids, "seconds": -seconds})


# Locks a task that is to be changed, and deletes it.

# The columns that a heartbeat changes. Both use the database's clock, as timeouts do, since this
# machine's clock may differ.
HEARTBEAT = {"last_heartbeat_at": database_now(), "heartbeat_deadline": database_now(Task.timeout)}
_NEW_LABEL = Statement[None](insert(TaskLabel), ("task_id", "label", "user_id"))
VISIBLE = (Task.id == bindparam("task_id", type_=Identifier), visible_tasks)
# Whether its agent may still append: it is running, or the service ended it by timeout.
IS_OPEN = or_(Task.status == RUNNING, Task.error_type == TIMEOUT)
_LOCK = Statement[Any](select(Task.id).where(*VISIBLE).with_for_update())
TASK = tasks_with_log.where(*VISIBLE)
_TASK = Statement[TaskRow](TASK)


def insert_labels(connection: Connection, task: TaskRow) -> None:
    if task.labels != "{}":
        for key, value in strict_json.loads(task.labels.encode()).items():
            label = {"label": f"{key}:{value}", "user_id": task.user_id}
            _NEW_LABEL.run(connection, task_id=task.id, **label)


def lock(
    connection: Connection,
    caller: Caller,
    task_id: str,
    statement: Statement[Any] = _TASK,
    **values: Any,
) -> TaskRow:
    """The task, locked until this transaction ends, as `statement` reads it. Raises 404."""
    here = {"task_id": task_id, **caller.scope}
    if connection.dialect.name == "postgresql":
        # A SELECT that waits for a lock reads joined rows as they were before: so lock first.
        _LOCK.run(connection, **here)
    task: TaskRow | None = statement.one_or_none(connection, **here, **values)
    if task is None:
        raise not_found("task")
    return task


def is_open(task: TaskRow) -> bool:
    """Whether IS_OPEN holds for this task."""
    return task.status == RUNNING or task.error_type == TIMEOUT


def finished_problem(task: TaskRow) -> Problem:
    """409 with the task's end: an agent stops only if the task was cancelled."""
    error = None
    if task.error_type is not None:
        error = {"type": task.error_type, "message": task.error_message}
    return Problem(
        409,
        "The task is finished",
        code=TASK_FINISHED,
        more={"task": {"id": task.id, "status": task.status, "error": error}},
    )


def delete(caller: Caller, task_id: str) -> TaskRow:
    """Delete a task with its log and deliveries; returns it as it was. Raises 404.

    Its log is only detached: the returned row can still be read with its lines, until the
    sweep removes them.
    """
    while True:
        with transaction() as connection:
            task = lock(connection, caller, task_id)
            if remove(connection, [task.id]):
                return task


# The key by which a client can repeat a request.


class Idempotency(NamedTuple):
    """The key by which a request can be repeated, and the digest of what was asked."""

    key: str
    digest: str

    @classmethod
    def of(cls, key: str | None, body: Any, rerun_of: str | None = None) -> "Idempotency | None":
        """Of a start, or of a rerun: the same key for both is another request; None without one."""
        if key is None:
            return None
        asked = body if rerun_of is None else {"rerunOf": rerun_of, "body": body}
        return cls(key, hashlib.sha256(strict_json.canonical(asked)).hexdigest())

    def check(self, digest: str) -> None:
        """Raises 422 if the key was used for a request with another digest."""
        if digest != self.digest:
            errors = {"Idempotency-Key": ["Was used with another body."]}
            raise invalid(errors, IDEMPOTENCY_KEY_REUSED)
