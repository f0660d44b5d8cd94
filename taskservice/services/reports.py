"""Applies reports to tasks, and cancels, deletes and reruns tasks."""

import hashlib
from collections.abc import Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, update
from sqlalchemy import delete as delete_from

from taskservice import resources, terms
from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.models import Question, Task, TaskLabel
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import current_time, transaction
from taskservice.errors import Problem, invalid, require
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS, parse_id
from taskservice.schemas.tasks import task_schema
from taskservice.services import attempts, deliveries, events, questions, tasks

# A report merges its output with the stored output inside its transaction if both together have at
# most QUICK_MERGE bytes. Larger outputs are merged before the transaction; after MAX_MERGES
# attempts, they are merged inside the transaction.
QUICK_MERGE = 16 * 1024
MAX_MERGES = 5
CANCELLED_MESSAGE = "Cancelled by its user"
_CHANGE = update(Task).where(Task.id == bindparam("of_task_id"))


def report(caller: Caller, task_id: str, changes: dict[str, Any]) -> tuple[TaskRow, str]:
    """Apply a report; returns the task and its `Callback-Status`. Raises 404, 409 and 422."""
    if changes.get("error") is not None and changes.get("status") != terms.ERROR:
        raise invalid({"error": ["Only allowed with the status `error`."]})
    sent = changes.get("output") or {}
    # A large merge happens outside of the transaction, so that other writers do not wait for it.
    # The merge is repeated if another report has changed the stored output since.
    size, stored, merged = len(strict_json.dumps(sent)), "", ""
    for merges in count():
        with transaction() as connection:
            task = tasks.get_locked(connection, caller, task_id)
            is_quick = not sent or len(task.output) + size <= QUICK_MERGE
            if stored != task.output and (is_quick or merges == MAX_MERGES):
                stored, merged = task.output, _merged_output(task.output, sent)
            # The stored output has not changed since the merge.
            if stored == task.output:
                values = _reported(task, changes, merged)
                # A late report can still end a task that has timed out.
                ends = changes.get("status") in (terms.COMPLETE, terms.ERROR)
                is_late = task.error_type == terms.TIMEOUT and ends
                is_result = bool(values.keys() - {"name", "labels"})
                if is_result and task.status != terms.RUNNING and not is_late:
                    raise tasks.finished_problem(task)
                changed, leased = _change(connection, caller, task, values)
                break
        stored, merged = task.output, _merged_output(task.output, sent)
    return changed, attempts.first_attempt(leased)


def cancel(caller: Caller, task_id: str) -> tuple[TaskRow, str]:
    """Cancel a running task; cancelling it again changes nothing. Raises 404 and 409."""
    changed, leased = _cancel(caller, task_id)
    return changed, attempts.first_attempt(leased)


def _cancel(caller: Caller, task_id: str) -> tuple[TaskRow, deliveries.Leased | None]:
    """Cancel a running task; returns the task and its webhook.

    The caller must send or release the webhook.
    """
    with transaction() as connection:
        task = tasks.get_locked(connection, caller, task_id)
        if task.error_type == terms.CANCELLED:
            return task, None
        if task.status != terms.RUNNING:
            raise tasks.finished_problem(task)
        cancelled = {"error_type": terms.CANCELLED, "error_message": CANCELLED_MESSAGE}
        return _change(connection, caller, task, {"status": terms.ERROR, **cancelled})


def _reported(task: TaskRow, changes: dict[str, Any], output: str) -> dict[str, Any]:
    """The new values of the columns that a report changes, by column name."""
    merged = {"labels", "output", "status", "error"}
    columns = task_schema.stored({name: changes[name] for name in changes.keys() - merged})
    if "labels" in changes:
        columns["labels"] = _merged_labels(task.labels, changes["labels"])
    if "output" in changes:
        columns["output"] = output
    if "status" in changes:
        columns |= _columns_of_end(task, changes["status"], changes.get("error"))
    return {name: value for name, value in columns.items() if value != getattr(task, name)}


def _merged_output(stored: str, changes: dict[str, Any]) -> str:
    if not changes:
        return stored
    before = strict_json.loads(stored.encode())
    merged = before | changes
    if strict_json.canonical(merged) == strict_json.canonical(before):
        return stored
    text = strict_json.dumps(merged)
    if len(text) > terms.MAX_OBJECT:
        raise invalid({"output": [f"Longer than {terms.MAX_OBJECT} bytes."]})
    return text.decode()


