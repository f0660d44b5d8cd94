"""Removes tasks with all that belongs to them, some in one transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Float, bindparam, select, update
from sqlalchemy import delete as sql_delete

from taskservice.database import clock
from taskservice.database.models import Log, Task
from taskservice.database.types import database_now

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
