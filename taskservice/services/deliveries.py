"""Deliveries: enqueued in the transaction that ends a task, leased to be posted, recorded."""

import random
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import islice
from typing import NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import (
    Connection,
    Integer,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    union_all,
    update,
)

from taskservice import resources
from taskservice.auth import Caller, visible_tasks
from taskservice.database import clock
from taskservice.database.models import Attempt, Delivery, Task
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import Identifier, TaskRow, Timestamp, database_now, moment_from_now
from taskservice.database.watcher import Watcher
from taskservice.errors import Problem, not_found
from taskservice.queries.deliveries import LEASE_SECONDS, is_due, is_pending, is_unleased
from taskservice.services import fair_queue
from taskservice.services.fair_queue import ReceiverSlots
from taskservice.terms import (
    CANCELLED,
    DELIVERED,
    DELIVERY_UNDER_WAY,
    FAILED,
    MAX_ATTEMPTS,
    NO_DELIVERY,
    PENDING,
)
from taskservice.webhooks.circuit_breaker import Receiver
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.schedule import JITTER, SCHEDULE


class Leased(NamedTuple):
    """A delivery that only the holder of this lease may post, until the lease runs out."""

    id: str
    lease: str
    task_id: str
    user_id: str
    callback_url: str
    # With its port, as in the URL.
    host: str
    attempt_count: int

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.user_id, self.host)


class LeaseLost(Exception):
    """The delivery must no longer be posted; the text is one sentence with the reason."""

    def __init__(self, reason: str, state: str) -> None:
        super().__init__(reason)
        # The value for `Callback-Status`.
        self.state = state


_LEASE = {"lease": bindparam("new_lease"), "leased_until": database_now(bindparam("seconds"))}
_NO_LEASE = {"lease": None, "leased_until": None}

_INSERT = insert(Delivery).values(
    state=PENDING, attempt_count=0, next_attempt_at=database_now(), **_LEASE
)
_REPLACE = (
    update(Delivery)
    .where(Delivery.task_id == bindparam("of_task_id", type_=Identifier), Delivery.state == PENDING)
    .values(state=CANCELLED, next_attempt_at=None, **_NO_LEASE)
)
_UNLEASED = (
    select(Delivery.next_attempt_at.label("moment"))
    .where(is_pending, is_unleased)
    .order_by(Delivery.next_attempt_at)
    .limit(1)
)
# The lease of a process that died runs out.
_LEASED = select(func.min(Delivery.leased_until)).where(Delivery.leased_until > moment_from_now())
_MOMENTS = union_all(select(_UNLEASED.subquery()), _LEASED).subquery()
_NEXT = select(func.min(_MOMENTS.c.moment).label("next"), database_now().label("now"))
_CLAIM = (
    update(Delivery)
    .where(Delivery.id.in_(bindparam("ids", expanding=True)), is_due)
    .values(**_LEASE)
    .returning(
        Delivery.id,
        Delivery.lease,
        Delivery.task_id,
        Delivery.user_id,
        Delivery.callback_url,
        Delivery.host,
        Delivery.attempt_count,
    )
)
_LEASE_IS_HELD = (
    Delivery.id == bindparam("of_delivery_id", type_=Identifier),
    Delivery.lease == bindparam("held_lease", type_=Identifier),
)
_LEASE_NOW = select(
    Delivery.state,
    and_(Delivery.lease == bindparam("held_lease", type_=Identifier), ~is_unleased).label("holds"),
).where(Delivery.id == bindparam("of_delivery_id", type_=Identifier))
_RELEASE = update(Delivery).where(*_LEASE_IS_HELD).values(**_NO_LEASE)
_RECORD = update(Delivery).where(*_LEASE_IS_HELD)
_INSERT_ATTEMPT = insert(Attempt).from_select(
    ["delivery_id", "at", "duration_ms", "status_code", "message", "answer"],
    # The attempt of a deleted delivery is not stored; PostgreSQL waits for a deletion in progress.
    select(
        Delivery.id,
        bindparam("at", type_=Timestamp()),
        bindparam("duration_ms", type_=Integer()),
        bindparam("status_code", type_=Integer()),
        bindparam("message", type_=Text()),
        bindparam("answer", type_=Text()),
    )
    .where(Delivery.id == bindparam("delivery_id", type_=Identifier))
    .with_for_update(),
)
_older = (
    select(Attempt.id)
    .where(Attempt.delivery_id == bindparam("of_delivery_id", type_=Identifier))
    .order_by(Attempt.id.desc())
    .offset(MAX_ATTEMPTS)
)
_DELETE_OLDER_ATTEMPTS = delete(Attempt).where(Attempt.id.in_(_older))
_TASK = select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier))
_TASK_OF = select(Delivery.task_id).where(Delivery.id == bindparam("id", type_=Identifier))
_NEWEST = (
    select(Delivery.id)
    .where(Delivery.task_id == bindparam("task_id", type_=Identifier))
    .order_by(Delivery.created_at.desc(), Delivery.id.desc())
    .limit(1)
)
_REDELIVER = (
    update(Delivery)
    .where(Delivery.id == bindparam("of_delivery_id", type_=Identifier), is_unleased)
    .values(state=PENDING, attempt_count=0, next_attempt_at=database_now(), **_NO_LEASE)
)


