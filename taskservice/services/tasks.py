"""Reads, starts, reruns, claims and deletes tasks, and locks them for a change."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from flask import current_app
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    and_,
    bindparam,
    exists,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import delete as sql_delete

from taskservice import auth, terms
from taskservice.auth import Caller, is_of_agent, tasks_of_user, visible_agents, visible_tasks
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import INPUT_SCHEMA, Agent, ApiKey, Log, Task, TaskLabel
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import read_all, read_one, retry_on_conflict, transaction
from taskservice.database.types import AnySelect, database_now
from taskservice.error_codes import IDEMPOTENCY_KEY_REUSED, TASK_FINISHED
from taskservice.errors import Problem, invalid, invalid_key, require
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.schemas.input_schema import input_problems
from taskservice.schemas.tasks import TASK_COLUMNS, task_schema
from taskservice.services import expected_runs
from taskservice.terms import CANCELLED, RUNNING
from taskservice.webhooks.destinations import check_url


def with_log_id(columns: Iterable[Any]) -> AnySelect:
    statement: AnySelect = select(*columns, Log.id.label("log_id"))
    return statement.outerjoin(Log, Log.task_id == Task.id)


tasks_with_log_id = with_log_id(TASK_COLUMNS)
is_this_task: ColumnElement[bool] = and_(Task.id == bindparam("task_id"), visible_tasks)
select_task = tasks_with_log_id.where(is_this_task)
_SELECT_TASK = Statement[TaskRow](select_task)
_VERSION = Statement[TaskRow](
    select(Task.version, Task.status, Task.claimed_at, Task.questions).where(is_this_task)
)
_TASK_BY_ID = Statement[TaskRow](tasks_with_log_id.where(Task.id == bindparam("task_id")))
relatives = select(Task.id, Task.name, Task.agent_id, Task.status, Task.error_type).add_columns(
    Task.created_at, Task.claimed_at, Task.finished_at, Task.seconds
)
_OLDEST_FIRST = (Task.created_at, Task.id)
_NEWEST_FIRST = (Task.created_at.desc(), Task.id.desc())
_CHILDREN = Statement[TaskRow](
    relatives.where(Task.parent_id == bindparam("parent_id"), visible_tasks)
    .order_by(*_OLDEST_FIRST)
    .limit(bindparam("count"))
)
_NEWEST_RERUN = Statement[TaskRow](
    relatives.where(Task.rerun_of == bindparam("rerun_of"), visible_tasks)
    .order_by(*_NEWEST_FIRST)
    .limit(1)
)
of_this_agent = (tasks_of_user, Task.agent_id == bindparam("agent_id"))
_finished = (
    select(Task.id, Task.user_id, Task.agent_id, Task.labels, Task.error_type)
    .add_columns(Task.error_message)
    .where(*of_this_agent, Task.finished_at.is_not(None))
    .order_by(Task.finished_at.desc())
    .limit(1_000)
    .subquery()
)
# The newest failure among the last 1,000 finished tasks. Both SQLite and PostgreSQL read the
# rows in the order of the subquery, and stop at the first failure.
NEWEST_FAILURE = Statement[TaskRow](
    select(_finished).where(_finished.c.error_type != CANCELLED).limit(1)
)


def get(caller: Caller, task_id: str) -> TaskRow:
    """A task that the caller may see. Raises 404."""
    return require(find(caller, task_id), "task")


def find(caller: Caller, task_id: str) -> TaskRow | None:
    """A task that the caller may see, or None."""
    return read_one(_SELECT_TASK, task_id=task_id, **caller.scope)


def find_by_id(task_id: str) -> TaskRow | None:
    """A task of any user; used only by the service itself, not for a caller's request."""
    return read_one(_TASK_BY_ID, task_id=task_id)


def get_version(caller: Caller, task_id: str) -> TaskRow:
    """The version and state of a task that the caller may see. Raises 404."""
    version: TaskRow | None = read_one(_VERSION, task_id=task_id, **caller.scope)
    return require(version, "task")


def children(caller: Caller, task_id: str, count: int) -> Sequence[TaskRow]:
    """The oldest `count` children of a task, oldest first."""
    return read_all(_CHILDREN, parent_id=task_id, count=count, **caller.scope)


def newest_rerun(caller: Caller, task_id: str) -> TaskRow | None:
    return read_one(_NEWEST_RERUN, rerun_of=task_id, **caller.scope)


# The columns that a heartbeat changes. The database sets these times, since timeouts are checked
# against its clock, and this machine's clock may differ.
HEARTBEAT = {"last_heartbeat_at": database_now(), "heartbeat_deadline": database_now(Task.timeout)}
# The columns that describe a hang, with the values that they get when a task ends.
NOT_HANGING = {"hanging_since": None, "hanging_reason": None}
_LOCK = Statement[Any](select(Task.id).where(is_this_task).with_for_update())