def _merged_labels(stored: str, changes: dict[str, str | None]) -> str:
    """The stored labels with these changes, as JSON text; the value None removes a label."""
    merged = strict_json.loads(stored.encode()) | changes
    labels = {key: value for key, value in merged.items() if value is not None}
    if len(labels) > terms.MAX_LABELS:
        raise invalid({"labels": [f"More than {terms.MAX_LABELS} labels."]})
    return strict_json.dumps(labels).decode()


def _columns_of_end(task: TaskRow, status: str, failure: dict[str, Any] | None) -> dict[str, Any]:
    if status != terms.ERROR:
        return {"status": status, "error_type": None, "error_message": None}
    if failure is None and task.status == terms.ERROR and task.error_type != terms.TIMEOUT:
        return {"status": terms.ERROR}
    message = terms.NO_MESSAGE if failure is None else failure["message"]
    return {"status": terms.ERROR, "error_type": terms.FAILED, "error_message": message}


def _change(
    connection: Connection, caller: Caller, task: TaskRow, values: dict[str, Any]
) -> tuple[TaskRow, deliveries.Leased | None]:
    """Write the changed columns; if they end the task, record its end and enqueue its webhook."""
    ends = bool(values.keys() & {"status", "error_type"})
    if ends:
        events.lock_ends(connection, [task], values.get("status", task.status))
    now = current_time(connection) if ends else clock.now()
    if values:
        values |= {"updated_at": now, "version": task.version + 1}
    if ends:
        values |= {"finished_at": now, "questions": NO_QUESTIONS, "ended_by": caller.key_name}
        values |= tasks.NOT_HANGING
    if "name" in values:
        values["name_folded"] = values["name"].casefold()
    # The values of a heartbeat are SQL expressions, so the returned row does not contain them.
    heartbeat = tasks.HEARTBEAT if task.status == terms.RUNNING else {}
    if values or heartbeat:
        connection.execute(_CHANGE.values(values | heartbeat), {"of_task_id": task.id})
    changed = cast(TaskRow, SimpleNamespace(**task._asdict() | values))
    if ends and task.questions != NO_QUESTIONS:
        # A question whose timeout has passed is already shown as expired, so it is not withdrawn.
        state = case((questions.has_expired, terms.EXPIRED), else_=terms.WITHDRAWN)
        are_open = (Question.task_id == task.id, Question.state == terms.OPEN)
        connection.execute(update(Question).where(*are_open).values(state=state))
    if "labels" in values:
        connection.execute(delete_from(TaskLabel).where(TaskLabel.task_id == task.id))
        tasks.insert_labels(connection, changed)
    if not ends:
        return changed, None
    hung = {name: getattr(task, name) for name in tasks.NOT_HANGING}
    ended = SimpleNamespace(**task._asdict() | values | hung)
    events.record_ends(connection, [ended], is_late=task.error_type == terms.TIMEOUT)
    return changed, deliveries.enqueue_webhook(connection, changed, now)


# The number of tasks that are changed between two pauses. Another process can write during a pause,
# since a process that waits for the lock tries to get it once per millisecond.
BATCH = 10
PAUSE_SECONDS = 0.01


def change_many(
    caller: Caller, action: str, task_ids: Iterable[str], key: str | None = None
) -> dict[str, Any]:
    """Cancel, delete or rerun tasks; returns the result, as in BulkResultSchema.

    Each task is changed in a separate transaction. The delivery loop sends the webhooks. Repeating
    a rerun with the same idempotency `key` starts no more tasks.
    """
    named = {parse_id(text) or text: text for text in task_ids}
    refused, started, webhooks = [], [], []
    for number, (task_id, text) in enumerate(named.items(), 1):
        try:
            require(parse_id(task_id), "task")
            if action == terms.CANCEL:
                webhooks.append(_cancel(caller, task_id)[1])
            elif action == terms.DELETE:
                tasks.delete(caller, task_id)
            else:
                own_key = key and hashlib.sha256(f"{key} {task_id}".encode()).hexdigest()
                again = tasks.Idempotency.of(own_key, {}, rerun_of=task_id)
                started.append(tasks.rerun(caller, task_id, {}, again)[0].id)
        except Problem as problem:
            refused.append({"id": text, "code": problem.code})
        if number % BATCH == 0 or number == len(named):
            deliveries.release([leased for leased in webhooks if leased])
            webhooks.clear()
            resources.stopping.wait(PAUSE_SECONDS)
    result = {"done": len(named) - len(refused), "refused": refused}
    return result | ({"tasks": started} if action == terms.RERUN else {})
