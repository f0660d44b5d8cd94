"""Starts, reports on, cancels and deletes tasks."""

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from flask import current_app
from sqlalchemy import (
    Connection,
    Integer,
    bindparam,
    case,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import (
    delete as delete_from,
)

from taskservice.auth.caller import Caller, visible_agents, visible_tasks
from taskservice.auth.valid_keys import KEY_IS_VALID
from taskservice.contract.error_codes import IDEMPOTENCY_KEY_REUSED, TASK_FINISHED
from taskservice.contract.terms import (
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
from taskservice.database import timestamps
from taskservice.database.models import Agent, ApiKey, Question, Task, TaskLabel
from taskservice.database.rows import AnyRow, TaskRow
from taskservice.database.statements import Statement
from taskservice.database.transactions import moment_by, retry_on_conflict, transaction
from taskservice.database.types import Identifier, database_now
from taskservice.problems import Problem, invalid, invalid_key, not_found
from taskservice.queries.questions import has_expired
from taskservice.queries.tasks import tasks_with_log
from taskservice.schemas import strict_json
from taskservice.schemas.columns import TASK_COLUMNS
from taskservice.schemas.input_schema import Input
from taskservice.schemas.rows import NO_QUESTIONS
from taskservice.services import attempts, removal
from taskservice.services import deliveries as delivery_service
from taskservice.webhooks.destinations import check_url

# The columns of a finished task that a report may change.
EDITABLE = {"name", "labels"}
CANCELLED_MESSAGE = "Cancelled by its user"
FAILED_MESSAGE = "The agent reported an error"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key by which a request can be repeated, and the digest of what was asked."""

    key: str
    digest: str

    @classmethod
    def of(cls, key: str, body: Any, rerun_of: str | None = None) -> "Idempotency":
        """Of a start, or of a rerun: the same key for both is another request."""
        asked = body if rerun_of is None else {"rerunOf": rerun_of, "body": body}
        return cls(key, hashlib.sha256(strict_json.canonical(asked)).hexdigest())

    def check(self, digest: str) -> None:
        """Raises 422 if the key was used for a request with another digest."""
        if digest != self.digest:
            errors = {"Idempotency-Key": ["Was used with another body."]}
            raise invalid(errors, IDEMPOTENCY_KEY_REUSED)


# The columns that a heartbeat changes. Both use the database's clock, as timeouts do, since this
# machine's clock may differ.
HEARTBEAT = {"last_heartbeat_at": database_now(), "heartbeat_deadline": database_now(Task.timeout)}

_START = Statement[None](
    insert(Task).values(
        last_heartbeat_at=database_now(),
        heartbeat_deadline=database_now(bindparam("own_timeout", type_=Integer())),
    ),
    {column.key for column in TASK_COLUMNS}
    | {"name_folded", "timeout", "idempotency_key", "idempotency_digest"},
)
_AGENT = Statement[Any](
    select(Agent.name, Agent.input_schema).where(visible_agents, Agent.id == bindparam("agent_id"))
)
_NEW_LABEL = Statement[None](insert(TaskLabel), ("task_id", "label", "user_id"))
_DELETE_LABELS = delete_from(TaskLabel).where(
    TaskLabel.task_id == bindparam("of_task_id", type_=Identifier)
)
# One that has expired was read so already, though upkeep has not stored it yet.
_WITHDRAW_QUESTIONS = (
    update(Question)
    .where(Question.task_id == bindparam("of_task_id", type_=Identifier), Question.state == OPEN)
    .values(state=case((has_expired, EXPIRED), else_=WITHDRAWN))
)
_KEY_NAME = Statement[Any](
    select(ApiKey.name).where(ApiKey.id == bindparam("key_id", type_=Identifier))
)
_REPLAYED = tasks_with_log.add_columns(Task.idempotency_digest).where(
    Task.user_id == bindparam("user_id", type_=Identifier),
    Task.idempotency_key == bindparam("idempotency_key"),
)
VISIBLE = (Task.id == bindparam("task_id", type_=Identifier), visible_tasks)
# Whether its agent may still append: it is running, or the service ended it by timeout.
IS_OPEN = or_(Task.status == RUNNING, Task.error_type == TIMEOUT)
_PARENT = Statement[Any](select(Task.id).where(*VISIBLE).with_for_update(read=True, key_share=True))
_LOCK = Statement[Any](select(Task.id).where(*VISIBLE).with_for_update())
TASK = tasks_with_log.where(*VISIBLE)
_TASK = Statement[TaskRow](TASK)
_KEY = (
    select(ApiKey.id)
    .where(ApiKey.id == bindparam("key_id", type_=Identifier), *KEY_IS_VALID)
    .with_for_update(read=True)
)
_CHANGE = update(Task).where(Task.id == bindparam("of_task_id", type_=Identifier))
_INPUT_SCHEMA = (
    select(Agent.input_schema)
    .where(Agent.user_id == Task.user_id, Agent.id == Task.agent_id)
    .scalar_subquery()
    .label("input_schema")
)
_TASK_TO_RERUN = Statement[Any](TASK.add_columns(Task.timeout, _INPUT_SCHEMA))


# --- start -------------------------------------------------------------------------------


@retry_on_conflict
def start(
    caller: Caller, fields: dict[str, Any], idempotency: Idempotency | None
) -> tuple[TaskRow, bool]:
    """Start a task from what StartSchema loaded; returns it, and whether it existed already.

    It does if the same user started it with the same idempotency key. Raises 422 for an agent
    that is not registered, an input that does not fit its schema, a callback that is not allowed,
    and an idempotency key that was used with another body.
    """
    _check_callback(fields.get("callback"))
    given = Input(strict_json.dumps(fields.get("input") or {}).decode())
    while True:
        with transaction() as connection:
            # First, so that an agent key never gets a task that another agent started.
            agent = find_agent(connection, caller, fields["agentId"])
            if agent is None:
                raise invalid({"agentId": ["No such agent; register it first."]})
            if idempotency is not None:
                replayed = _replayed(connection, caller, idempotency)
                if replayed is not None:
                    return replayed, True
            parent_id = fields.get("parentId")
            if parent_id is not None and not _lock_parent(connection, caller, parent_id):
                raise invalid({"parentId": ["No such task."]})
            if given.fits(agent.input_schema):
                # An agent that starts a task has claimed it.
                is_claimed = fields.get("claim") or caller.agent_id is not None
                started = _started(fields, agent.name, given.text)
                task = _insert(connection, caller, started, idempotency, is_claimed=is_claimed)
                return task, False
        _check_input(given, agent.input_schema)


def _started(fields: dict[str, Any], agent_name: str, input_text: str) -> dict[str, Any]:
    return {
        "agent_id": fields["agentId"],
        "name": fields.get("name") or agent_name,
        "input": input_text,
        "callback_url": fields.get("callback"),
        "timeout": fields.get("timeout"),
        "labels": strict_json.dumps(fields.get("labels") or {}).decode(),
        "parent_id": fields.get("parentId"),
    }


def _check_input(given: Input, schema: str) -> None:
    """Raises 422 if the input does not fit the schema of its agent, which may take long to see."""
    errors = given.check(schema)
    if errors:
        raise invalid(errors)


@retry_on_conflict
def rerun(
    caller: Caller, task_id: str, fields: dict[str, Any], idempotency: Idempotency | None
) -> tuple[TaskRow, bool]:
    """Start a task again, unclaimed, from what RerunSchema loaded; returns as `start` does.

    Raises 404, and 422 for an input that does not fit the agent's schema, for a callback that is
    no longer allowed, and for an idempotency key that was used with another request.
    """
    new_input = fields.get("input")
    given = None if new_input is None else Input(strict_json.dumps(new_input).decode())
    while True:
        with transaction() as connection:
            before: Any = lock(connection, caller, task_id, _TASK_TO_RERUN)
            if idempotency is not None:
                replayed = _replayed(connection, caller, idempotency)
                if replayed is not None:
                    return replayed, True
            _check_callback(before.callback_url)
            given = given or Input(before.input)
            if given.fits(before.input_schema):
                started = {
                    "agent_id": before.agent_id,
                    "name": before.name,
                    "input": given.text,
                    "callback_url": before.callback_url,
                    "timeout": before.timeout,
                    "labels": before.labels,
                    "rerun_of": before.id,
                }
                return _insert(connection, caller, started, idempotency, is_claimed=False), False
        _check_input(given, before.input_schema)


def find_agent(connection: Connection, caller: Caller, agent_id: str) -> Any:
    """The name and input schema of an agent that the caller may use; None if there is none."""
    return _AGENT.one_or_none(connection, agent_id=agent_id, **caller.scope)


def _check_callback(url: str | None) -> None:
    if url is not None:
        try:
            check_url(url, current_app.config["CALLBACK_ALLOWED"])
        except ValueError as error:
            raise invalid({"callback": [str(error)]}) from None


def _lock_parent(connection: Connection, caller: Caller, task_id: str) -> bool:
    """Whether the caller may see the task, which is then not deleted before this transaction."""
    here = {"task_id": task_id, **caller.scope}
    return _PARENT.one_or_none(connection, **here) is not None


def _replayed(connection: Connection, caller: Caller, idempotency: Idempotency) -> TaskRow | None:
    row = connection.execute(
        _REPLAYED, {"user_id": caller.user_id, "idempotency_key": idempotency.key}
    ).one_or_none()
    if row is not None:
        idempotency.check(row.idempotency_digest)
    return cast(TaskRow | None, row)


def _insert(
    connection: Connection,
    caller: Caller,
    started: dict[str, Any],
    idempotency: Idempotency | None,
    *,
    is_claimed: bool,
) -> TaskRow:
    """Insert a running task with the columns `started`."""
    now = timestamps.now()
    nulls = dict.fromkeys(column.key for column in TASK_COLUMNS)
    task = nulls | {
        **started,
        "id": timestamps.new_id(),
        "user_id": caller.user_id,
        "name_folded": started["name"].casefold(),
        "status": RUNNING,
        "output": "{}",
        "questions": NO_QUESTIONS,
        "created_at": now,
        "updated_at": now,
        "claimed_at": now if is_claimed else None,
        "first_log": 1,
        "log_count": 0,
        "log_bytes": 0,
        "version": 1,
        "idempotency_key": idempotency.key if idempotency else None,
        "idempotency_digest": idempotency.digest if idempotency else None,
    }
    _START.run(connection, **task, own_timeout=task["timeout"])
    inserted = cast(TaskRow, SimpleNamespace(**task, log_id=None))
    insert_labels(connection, inserted)
    return inserted


def insert_labels(connection: Connection, task: TaskRow) -> None:
    if task.labels != "{}":
        for key, value in strict_json.loads(task.labels.encode()).items():
            label = {"label": f"{key}:{value}", "user_id": task.user_id}
            _NEW_LABEL.run(connection, task_id=task.id, **label)


def _require_key(connection: Connection, caller: Caller) -> None:
    """Raises 401 if the caller's key was revoked or has expired since the request came.

    The request may have waited for a task, and for its turn to write. A revocation waits until
    this transaction ends.
    """
    if connection.scalar(_KEY, {"key_id": caller.key_id, "now": timestamps.now()}) is None:
        raise invalid_key()


# --- report and cancel -------------------------------------------------------------------


def report(caller: Caller, task_id: str, changes: dict[str, Any]) -> tuple[TaskRow, str]:
    """Change a task by what ReportSchema loaded; returns it and its `Callback-Status`.

    Raises 404, 422, and 409 if the task is finished and the report would change it.
    """
    _check_report(changes)
    with transaction() as connection:
        task = lock(connection, caller, task_id)
        values = _reported(task, changes)
        if values.keys() - EDITABLE and not _may_report(task, changes):
            raise finished_problem(task)
        changed, leased = _change(connection, caller, task, values)
    return changed, attempts.first_attempt(leased)


def cancel(caller: Caller, task_id: str) -> tuple[TaskRow, str]:
    """Cancel a running task; again changes nothing. Raises 404 and 409."""
    with transaction() as connection:
        task = lock(connection, caller, task_id)
        if task.error_type == CANCELLED:
            return task, attempts.NO_DELIVERY
        if task.status != RUNNING:
            raise finished_problem(task)
        values = {"status": ERROR, "error_type": CANCELLED, "error_message": CANCELLED_MESSAGE}
        changed, leased = _change(connection, caller, task, values)
    return changed, attempts.first_attempt(leased)


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


def _may_report(task: TaskRow, changes: dict[str, Any]) -> bool:
    # A late report may end a task that the service ended by timeout.
    late_report = task.error_type == TIMEOUT and changes.get("status") in (COMPLETE, ERROR)
    return task.status == RUNNING or late_report


def _check_report(changes: dict[str, Any]) -> None:
    if changes.get("error") is not None and changes.get("status") != ERROR:
        raise invalid({"error": ["Only allowed with the status error."]})


def _reported(task: TaskRow, changes: dict[str, Any]) -> dict[str, Any]:
    """Column -> new value, for the columns that a report changes."""
    wanted: dict[str, Any] = {}
    if "name" in changes:
        wanted["name"] = changes["name"]
    if "progress" in changes:
        progress = changes["progress"]
        wanted["progress"] = None if progress is None else strict_json.dumps(progress).decode()
    if "note" in changes:
        wanted["note"] = changes["note"]
    if "labels" in changes:
        wanted["labels"] = _merged_labels(task.labels, changes["labels"])
    if "output" in changes:
        wanted["output"] = _merged_output(task.output, changes["output"])
    if "status" in changes:
        wanted |= _outcome(task, changes["status"], changes.get("error"))
    return {name: value for name, value in wanted.items() if value != getattr(task, name)}


def _merged_output(stored: str, given: dict[str, Any]) -> str:
    """The stored object as JSON text, with each given key replaced whole."""
    if not given:
        return stored
    before = strict_json.loads(stored.encode())
    merged = before | given
    if strict_json.canonical(merged) == strict_json.canonical(before):
        return stored
    text = strict_json.dumps(merged)
    if len(text) > MAX_OBJECT:
        raise invalid({"output": [f"Longer than {MAX_OBJECT} bytes."]})
    return text.decode()


def _merged_labels(stored: str, given: dict[str, str | None]) -> str:
    """The stored labels as JSON text, with each given key replaced, or removed by null."""
    merged = strict_json.loads(stored.encode()) | given
    labels = {key: value for key, value in merged.items() if value is not None}
    if len(labels) > MAX_LABELS:
        raise invalid({"labels": [f"More than {MAX_LABELS} labels."]})
    return strict_json.dumps(labels).decode()


def _outcome(task: TaskRow, status: str, failure: dict[str, Any] | None) -> dict[str, Any]:
    if status != ERROR:
        return {"status": status, "error_type": None, "error_message": None}
    if failure is not None:
        return {"status": ERROR, "error_type": FAILED, "error_message": failure["message"]}
    if task.status == ERROR and task.error_type != TIMEOUT:
        return {"status": ERROR}
    return {"status": ERROR, "error_type": FAILED, "error_message": FAILED_MESSAGE}


def _change(
    connection: Connection, caller: Caller, task: TaskRow, values: dict[str, Any]
) -> tuple[TaskRow, delivery_service.Leased | None]:
    """Write the changed columns, and enqueue the webhook if they end the task."""
    ends = values.keys() & {"status", "error_type"} and values.get("status") != RUNNING
    now = moment_by(connection) if ends else timestamps.now()
    if values:
        values = {**values, "updated_at": now, "version": task.version + 1}
    if ends:
        values["finished_at"] = now
        values["questions"] = NO_QUESTIONS
        values["ended_by"] = _KEY_NAME.scalar(connection, key_id=caller.key_id)
    if "name" in values:
        values["name_folded"] = values["name"].casefold()
    if task.status == RUNNING:
        values |= HEARTBEAT
    if values:
        connection.execute(_CHANGE.values(values), {"of_task_id": task.id})
    columns = cast(AnyRow, task)._asdict() | values
    changed = cast(TaskRow, SimpleNamespace(**columns))
    if ends and task.questions != NO_QUESTIONS:
        connection.execute(_WITHDRAW_QUESTIONS, {"of_task_id": task.id})
    if "labels" in values:
        connection.execute(_DELETE_LABELS, {"of_task_id": task.id})
        insert_labels(connection, changed)
    return changed, delivery_service.enqueue(connection, changed, now) if ends else None


# --- delete ------------------------------------------------------------------------------


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
