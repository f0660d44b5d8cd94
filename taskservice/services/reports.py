"""Reports on tasks, and cancels them."""

from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, update
from sqlalchemy import delete as delete_from

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.models import Question, Task, TaskLabel
from taskservice.database.transactions import current_time, transaction
from taskservice.database.types import AnyRow, TaskRow
from taskservice.errors import invalid
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.schemas.tasks import task_schema
from taskservice.services import attempts, events
from taskservice.services import deliveries as delivery_service
from taskservice.services.questions import has_expired
from taskservice.services.tasks import HEARTBEAT, finished_problem, get_locked, insert_labels
from taskservice.terms import (
    CANCELLED,
    COMPLETE,
    ERROR,
    EXPIRED,
    FAILED,
    MAX_LABELS,
    MAX_OBJECT,
    OPEN,
    RUNNING,
    TIMEOUT,
    WITHDRAWN,
)

# A report merges outputs of up to QUICK_MERGE bytes together in its transaction, and larger ones
# MAX_MERGES times before it.
QUICK_MERGE = 16 * 1024
MAX_MERGES = 5
# The columns of a finished task that a report may change.
EDITABLE = {"name", "labels"}
# The fields of a report that are not stored as they are sent.
MERGED = {"labels", "output", "status", "error"}
CANCELLED_MESSAGE = "Cancelled by its user"
FAILED_MESSAGE = "The agent reported an error"
_CHANGE = update(Task).where(Task.id == bindparam("of_task_id"))


def report(caller: Caller, task_id: str, changes: dict[str, Any]) -> tuple[TaskRow, str]:
    """Apply a report; returns the task and its `Callback-Status`. Raises 404, 409 and 422."""
    if changes.get("error") is not None and changes.get("status") != ERROR:
        raise invalid({"error": ["Only allowed with the status error."]})
    output = _Output(changes.get("output") or {})
    while True:
        with transaction() as connection:
            task = get_locked(connection, caller, task_id)
            if output.may_merge_now(task.output):
                values = _reported(task, changes, output)
                # A late report may end a task that the service ended by timeout.
                is_late = task.error_type == TIMEOUT and changes.get("status") in (COMPLETE, ERROR)
                if values.keys() - EDITABLE and task.status != RUNNING and not is_late:
                    raise finished_problem(task)
                changed, leased = _change(connection, caller, task, values, is_late=is_late)
                break
        # It takes long, so outside of the transaction; the next one finds it done.
        output.merged(task.output)
    return changed, attempts.first_attempt(leased)


def cancel(caller: Caller, task_id: str) -> tuple[TaskRow, str]:
    """Cancel a running task; repeating it changes nothing. Raises 404 and 409."""
    changed, leased = end_by_cancel(caller, task_id)
    return changed, attempts.first_attempt(leased)


def end_by_cancel(caller: Caller, task_id: str) -> tuple[TaskRow, delivery_service.Leased | None]:
    """Cancel a running task; returns it, and its webhook, which the caller sends or releases."""
    with transaction() as connection:
        task = get_locked(connection, caller, task_id)
        if task.error_type == CANCELLED:
            return task, None
        if task.status != RUNNING:
            raise finished_problem(task)
        values = {"status": ERROR, "error_type": CANCELLED, "error_message": CANCELLED_MESSAGE}
        return _change(connection, caller, task, values)


def _reported(task: TaskRow, changes: dict[str, Any], output: "_Output") -> dict[str, Any]:
    """Column -> new value, for the columns that a report changes."""
    wanted = task_schema.stored({name: changes[name] for name in changes.keys() - MERGED})
    if "labels" in changes:
        wanted["labels"] = _merged_labels(task.labels, changes["labels"])
    if "output" in changes:
        wanted["output"] = output.merged(task.output)
    if "status" in changes:
        wanted |= _columns_of_end(task, changes["status"], changes.get("error"))
    return {name: value for name, value in wanted.items() if value != getattr(task, name)}


