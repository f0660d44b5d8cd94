"""Reads of deliveries, with their attempts."""

from collections.abc import Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, literal_column, or_, select

from taskservice.auth import Caller, visible_tasks
from taskservice.database.models import Attempt, Delivery, Task, User
from taskservice.database.transactions import reading
from taskservice.database.types import AnyRow, Identifier, database_now, moment_from_now
from taskservice.errors import not_found
from taskservice.schemas.columns import ATTEMPT_COLUMNS, DELIVERY_COLUMNS
from taskservice.terms import PENDING
from taskservice.webhooks.schedule import LONGEST_DELAY_SECONDS

# A literal, as in the indexes of these rows, so that they are used.
is_pending: ColumnElement[bool] = Delivery.state == literal_column(f"'{PENDING}'")
# While a lease lasts, only its holder may post; an attempt is much shorter.
LEASE_SECONDS = 60.0
# A lease that ends later than a new one would (plus a second, since PostgreSQL rounds) was taken
# before the clock was set back.
is_unleased: ColumnElement[bool] = or_(
    Delivery.leased_until.is_(None),
    Delivery.leased_until <= database_now(),
    Delivery.leased_until > database_now(LEASE_SECONDS + 1),
)
is_due: ColumnElement[bool] = and_(
    is_pending, Delivery.next_attempt_at <= database_now(), is_unleased
)
# An attempt that is due later than any delay, plus a minute, was scheduled before the clock was
# set back.
is_too_far: ColumnElement[bool] = and_(
    is_pending, Delivery.next_attempt_at > moment_from_now(LONGEST_DELAY_SECONDS + 60)
)
_DELIVERIES = (
    select(*DELIVERY_COLUMNS, User.name.label("user_name"))
    .join(Task, Task.id == Delivery.task_id)
    .join(User, User.id == Task.user_id)
    .order_by(Delivery.created_at.desc(), Delivery.id.desc())
)
_OF_TASK = _DELIVERIES.where(Task.id == bindparam("task_id", type_=Identifier), visible_tasks)
_BY_ID = _DELIVERIES.where(Delivery.id == bindparam("delivery_id", type_=Identifier))
_ATTEMPTS = (
    select(*ATTEMPT_COLUMNS)
    .where(Attempt.delivery_id.in_(bindparam("delivery_ids", expanding=True)))
    .order_by(Attempt.delivery_id, Attempt.id)
)
_STATES = (
    select(Delivery.task_id, Delivery.state)
    .where(Delivery.task_id.in_(bindparam("task_ids", expanding=True)))
    .order_by(Delivery.created_at, Delivery.id)
)


def list_of_task(caller: Caller, task_id: str) -> list[Any]:
    """A task's deliveries, newest first, each with its `attempts`, oldest first."""
    with reading() as connection:
        rows = connection.execute(_OF_TASK, {"task_id": task_id, **caller.scope}).all()
    return _with_attempts(rows)


def get(caller: Caller, delivery_id: str) -> Any:
    """A delivery of a task that the caller may see, with its `attempts`. Raises 404."""
    with reading() as connection:
        wanted = {"delivery_id": delivery_id, **caller.scope}
        rows = connection.execute(_BY_ID.where(visible_tasks), wanted).all()
    if not rows:
        raise not_found("delivery")
    return _with_attempts(rows)[0]


def find(delivery_id: str) -> Any | None:
    """A delivery of any user, with its `attempts`, oldest first."""
    with reading() as connection:
        rows = connection.execute(_BY_ID, {"delivery_id": delivery_id}).all()
    return next(iter(_with_attempts(rows)), None)


def list_all(state: str | None, limit: int) -> list[Any]:
    """The newest deliveries of all users, as `find` has them, with their `user_name`."""
    statement = _DELIVERIES.limit(limit)
    if state is not None:
        statement = statement.where(Delivery.state == state)
    with reading() as connection:
        rows = connection.execute(statement).all()
    return _with_attempts(rows)


def _with_attempts(rows: Sequence[AnyRow]) -> list[Any]:
    with reading() as connection:
        found = connection.execute(_ATTEMPTS, {"delivery_ids": [row.id for row in rows]}).all()
    made = {key: list(some) for key, some in groupby(found, lambda each: each.delivery_id)}
    return [SimpleNamespace(**row._asdict(), attempts=made.get(row.id, [])) for row in rows]


def states(rows: Sequence[AnyRow]) -> dict[str, str]:
    """Task id -> the state of its newest delivery, for those of `rows` that have one."""
    with reading() as connection:
        found = connection.execute(_STATES, {"task_ids": [row.id for row in rows]})
        return {row.task_id: row.state for row in found}
