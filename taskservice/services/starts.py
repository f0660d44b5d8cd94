"""Starts tasks, also again."""

from types import SimpleNamespace
from typing import Any, cast

from flask import current_app
from sqlalchemy import (
    Connection,
    Integer,
    bindparam,
    insert,
    literal_column,
    select,
    update,
)

from taskservice.auth import KEY_IS_VALID, Caller, visible_agents
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, ApiKey, Task
from taskservice.database.transactions import retry_on_conflict, transaction
from taskservice.database.types import Identifier, TaskRow, database_now
from taskservice.errors import invalid, invalid_key, not_found
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.schemas.json_schema import Input
from taskservice.schemas.tasks import TASK_COLUMNS, task_schema
from taskservice.services.tasks import (
    HEARTBEAT,
    TASK,
    VISIBLE,
    Idempotency,
    insert_labels,
    lock,
    tasks_with_log,
)
from taskservice.terms import RUNNING
from taskservice.webhooks.destinations import check_url

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
_REPLAYED = tasks_with_log.add_columns(Task.idempotency_digest).where(
    Task.user_id == bindparam("user_id", type_=Identifier),
    Task.idempotency_key == bindparam("idempotency_key"),
)
_PARENT = Statement[Any](select(Task.id).where(*VISIBLE).with_for_update(read=True, key_share=True))
_INPUT_SCHEMA = (
    select(Agent.input_schema)
    .where(Agent.user_id == Task.user_id, Agent.id == Task.agent_id)
    .scalar_subquery()
    .label("input_schema")
)
_TASK_TO_RERUN = Statement[Any](TASK.add_columns(Task.timeout, _INPUT_SCHEMA))


@retry_on_conflict
def start(
    caller: Caller, fields: dict[str, Any], idempotency: Idempotency | None
) -> tuple[TaskRow, bool]:
    """Start a task from what StartSchema loaded; returns it, and whether it existed already.

    It does if the same user started it with the same idempotency key. Raises 422 for an agent
    that is not registered, an unclaimed task whose input does not fit its schema, a callback that
    is not allowed, and an idempotency key that was used with another body.
    """
    _check_callback(fields.get("callback"))
    given = Input(strict_json.dumps(fields.get("input") or {}).decode())
    # An agent that starts a task has claimed it.
    is_claimed = fields.get("claim") or caller.agent_id is not None
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
            # The program of a claimed task runs already: what it does must be recorded.
            if is_claimed or given.fits(agent.input_schema):
                started = _started(fields, agent.name, given.text)
                task = _insert(connection, caller, started, idempotency, is_claimed=is_claimed)
                return task, False
        _check_input(given, agent.input_schema)


def _started(fields: dict[str, Any], agent_name: str, input_text: str) -> dict[str, Any]:
    own = {
        "name": fields.get("name") or agent_name,
        "input": input_text,
        "timeout": fields.get("timeout"),
        "labels": strict_json.dumps(fields.get("labels") or {}).decode(),
    }
    rest = {name: value for name, value in fields.items() if name not in own}
    return task_schema.stored(rest) | own


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
    now = clock.now()
    nulls = dict.fromkeys(column.key for column in TASK_COLUMNS)
    task = nulls | {
        **started,
        "id": clock.new_id(),
        "user_id": caller.user_id,
        "name_folded": started["name"].casefold(),
        "status": RUNNING,
        "output": "{}",
        "questions": NO_QUESTIONS,
        "started_by": caller.key_name,
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


# Gives a waiting task to one agent, once.

_OLDEST_UNCLAIMED = (
    select(Task.id)
    .where(
        Task.user_id == bindparam("of_user_id", type_=Identifier),
        Task.agent_id == bindparam("of_agent_id"),
        Task.status == literal_column(f"'{RUNNING}'"),
        Task.claimed_at.is_(None),
    )
    .order_by(Task.created_at, Task.id)
    .limit(1)
)
_KEY = (
    select(ApiKey.id)
    .where(ApiKey.id == bindparam("key_id", type_=Identifier), *KEY_IS_VALID)
    .with_for_update(read=True)
)


def _claim_of(oldest: Any) -> Any:
    return (
        update(Task)
        .where(Task.id == oldest.scalar_subquery(), Task.claimed_at.is_(None))
        .values(
            **HEARTBEAT,
            claimed_at=bindparam("now"),
            claim_key=bindparam("key"),
            updated_at=bindparam("now"),
            version=Task.version + 1,
        )
        .returning(Task.id)
    )


# On PostgreSQL, claims at the same moment take the next task instead of waiting.
_CLAIM = _claim_of(_OLDEST_UNCLAIMED.with_for_update(skip_locked=True))
# Another change than a claim may lock a task: if no other task is left, wait for the lock.
_CLAIM_LOCKED = _claim_of(_OLDEST_UNCLAIMED.with_for_update())
_CLAIMED = select(Task.id).where(
    Task.user_id == bindparam("of_user_id", type_=Identifier),
    Task.agent_id == bindparam("of_agent_id"),
    Task.claim_key == bindparam("key"),
)


@retry_on_conflict
def claim(caller: Caller, agent_id: str, key: str | None = None) -> tuple[TaskRow | None, bool]:
    """Claim the oldest unclaimed running task of an agent, or None when there is none.

    No task is given twice, except for the same idempotency key: then the second value is true.
    Raises 404 for an unknown agent, and 401 if the caller's key was revoked or has expired since
    the request came.
    """
    wanted = {"of_user_id": caller.user_id, "of_agent_id": agent_id, "key": key}
    with transaction() as connection:
        if find_agent(connection, caller, agent_id) is None:
            raise not_found("agent")
        known_id = None if key is None else connection.scalar(_CLAIMED, wanted)
        task_id = known_id or _claimed(connection, wanted | {"now": clock.now()})
        if task_id is None:
            return None, False
        _require_key(connection, caller)
        return lock(connection, caller, task_id), known_id is not None


def _claimed(connection: Connection, wanted: dict[str, Any]) -> str | None:
    """Claim a task; returns its id, or None if none waits."""
    task_id: str | None = connection.scalar(_CLAIM, wanted)
    if task_id is None and connection.dialect.name == "postgresql":
        task_id = connection.scalar(_CLAIM_LOCKED, wanted)
    return task_id


def _require_key(connection: Connection, caller: Caller) -> None:
    """Raises 401 if the caller's key was revoked or has expired since the request came.

    The request may have waited for a task, and for its turn to write. A revocation waits until
    this transaction ends.
    """
    if connection.scalar(_KEY, {"key_id": caller.key_id, "now": clock.now()}) is None:
        raise invalid_key()