# --- enqueue and lease -------------------------------------------------------------------


def enqueue(connection: Connection, task: TaskRow, now: str) -> Leased | None:
    """Enqueue the webhook of a task that ends in this transaction, leased to the caller.

    It replaces an older delivery that is still pending. Returns None for a task without callback.
    """
    if task.callback_url is None:
        return None
    leased = Leased(
        id=clock.new_id(),
        lease=clock.new_id(),
        task_id=task.id,
        user_id=task.user_id,
        callback_url=task.callback_url,
        host=urlsplit(task.callback_url).netloc.lower(),
        attempt_count=0,
    )
    connection.execute(_REPLACE, {"of_task_id": task.id})
    connection.execute(
        _INSERT,
        {
            "id": leased.id,
            "task_id": leased.task_id,
            "user_id": leased.user_id,
            "callback_url": leased.callback_url,
            "host": leased.host,
            "created_at": now,
            "new_lease": leased.lease,
            "seconds": LEASE_SECONDS,
        },
    )
    return leased


def enqueue_for_loop(connection: Connection, task: TaskRow, now: str) -> None:
    """Enqueue the webhook of a task that ends in this transaction, due now and without a lease.

    The delivery loop notices it within a second.
    """
    leased = enqueue(connection, task, now)
    if leased is not None:
        connection.execute(_RELEASE, {"of_delivery_id": leased.id, "held_lease": leased.lease})


def seconds_until_due() -> float | None:
    """Seconds until a delivery is due or a lease runs out; 0 or less when one is due already.

    None when no delivery is pending.
    """
    with reading() as connection:
        row = connection.execute(_NEXT).one()
    if row.next is None:
        return None
    due, now = map(datetime.fromisoformat, (row.next, row.now))
    return (due - now).total_seconds()


def lease_due(limit: int, slots: ReceiverSlots) -> Sequence[Leased]:
    """Lease at most `limit` deliveries that are due, for each user the longest due first.

    Users take turns: the next delivery is of the user who then holds the fewest leases in all
    processes. A receiver gets no more than its free slots, so that fewer than `limit` may be
    leased although more are due: call it again.
    """
    with transaction() as connection:
        due = fair_queue.due_deliveries(connection, limit, slots)
        acquired = (row.id for row in due if slots.acquire(Receiver(row.user_id, row.host)))
        ids = list(islice(acquired, limit))
        lease = {"new_lease": clock.new_id(), "seconds": LEASE_SECONDS}
        return [
            Leased(**row._asdict()) for row in connection.execute(_CLAIM, {"ids": ids, **lease})
        ]


def release(leased: Collection[Leased]) -> None:
    """End leases early, with no attempt counted, so that another process may post."""
    if leased:
        with transaction() as connection:
            held = [{"of_delivery_id": each.id, "held_lease": each.lease} for each in leased]
            connection.execute(_RELEASE, held)
        resources.find(Watcher).wake()


# --- attempt -----------------------------------------------------------------------------


