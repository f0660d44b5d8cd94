"""Gives a waiting task to one agent, once."""

from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    literal_column,
    select,
    update,
)

from taskservice.auth import KEY_IS_VALID, Caller
from taskservice.database import clock
from taskservice.database.models import ApiKey, Task
from taskservice.database.transactions import retry_on_conflict, transaction
from taskservice.database.types import Identifier, TaskRow
from taskservice.errors import invalid_key, not_found
from taskservice.services.starts import find_agent
from taskservice.services.tasks import HEARTBEAT, lock
from taskservice.terms import RUNNING

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