def get_locked(
    connection: Connection,
    caller: Caller,
    task_id: str,
    statement: Statement[Any] = _SELECT_TASK,
    **values: Any,
) -> TaskRow:
    """Lock a task until this transaction ends; returns the row of `statement`. Raises 404."""
    this_task = {"task_id": task_id, **caller.scope}
    # On SQLite, the transaction itself locks out other writers.
    if connection.dialect.name == "postgresql":
        # A SELECT that waits for a lock reads joined rows as they were before the wait, so the task
        # is locked by a separate statement first.
        _LOCK.run(connection, **this_task)
    task: TaskRow | None = statement.one_or_none(connection, **this_task, **values)
    return require(task, "task")


def finished_problem(task: TaskRow) -> Problem:
    """A 409 with the task's final status.

    A client stops its program only if the task was cancelled.
    """
    error = {"type": task.error_type, "message": task.error_message} if task.error_type else None
    ended = {"id": task.id, "status": task.status, "error": error}
    return Problem(409, "The task is finished", code=TASK_FINISHED, members={"task": ended})


def delete(caller: Caller, task_id: str) -> TaskRow:
    """Delete a task; returns the task. Raises 404.

    Requests that are reading its log can continue until the background sweep removes the log.
    """
    with transaction() as connection:
        task = get_locked(connection, caller, task_id)
        remove(connection, [task.id])
        return task


def remove(connection: Connection, task_ids: Sequence[str], logs_dropped_ago: float = 0.0) -> None:
    """Delete tasks that this transaction has locked, and detach their logs."""
    for column in (Task.parent_id, Task.rerun_of):
        changes = {column: None, Task.version: Task.version + 1, Task.updated_at: clock.now()}
        connection.execute(update(Task).where(column.in_(task_ids)).values(changes))
    detach_logs(connection, task_ids, logs_dropped_ago)
    connection.execute(sql_delete(Task).where(Task.id.in_(task_ids)))


def detach_logs(connection: Connection, task_ids: Sequence[str], seconds: float = 0.0) -> None:
    """Detach the logs of tasks, and mark them as dropped `seconds` ago, for the sweep."""
    dropped = {"task_id": None, "dropped_at": database_now(-seconds)}
    connection.execute(update(Log).where(Log.task_id.in_(task_ids)).values(dropped))


class Idempotency(NamedTuple):
    """The idempotency key and the digest of a request; the fields are named like the columns."""

    idempotency_key: str | None = None
    idempotency_digest: str | None = None

    @classmethod
    def of(cls, key: str | None, body: Any, rerun_of: str | None = None) -> "Idempotency":
        """The idempotency of a request; a rerun never has the same digest as a start."""
        if key is None:
            return cls()
        asked = body if rerun_of is None else {"rerunOf": rerun_of, "body": body}
        return cls(key, hashlib.sha256(strict_json.canonical(asked)).hexdigest())

    def replayed(self, connection: Connection, with_key: AnySelect, **values: str) -> Any:
        """The row that a request with this key created, or None.

        Raises 422 if the earlier request had another body.
        """
        if self.idempotency_key is None:
            return None
        values["idempotency_key"] = self.idempotency_key
        row: Any = connection.execute(with_key, values).one_or_none()
        if row is not None and row.idempotency_digest != self.idempotency_digest:
            errors = {"Idempotency-Key": ["Was used with another body."]}
            raise invalid(errors, IDEMPOTENCY_KEY_REUSED)
        return row


# The columns that an INSERT of a task sets in addition to TASK_COLUMNS and _NEW_TASK.
MORE_COLUMNS = {"name_folded", "timeout", "idempotency_key", "idempotency_digest"}
# The time of the first check for a hang. Before the shortest `maxDuration`, no task can hang.
_FIRST_CHECK = {"hang_check_at": database_now(float(terms.MIN_DURATION))}
# The INSERT of a task, which also starts its inactivity timeout.
_NEW_TASK = insert(Task).values(
    last_heartbeat_at=database_now(),
    heartbeat_deadline=database_now(bindparam("own_timeout", type_=Integer())),
    **_FIRST_CHECK,
)
_START = Statement[None](_NEW_TASK, {column.key for column in TASK_COLUMNS} | MORE_COLUMNS)
_NEW_LABEL = Statement[None](insert(TaskLabel), ("task_id", "label", "user_id"))
_AGENT = Statement[Any](
    select(Agent.name, Agent.input_schema, Agent.expect).where(
        visible_agents, Agent.id == bindparam("agent_id")
    )
)
_WITH_KEY = tasks_with_log_id.add_columns(Task.idempotency_digest).where(
    Task.user_id == bindparam("user_id"), Task.idempotency_key == bindparam("idempotency_key")
)
_PARENT = Statement[Any](
    select(Task.id).where(is_this_task).with_for_update(read=True, key_share=True)
)
_TASK_TO_RERUN = Statement[Any](
    select_task.add_columns(Task.timeout, Agent.input_schema, Agent.expect).join(Agent, is_of_agent)
)
_RERUN_COLUMNS = ("agent_id", "name", "input", "callback_url", "timeout", "labels")


