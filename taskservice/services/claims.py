"""Claims: a task that waits is given to one agent, once."""

from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    literal_column,
    select,
    update,
)

from taskservice.auth.caller import Caller
from taskservice.contract.terms import RUNNING
from taskservice.database import timestamps
from taskservice.database.models import Identifier, Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import retry_on_conflict, transaction
from taskservice.problems import not_found
from taskservice.services.tasks import _AGENT_NAME, HEARTBEAT, _require_key, lock

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


# PostgreSQL: whoever claims at the same moment looks at the next one, and does not wait.
_CLAIM = _claim_of(_OLDEST_UNCLAIMED.with_for_update(skip_locked=True))
# But a task may be locked by what leaves it unclaimed: where there is no other, that is awaited.
_CLAIM_WHAT_IS_LOCKED = _claim_of(_OLDEST_UNCLAIMED.with_for_update())
_CLAIMED = select(Task.id).where(
    Task.user_id == bindparam("of_user_id", type_=Identifier),
    Task.agent_id == bindparam("of_agent_id"),
    Task.claim_key == bindparam("key"),
)


# --- claim -------------------------------------------------------------------------------


@retry_on_conflict
def claim(caller: Caller, agent_id: str, key: str | None = None) -> tuple[TaskRow | None, bool]:
    """Take the oldest unclaimed running task of an agent; None when there is none.

    No task is given twice, whoever asks at once; but the one that was claimed under this
    idempotency key is given again, and then the second is true. Raises 404 for an unknown agent,
    and 401 when the caller's key has been revoked or has expired since the request came.
    """
    wanted = {"of_user_id": caller.user_id, "of_agent_id": agent_id, "key": key}
    with transaction() as connection:
        if connection.scalar(_AGENT_NAME, {"agent_id": agent_id, **caller.scope}) is None:
            raise not_found("agent")
        known_id = None if key is None else connection.scalar(_CLAIMED, wanted)
        task_id = known_id or _claimed(connection, wanted | {"now": timestamps.now()})
        if task_id is None:
            return None, False
        _require_key(connection, caller)
        return lock(connection, caller, task_id), known_id is not None


def _claimed(connection: Connection, wanted: dict[str, Any]) -> str | None:
    """The id of the task that is claimed now, if one waits."""
    task_id: str | None = connection.scalar(_CLAIM, wanted)
    if task_id is None and connection.dialect.name == "postgresql":
        task_id = connection.scalar(_CLAIM_WHAT_IS_LOCKED, wanted)
    return task_id
