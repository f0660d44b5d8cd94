"""Webhooks: owed in the transaction that ends a task, attempted after it, their outcome kept."""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flask import current_app
from sqlalchemy import Connection, Integer, Text, bindparam, insert, select, update

from taskservice import documents, queries, stamps
from taskservice.access import Caller
from taskservice.db import Timestamp, database_now, transaction
from taskservice.models import CANCELLED, DELIVERED, FAILED, PENDING, Attempt, Delivery, Identifier
from taskservice.problems import Problem, not_found
from taskservice.queries import TaskRow
from taskservice.webhooks import signing, transport
from taskservice.webhooks.transport import Outcome

logger = logging.getLogger(__name__)

# While a lease holds nobody else posts the delivery; an attempt is much shorter.
LEASE_SECONDS = 60.0
# A failed attempt is followed by the next one after so many seconds (contract, section 5).
SCHEDULE = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER = 0.2
# A secret that was replaced still signs for a day, so that receivers can change over.
SECRET_OVERLAP_SECONDS = 86_400.0

NONE_OWED = "none"


@dataclass(frozen=True, slots=True)
class Leased:
    """A delivery that this process alone may attempt, until its lease runs out."""

    id: str
    lease: str
    task_id: str
    user_id: str
    callback_url: str
    attempt_count: int


_OWE = insert(Delivery).values(
    state=PENDING, attempt_count=0, leased_until=database_now(LEASE_SECONDS)
)
_REPLACE = (
    update(Delivery)
    .where(Delivery.task_id == bindparam("of_task_id", type_=Identifier), Delivery.state == PENDING)
    .values(state=CANCELLED, next_attempt_at=None, lease=None, leased_until=None)
)
_KEEP_ATTEMPT = insert(Attempt).from_select(
    ["delivery_id", "at", "duration_ms", "status_code", "message"],
    # A delivery that was deleted meanwhile keeps nothing.
    select(
        Delivery.id,
        bindparam("at", type_=Timestamp()),
        bindparam("duration_ms", type_=Integer()),
        bindparam("status_code", type_=Integer()),
        bindparam("message", type_=Text()),
    ).where(Delivery.id == bindparam("delivery_id", type_=Identifier)),
)
_RECORD = update(Delivery).where(
    Delivery.id == bindparam("of_delivery_id", type_=Identifier),
    Delivery.lease == bindparam("held_lease", type_=Identifier),
)


def owe(connection: Connection, task: TaskRow, now: str) -> Leased | None:
    """Owe the webhook of a task that ends in this transaction, leased to the caller.

    It takes the place of an older one that is still pending. None without a callback.
    """
    if task.callback_url is None:
        return None
    leased = Leased(
        id=stamps.new_id(),
        lease=stamps.new_id(),
        task_id=task.id,
        user_id=task.user_id,
        callback_url=task.callback_url,
        attempt_count=0,
    )
    connection.execute(_REPLACE, {"of_task_id": task.id})
    connection.execute(
        _OWE,
        {
            "id": leased.id,
            "lease": leased.lease,
            "task_id": task.id,
            "callback_url": task.callback_url,
            "created_at": now,
            "next_attempt_at": now,
        },
    )
    return leased


def attempt(leased: Leased | None) -> str:
    """Post a webhook once and record what came of it; call it with no transaction open.

    Returns what `Callback-Status` says: `delivered`, `pending`, `failed` or `none`.
    Never raises: the task has ended whatever happens here, and an attempt that could
    not be made or recorded is made again when its lease has run out.
    """
    if leased is None:
        return NONE_OWED
    try:
        started = stamps.now()
        outcome = _send(leased)
        return _record(leased, started, outcome)
    except Exception:
        logger.exception("Delivery %s stays pending", leased.id)
        return PENDING


def _send(leased: Leased) -> Outcome:
    task = queries.task_by_id(leased.task_id)
    if task is None:
        return Outcome("The task was deleted.", permanent=True)
    since = stamps.now(-SECRET_OVERLAP_SECONDS)
    secrets = queries.callback_secrets(leased.user_id, since)
    return post(leased.callback_url, secrets, leased.id, documents.of_webhook(task))


def post(url: str, secrets: Sequence[str], webhook_id: str, body: bytes) -> Outcome:
    """Send one signed webhook by the settings of this service."""
    signature = signing.sign(secrets, webhook_id, int(time.time()), body)
    return transport.send(
        url,
        {"content-type": "application/json", **signature},
        body,
        allowed=current_app.config["CALLBACK_ALLOWED"],
        deadline=current_app.config["CALLBACK_TIMEOUT"],
    )


def _record(leased: Leased, started: str, outcome: Outcome) -> str:
    """Keep the attempt; change the delivery unless its lease has passed to somebody else."""
    state, delay = _consequence(outcome, leased.attempt_count)
    with transaction() as connection:
        connection.execute(
            _KEEP_ATTEMPT,
            {
                "delivery_id": leased.id,
                "at": started,
                "duration_ms": outcome.duration_ms,
                "status_code": outcome.status_code,
                "message": outcome.message,
            },
        )
        connection.execute(
            _RECORD.values(
                state=state,
                next_attempt_at=None if delay is None else database_now(delay),
                attempt_count=leased.attempt_count + 1,
                lease=None,
                leased_until=None,
            ),
            {"of_delivery_id": leased.id, "held_lease": leased.lease},
        )
    return state


def _consequence(outcome: Outcome, attempt_count: int) -> tuple[str, float | None]:
    """The delivery's next state, and the seconds until its next attempt if there is one."""
    if outcome.delivered:
        return DELIVERED, None
    if outcome.permanent or attempt_count >= len(SCHEDULE):
        return FAILED, None
    # Apart from each other, so that a receiver that was down is not run over.
    delay = SCHEDULE[attempt_count] * random.uniform(1 - JITTER, 1 + JITTER)
    # Never before it asks for; but "in a second", said each time, may not use up all
    # attempts within seconds.
    return PENDING, max(delay, outcome.retry_after or 0)


def redeliver(caller: Caller, task_id: str) -> str:
    """Post the newest delivery of a task again, in a new round; returns its id.

    Raises 404, and 409 where there is none.
    """
    task = queries.task(caller, task_id)
    if task is None:
        raise not_found("Task")
    owed = queries.deliveries_of_task(caller, task_id)
    if not owed:
        raise Problem(409, "The task has no delivery: it still runs, or has no callback")
    leased = Leased(owed[0].id, stamps.new_id(), task.id, task.user_id, owed[0].callback_url, 0)
    with transaction() as connection:
        connection.execute(
            update(Delivery)
            .where(Delivery.id == leased.id)
            .values(
                state=PENDING,
                attempt_count=0,
                next_attempt_at=database_now(),
                lease=leased.lease,
                leased_until=database_now(LEASE_SECONDS),
            )
        )
    attempt(leased)
    return leased.id