def start(caller: Caller, fields: dict[str, Any], idempotency: Idempotency) -> tuple[TaskRow, bool]:
    """Start a task with fields that StartSchema loaded. Raises 422.

    Returns the task, and whether a request with the same idempotency key had already started it.
    """
    # A task that is started with an agent key is claimed at once.
    is_claimed = bool(fields.get("claim")) or caller.agent_id is not None
    claimed_at = fields.get("claimedAt")
    if claimed_at is not None and not is_claimed:
        raise invalid({"claimedAt": ["Only allowed with `claim`."]})
    if claimed_at is not None and not clock.now(-30 * 86_400.0) <= claimed_at <= clock.now():
        raise invalid({"claimedAt": ["Must be within the last 30 days."]})
    # An invalid callback is rejected before the wait for the write lock.
    _check_callback(fields.get("callback"))
    objects = {name: fields.get(name) or {} for name in ("input", "labels")}
    sent = task_schema.stored(fields | objects) | {"timeout": fields.get("timeout")}

    def load(connection: Connection) -> tuple[dict[str, Any], Any]:
        agent = _AGENT.one_or_none(connection, agent_id=fields["agentId"], **caller.scope)
        if agent is None:
            raise invalid({"agentId": ["No such agent; register it first."]})
        return sent | {"name": fields.get("name") or agent.name}, agent

    return _start(caller, load, idempotency, is_claimed=is_claimed)


def rerun(
    caller: Caller, task_id: str, fields: dict[str, Any], idempotency: Idempotency
) -> tuple[TaskRow, bool]:
    """Rerun a task with fields that RerunSchema loaded. Raises 404 and 422.

    Returns the new, unclaimed task, and whether a request with the same idempotency key had already
    created it.
    """
    sent = {name: value for name, value in fields.items() if value is not None}
    new = task_schema.stored(sent) | {"rerun_of": task_id}

    def load(connection: Connection) -> tuple[dict[str, Any], Any]:
        before: Any = get_locked(connection, caller, task_id, _TASK_TO_RERUN)
        return {name: getattr(before, name) for name in _RERUN_COLUMNS} | new, before

    return _start(caller, load, idempotency, is_claimed=False)


@retry_on_conflict
def _start(
    caller: Caller,
    load: Callable[[Connection], tuple[dict[str, Any], Any]],
    idempotency: Idempotency,
    *,
    is_claimed: bool,
) -> tuple[TaskRow, bool]:
    """Start a task; `load` returns the task's columns, and a row with the agent's columns."""
    valid_for = INPUT_SCHEMA
    while True:
        with transaction() as connection:
            # This checks the caller's access to the agent. Without this check, an agent key could
            # receive the task that another agent started with the same idempotency key.
            columns, agent = load(connection)
            task = idempotency.replayed(connection, _WITH_KEY, user_id=caller.user_id)
            if task is not None:
                return task, True
            _check_callback(columns.get("callback_url"))
            parent = {"task_id": columns.get("parent_id"), **caller.scope}
            # The parent is locked, so that it is not deleted before this transaction ends.
            if parent["task_id"] is not None and _PARENT.one_or_none(connection, **parent) is None:
                raise invalid({"parentId": ["No such task."]})
            # The input of a claimed task is not validated: its program is already running, and its
            # work must be recorded.
            if is_claimed or agent.input_schema == valid_for:
                caller_columns = {"user_id": caller.user_id, "started_by": caller.key_name}
                task = _insert(
                    connection, columns | caller_columns | idempotency._asdict(), is_claimed
                )
                if agent.expect is not None:
                    expected_runs.run_started(connection, task)
                return task, False
        # The input is validated outside of a transaction, since validation may take long.
        errors = input_problems(agent.input_schema, columns["input"])
        if errors:
            raise invalid(errors)
        valid_for = agent.input_schema


def _check_callback(url: str | None) -> None:
    if url is not None:
        try:
            check_url(url, current_app.config["CALLBACK_ALLOWED"])
        except ValueError as error:
            raise invalid({"callback": [str(error)]}) from None