def require_lease(leased: Leased) -> None:
    """Raises LeaseLost unless this lease still allows its holder to post the delivery.

    Its task may have been deleted, or a late report may have replaced the delivery. While this
    machine was suspended, the lease may have run out and passed to another process.
    """
    with reading() as connection:
        held = {"of_delivery_id": leased.id, "held_lease": leased.lease}
        now = connection.execute(_LEASE_NOW, held).one_or_none()
    if now is None:
        raise LeaseLost("The task was deleted.", FAILED)
    if now.state == CANCELLED:
        raise LeaseLost("A newer delivery has replaced it.", FAILED)
    if not now.holds:
        raise LeaseLost("Its lease has run out.", now.state)


def record(leased: Leased, started: str, outcome: Outcome) -> str:
    """Store an attempt, and update its delivery unless the lease has passed to another holder.

    Returns the delivery's state after this outcome.
    """
    state, delay = _next_state(outcome, leased.attempt_count)
    with transaction() as connection:
        connection.execute(
            _INSERT_ATTEMPT,
            {
                "delivery_id": leased.id,
                "at": started,
                "duration_ms": outcome.duration_ms,
                "status_code": outcome.status_code,
                "message": outcome.message,
                "answer": outcome.answer,
            },
        )
        connection.execute(_DELETE_OLDER_ATTEMPTS, {"of_delivery_id": leased.id})
        connection.execute(
            _RECORD.values(
                state=state,
                next_attempt_at=None if delay is None else database_now(delay),
                attempt_count=leased.attempt_count + 1,
                **_NO_LEASE,
            ),
            {"of_delivery_id": leased.id, "held_lease": leased.lease},
        )
    if state == PENDING:
        resources.find(Watcher).wake()
    return state


def _next_state(outcome: Outcome, attempt_count: int) -> tuple[str, float | None]:
    """The delivery's next state, and the seconds until its next attempt if there is one."""
    if outcome.delivered:
        return DELIVERED, None
    if outcome.permanent or attempt_count >= len(SCHEDULE):
        return FAILED, None
    # Spread out, so that a receiver that was down is not flooded.
    delay = SCHEDULE[attempt_count] * random.uniform(1 - JITTER, 1 + JITTER)
    # Neither before `Retry-After` nor before the schedule: a receiver that always says "in a
    # second" must not use up all attempts within seconds.
    return PENDING, max(delay, outcome.retry_after or 0)


# --- redeliver ---------------------------------------------------------------------------


def redeliver(caller: Caller, task_id: str) -> str:
    """Make the newest delivery of a task due now, with a new retry schedule; returns its id.

    Raises 404, and 409 when there is no delivery or it is being posted at this moment.
    """
    with transaction() as connection:
        visible = _TASK.where(visible_tasks).with_for_update()
        if connection.scalar(visible, {"task_id": task_id, **caller.scope}) is None:
            raise not_found("task")
        newest = connection.scalar(_NEWEST, {"task_id": task_id})
        if newest is None:
            detail = "The task has no delivery: it is running, or has no callback"
            raise Problem(409, detail, code=NO_DELIVERY)
        _make_due(connection, newest)
    resources.find(Watcher).wake()
    return newest


def redeliver_any(delivery_id: str) -> None:
    """Redeliver a delivery of any user by its own id. Raises 404 and 409."""
    with transaction() as connection:
        task_id = connection.scalar(_TASK_OF, {"id": delivery_id})
        if task_id is None:
            raise Problem(404, f"No such delivery: {delivery_id}")
        # A late report waits for this lock, or has replaced this delivery already.
        connection.execute(_TASK.with_for_update(), {"task_id": task_id})
        newest = connection.scalar(_NEWEST, {"task_id": task_id})
        if newest != delivery_id:
            raise Problem(409, f"A newer delivery has replaced it: {newest}")
        _make_due(connection, delivery_id)
    resources.find(Watcher).wake()


def _make_due(connection: Connection, delivery_id: str) -> None:
    if connection.execute(_REDELIVER, {"of_delivery_id": delivery_id}).rowcount == 0:
        detail = "The delivery is being posted at this moment; wait for the outcome"
        raise Problem(409, detail, code=DELIVERY_UNDER_WAY)
