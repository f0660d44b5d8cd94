"""Locks a task that is to be changed, and deletes it."""

from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select

from taskservice.auth import Caller, visible_tasks
from taskservice.database.connections import Statement
from taskservice.database.models import Task, TaskLabel
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier, TaskRow, database_now
from taskservice.errors import Problem, not_found
from taskservice.queries.tasks import tasks_with_log
from taskservice.schemas import strict_json
from taskservice.services import removal
from taskservice.terms import RUNNING, TASK_FINISHED, TIMEOUT

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
            if removal.remove(connection, [task.id]):
                return task