def _insert(connection: Connection, columns: dict[str, Any], is_claimed: bool) -> TaskRow:
    now = clock.now()
    nulls = dict.fromkeys(column.key for column in TASK_COLUMNS)
    task = nulls | {
        **columns,
        "id": clock.new_id(),
        "name_folded": columns["name"].casefold(),
        "status": RUNNING,
        "output": "{}",
        "questions": NO_QUESTIONS,
        "created_at": now,
        "updated_at": now,
        "claimed_at": (columns.get("claimed_at") or now) if is_claimed else None,
        "first_log": 1,
        "log_count": 0,
        "log_bytes": 0,
        "version": 1,
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


# The status is a literal, as in the conditions of the partial indexes; with a bind parameter, the
# database would not use these indexes.
_is_running = Task.status == literal_column(f"'{RUNNING}'")
is_unclaimed: ColumnElement[bool] = and_(_is_running, Task.claimed_at.is_(None))
is_claimed: ColumnElement[bool] = and_(_is_running, Task.claimed_at.is_not(None))
# If a program starts its own task, for example with `taskservice run`, the task is claimed when it
# is created.
is_claimed_by_worker: ColumnElement[bool] = and_(_is_running, Task.claimed_at > Task.created_at)
_AGENT_HAS_TASK = select(
    or_(
        exists().where(is_of_agent, is_unclaimed),
        exists().where(is_of_agent, Task.claim_key == bindparam("claim_key")),
    )
).where(visible_agents, Agent.id == bindparam("agent_id"))
is_of_this_agent = and_(
    Task.user_id == bindparam("of_user_id"), Task.agent_id == bindparam("of_agent_id")
)
_OLDEST_UNCLAIMED = (
    select(Task.id)
    .where(is_of_this_agent, is_unclaimed)
    .order_by(Task.created_at, Task.id)
    .limit(1)
)


def _claim_of(oldest: Any) -> Any:
    return (
        update(Task)
        .where(Task.id == oldest.scalar_subquery(), Task.claimed_at.is_(None))
        .values(
            **HEARTBEAT,
            **_FIRST_CHECK,
            claimed_at=bindparam("now"),
            claim_key=bindparam("key"),
            updated_at=bindparam("now"),
            version=Task.version + 1,
        )
        .returning(Task.id)
    )


# On PostgreSQL, a claim does not wait for a locked task, but takes the next task.
_CLAIM = _claim_of(_OLDEST_UNCLAIMED.with_for_update(skip_locked=True))
# A task may be locked for a change other than a claim, so a claim that finds no other task waits
# for the lock.
_CLAIM_LOCKED = _claim_of(_OLDEST_UNCLAIMED.with_for_update())
_CLAIMED = select(Task.id).where(is_of_this_agent, Task.claim_key == bindparam("key"))
_VALID_KEY = select(ApiKey.id).where(ApiKey.id == bindparam("key_id"), *auth.KEY_IS_VALID)
_LOCK_KEY = _VALID_KEY.with_for_update(read=True)


def has_task_for_claim(caller: Caller, agent_id: str, key: str | None) -> bool:
    """Whether a claim with this idempotency key would return a task. Raises 404."""
    has_task = read_one(_AGENT_HAS_TASK, agent_id=agent_id, claim_key=key, **caller.scope)
    return bool(require(has_task, "agent")[0])


@retry_on_conflict
def claim(caller: Caller, agent_id: str, key: str | None = None) -> tuple[TaskRow | None, bool]:
    """Claim the oldest unclaimed running task of an agent; returns None if there is no such task.

    If an earlier claim with the same idempotency key claimed a task, this task is returned, and the
    second value is true. Raises 404, and 401 if the caller's key is no longer valid.
    """
    values = {"of_user_id": caller.user_id, "of_agent_id": agent_id, "key": key}
    with transaction() as connection:
        require(_AGENT.one_or_none(connection, agent_id=agent_id, **caller.scope), "agent")
        known_id = None if key is None else connection.scalar(_CLAIMED, values)
        values["now"] = clock.now()
        task_id = known_id or connection.scalar(_CLAIM, values)
        if task_id is None and connection.dialect.name == "postgresql":
            task_id = connection.scalar(_CLAIM_LOCKED, values)
        if task_id is None:
            return None, False
        # The key may have been revoked while the request waited for a task, or for other writers.
        # Once the key is locked, a revocation waits until this transaction ends.
        key_use = {"key_id": caller.key_id, "now": clock.now()}
        if connection.scalar(_LOCK_KEY, key_use) is None:
            raise invalid_key()
        return get_locked(connection, caller, task_id), known_id is not None