class _Output:
    """The output of a report, merged into the stored one.

    Merging large outputs takes long, and in a transaction other writers would wait for it. So a
    report merges before its transaction, which then stores the result if the stored output is
    still the same.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        self._changes = changes
        self._size = len(strict_json.dumps(changes))
        self._merges = 0
        self._stored = self._merged = ""

    def may_merge_now(self, stored: str) -> bool:
        """Whether `merged` may be called in a transaction.

        It may if it is quick, if its result is known, or if other reports have overtaken MAX_MERGES
        merges before a transaction.
        """
        is_small = not self._changes or len(stored) + self._size <= QUICK_MERGE
        return is_small or stored == self._stored or self._merges == MAX_MERGES

    def merged(self, stored: str) -> str:
        """The stored object as JSON text, with each given key replaced whole."""
        if stored != self._stored:
            self._merges += 1
            self._stored, self._merged = stored, _merged_output(stored, self._changes)
        return self._merged


def _merged_output(stored: str, changes: dict[str, Any]) -> str:
    if not changes:
        return stored
    before = strict_json.loads(stored.encode())
    merged = before | changes
    if strict_json.canonical(merged) == strict_json.canonical(before):
        return stored
    text = strict_json.dumps(merged)
    if len(text) > MAX_OBJECT:
        raise invalid({"output": [f"Longer than {MAX_OBJECT} bytes."]})
    return text.decode()


def _merged_labels(stored: str, changes: dict[str, str | None]) -> str:
    """The stored labels as JSON text, with each given key replaced, or removed by null."""
    merged = strict_json.loads(stored.encode()) | changes
    labels = {key: value for key, value in merged.items() if value is not None}
    if len(labels) > MAX_LABELS:
        raise invalid({"labels": [f"More than {MAX_LABELS} labels."]})
    return strict_json.dumps(labels).decode()


def _columns_of_end(task: TaskRow, status: str, failure: dict[str, Any] | None) -> dict[str, Any]:
    if status != ERROR:
        return {"status": status, "error_type": None, "error_message": None}
    if failure is not None:
        return {"status": ERROR, "error_type": FAILED, "error_message": failure["message"]}
    if task.status == ERROR and task.error_type != TIMEOUT:
        return {"status": ERROR}
    return {"status": ERROR, "error_type": FAILED, "error_message": FAILED_MESSAGE}


def _change(
    connection: Connection,
    caller: Caller,
    task: TaskRow,
    values: dict[str, Any],
    *,
    is_late: bool = False,
) -> tuple[TaskRow, delivery_service.Leased | None]:
    """Write the changed columns; if they end the task, record it and enqueue the webhook."""
    ends = bool(values.keys() & {"status", "error_type"})
    if ends:
        events.lock_ends(connection, [task], values.get("status", task.status))
    now = current_time(connection) if ends else clock.now()
    if values:
        values = {**values, "updated_at": now, "version": task.version + 1}
    if ends:
        values["finished_at"] = now
        values["questions"] = NO_QUESTIONS
        values["ended_by"] = caller.key_name
    if "name" in values:
        values["name_folded"] = values["name"].casefold()
    # SQL, so it does not belong into the row that is returned.
    heartbeat = HEARTBEAT if task.status == RUNNING else {}
    if values or heartbeat:
        connection.execute(_CHANGE.values(values | heartbeat), {"of_task_id": task.id})
    columns = cast(AnyRow, task)._asdict() | values
    changed = cast(TaskRow, SimpleNamespace(**columns))
    if ends and task.questions != NO_QUESTIONS:
        # Reads already show an expired question as expired, even if that is not stored yet.
        state = case((has_expired, EXPIRED), else_=WITHDRAWN)
        are_open = (Question.task_id == task.id, Question.state == OPEN)
        connection.execute(update(Question).where(*are_open).values(state=state))
    if "labels" in values:
        connection.execute(delete_from(TaskLabel).where(TaskLabel.task_id == task.id))
        insert_labels(connection, changed)
    if not ends:
        return changed, None
    events.record_ends(connection, [changed], is_late)
    return changed, delivery_service.enqueue_webhook(connection, changed, now)
