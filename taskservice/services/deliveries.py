"""Deliveries: enqueued for callbacks, as `events` does for hooks; leased to be sent; recorded."""

import logging
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set
from itertools import groupby, islice
from operator import attrgetter
from threading import Event
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import Connection, bindparam, delete, func, insert, literal_column, select, update

from taskservice import resources, terms
from taskservice.auth import Caller, visible_tasks
from taskservice.database import clock
from taskservice.database.models import Attempt, Delivery, Hook, Task, User
from taskservice.database.transactions import read_all, read_one, reading, transaction
from taskservice.database.types import AnyRow, AnySelect, TaskRow, database_now, time_from_now
from taskservice.errors import Problem, require
from taskservice.schemas.tasks import ATTEMPT_COLUMNS, DELIVERY_COLUMNS
from taskservice.services import tasks
from taskservice.webhooks import JITTER, LONGEST_DELAY_SECONDS, SCHEDULE, Outcome, Receiver

logger = logging.getLogger(__name__)

# A literal, as in the conditions of the indexes, so that the database uses them.
is_pending = Delivery.state == literal_column(f"'{terms.PENDING}'")
# While a lease lasts, only its holder may post; an attempt is much shorter.
LEASE_SECONDS = 60.0
# A lease that ends later than a new one would (plus a second, since PostgreSQL rounds) was taken
# before the clock was set back.
is_unleased = (
    Delivery.leased_until.is_(None)
    | (Delivery.leased_until <= database_now())
    | (Delivery.leased_until > database_now(LEASE_SECONDS + 1))
)
is_due = is_pending & (Delivery.next_attempt_at <= database_now()) & is_unleased
is_of_callback = Delivery.hook_id.is_(None)
_DELIVERIES: AnySelect = (
    select(*DELIVERY_COLUMNS, User.name.label("user_name"))
    .join(Task, Task.id == Delivery.task_id)
    .join(User, User.id == Task.user_id)
    .where(is_of_callback)
    .order_by(Delivery.created_at.desc(), Delivery.id.desc())
)
_OF_TASK = _DELIVERIES.where(Task.id == bindparam("task_id"), visible_tasks)
_STATES = (
    select(Delivery.task_id, Delivery.state)
    .where(is_of_callback)
    .order_by(Delivery.created_at, Delivery.id)
)
_ATTEMPTS = (
    select(*ATTEMPT_COLUMNS)
    .where(Attempt.delivery_id.in_(bindparam("delivery_ids", expanding=True)))
    .order_by(Attempt.delivery_id, Attempt.id)
)


def list_of_task(caller: Caller, task_id: str) -> list[Any]:
    """A task's deliveries, newest first, each with its `attempts`, oldest first."""
    return with_attempts(_OF_TASK, task_id=task_id, **caller.scope)


def find(delivery_id: str) -> Any | None:
    """A delivery of any user, with its `attempts`, oldest first."""
    return next(iter(with_attempts(_DELIVERIES.where(Delivery.id == delivery_id))), None)


def list_all(state: str | None, limit: int) -> list[Any]:
    """The newest deliveries of all users, as `find` returns them, with their `user_name`."""
    of_state = _DELIVERIES if state is None else _DELIVERIES.where(Delivery.state == state)
    return with_attempts(of_state.limit(limit))


def with_attempts(deliveries: AnySelect, **values: Any) -> list[Any]:
    """The deliveries that a statement selects, each with its `attempts`, oldest first."""
    with reading() as connection:
        return read_with_attempts(connection, deliveries, **values)


def read_with_attempts(connection: Connection, deliveries: AnySelect, **values: Any) -> list[Any]:
    rows = connection.execute(deliveries, values).all()
    ids = [row.id for row in rows]
    found = connection.execute(_ATTEMPTS, {"delivery_ids": ids}).all() if ids else []
    made = {key: list(some) for key, some in groupby(found, attrgetter("delivery_id"))}
    return [SimpleNamespace(**row._asdict(), attempts=made.get(row.id, [])) for row in rows]


def states(rows: Sequence[AnyRow]) -> dict[str, str]:
    """Task id -> the state of its newest delivery, for the tasks of `rows` that have one."""
    of_these = _STATES.where(Delivery.task_id.in_([row.id for row in rows]))
    return {row.task_id: row.state for row in read_all(of_these)}


# Chooses the deliveries to send next: users take turns, and each receiver has a few slots.

# Maximum concurrent attempts of one user at one host in a process, so that a slow host leaves most
# of them to others.
MAX_PER_RECEIVER = 4
# A receiver whose circuit breaker is open has one slot; all such receivers share this number.
MAX_TO_FAILING = 8


class ReceiverSlots:
    """How many attempts may start at each receiver while others run in this process."""

    def __init__(self, running: Iterable[Receiver], failing: Set[Receiver]) -> None:
        self._used = Counter(running)
        self._failing = failing
        self._left_to_failing = MAX_TO_FAILING - sum(self._used[receiver] for receiver in failing)

    def full_hosts(self, user_id: str) -> list[str]:
        """The hosts at which this user has no free slot."""
        known = {*self._used, *self._failing}
        return [each.host for each in known if each.user_id == user_id and not self.is_free(each)]

    def acquire(self, receiver: Receiver) -> bool:
        """Use a slot of this receiver; False when none is free."""
        is_free = self.is_free(receiver)
        if is_free:
            self._used[receiver] += 1
            self._left_to_failing -= receiver in self._failing
        return is_free

    def is_free(self, receiver: Receiver) -> bool:
        if receiver not in self._failing:
            return self._used[receiver] < MAX_PER_RECEIVER
        return not self._used[receiver] and self._left_to_failing > 0


# These statements read few index entries, except entries of hosts without a free slot.
_LEASES = (
    select(Delivery.user_id, func.count().label("count"))
    .where(Delivery.leased_until > time_from_now())
    .group_by(Delivery.user_id)
    .subquery()
)
_FIRST_TIME: AnySelect = (
    select(Delivery.next_attempt_at.label("time"))
    .where(is_pending, is_unleased)
    .order_by(Delivery.next_attempt_at)
    .limit(1)
)
_first_of_user = _FIRST_TIME.where(Delivery.user_id == User.id).scalar_subquery()
_USERS = (
    select(User.id, func.coalesce(_LEASES.c.count, 0).label("leases"), database_now().label("now"))
    .outerjoin(_LEASES, _LEASES.c.user_id == User.id)
    .where(database_now() >= _first_of_user)
)
_DUE_COLUMNS = (Delivery.id, Delivery.user_id, Delivery.host, Delivery.next_attempt_at)
_is_told_at_once = (Hook.state == terms.ACTIVE) & Hook.format.not_in(terms.PEOPLE_FORMATS)
_DUE_OF_USER: AnySelect = (
    select(*_DUE_COLUMNS, literal_column("NULL").label("hook_id"))
    .outerjoin(Hook, Hook.id == Delivery.hook_id)
    .where(
        Delivery.user_id == bindparam("of_user_id"),
        is_due,
        # PostgreSQL uses the index only if the time is a parameter.
        Delivery.next_attempt_at <= bindparam("now"),
        Delivery.host.not_in(bindparam("full_hosts", expanding=True)),
        Hook.id.is_(None) | _is_told_at_once,
    )
    .order_by(Delivery.next_attempt_at)
    .limit(bindparam("limit"))
    # PostgreSQL: skip what another process is leasing, rather than wait for it.
    .with_for_update(skip_locked=True, of=Delivery)
)
# All that is due for a hook for people is one message, with the host and time of the first one.
_first_due = (
    select(Delivery.id)
    .where(Delivery.hook_id == Hook.id, is_due)
    .order_by(Delivery.next_attempt_at)
    .limit(1)
    .correlate(Hook)
    .scalar_subquery()
)
is_not_quiet = Hook.quiet_until.is_(None) | (Hook.quiet_until <= database_now())
_DUE_HOOKS_OF_USER: AnySelect = (
    select(*_DUE_COLUMNS, Delivery.hook_id)
    .join(Hook, Delivery.id == _first_due)
    .where(
        Hook.user_id == bindparam("of_user_id"),
        Hook.format.in_(terms.PEOPLE_FORMATS),
        Hook.state == terms.ACTIVE,
        is_not_quiet,
        Delivery.host.not_in(bindparam("full_hosts", expanding=True)),
    )
)


def due_deliveries(connection: Connection, limit: int, slots: ReceiverSlots) -> list[AnyRow]:
    """Due deliveries, at most `limit` of each user, in the order in which to send them."""
    ranked: list[tuple[int, str, AnyRow]] = []
    for user in connection.execute(_USERS).all():
        wanted = {"of_user_id": user.id, "now": user.now, "limit": limit}
        wanted["full_hosts"] = slots.full_hosts(user.id)
        found = connection.execute(_DUE_OF_USER, wanted).all()
        # Each stands for all that is due for a hook for people; only these have a `hook_id`.
        of_people = connection.execute(_DUE_HOOKS_OF_USER, wanted).all()
        due = sorted((*found, *of_people), key=attrgetter("next_attempt_at"))
        ranked += [(user.leases + n, row.next_attempt_at, row) for n, row in enumerate(due)]
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])]


class DueDeliveries(Event):
    """Set when the loop of this process should look for due deliveries."""


class Leased(NamedTuple):
    """A delivery that only the holder of this lease may post, until the lease runs out."""

    id: str
    lease: str
    task_id: str | None  # None for the event of a late agent
    user_id: str
    callback_url: str
    host: str  # with the port, as in the URL
    attempt_count: int
    hook_id: str | None = None  # the hook that is told of an event; both are None for a callback
    event_id: str | None = None
    is_shared: bool = False  # all deliveries with this lease are one message for people

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.user_id, self.host)


class LeaseLost(Exception):
    """The delivery must no longer be posted: the reason as one sentence, its `Callback-Status`."""


# A hook for people gets one message in PAUSE_SECONDS, and nothing that is older than a day. What is
# pending waits for a day, too, for a hook that is off.
PAUSE_SECONDS = 30.0
DAY_SECONDS = 86_400.0
# A hook is turned off after as many deliveries in a row that failed for good, or after a 410.
MAX_LOST = 3
GONE = 410
FAR_BATCH = 200  # what one transaction makes due of what is too far ahead
NO_LEASE = {"lease": None, "leased_until": None}
_INSERT = insert(Delivery).values(
    state=terms.PENDING,
    next_attempt_at=database_now(),
    leased_until=database_now(bindparam("seconds")),
)
# When the next lease runs out: its process may have died.
_LEASED = select(func.min(Delivery.leased_until)).where(Delivery.leased_until > time_from_now())
_NEXT = select(_FIRST_TIME.scalar_subquery(), _LEASED.scalar_subquery(), database_now())
_CLAIM = (
    update(Delivery)
    .where(is_due)
    .values(lease=bindparam("new_lease"), leased_until=database_now(bindparam("seconds")))
    .returning(*(getattr(Delivery, name) for name in Leased._fields[:-1]))
)


def cancel(connection: Connection, *which: Any) -> int:
    """Cancel pending deliveries; returns how many there were."""
    cancelled = {"state": terms.CANCELLED, "next_attempt_at": None, **NO_LEASE}
    return connection.execute(update(Delivery).where(is_pending, *which).values(cancelled)).rowcount


def enqueue_webhook(
    connection: Connection, task: TaskRow, now: str, *, for_loop: bool = False
) -> Leased | None:
    """Enqueue the webhook of a task that ends in this transaction, in place of a pending one.

    It is leased to this request, unless `for_loop`. Returns None for a task without callback.
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
    cancel(connection, Delivery.task_id == task.id, is_of_callback)
    columns = leased._asdict() | {"created_at": now, "seconds": LEASE_SECONDS}
    if for_loop:
        columns |= {"lease": None, "seconds": None}
    del columns["is_shared"]
    connection.execute(_INSERT, columns)
    return leased


def seconds_until_due() -> float | None:
    """Seconds until a delivery is due or a lease runs out; None when no delivery is pending."""
    [(*times, now)] = read_all(_NEXT)
    return min((clock.seconds_between(now, time) for time in times if time), default=None)


def lease_due(limit: int, slots: ReceiverSlots) -> Sequence[Leased]:
    """Lease at most `limit` deliveries that are due, for each user the longest due first.

    Users take turns: the next one is of the user with the fewest leases in all processes. A
    receiver gets at most its free slots, so more may be due than are leased: call it again.
    """
    with transaction() as connection:
        due = due_deliveries(connection, limit, slots)
        acquired = (row for row in due if slots.acquire(Receiver(row.user_id, row.host)))
        chosen = list(islice(acquired, limit))
        ids = [row.id for row in chosen if row.hook_id is None]
        leased = [Leased(*row) for row in _claim(connection, Delivery.id.in_(ids))]
        of_people = (_lease_message(connection, row.hook_id) for row in chosen if row.hook_id)
        return leased + list(filter(None, of_people))


def _claim(connection: Connection, which: Any) -> Sequence[AnyRow]:
    lease = {"new_lease": clock.new_id(), "seconds": LEASE_SECONDS}
    return connection.execute(_CLAIM.where(which), lease).all()


def _lease_message(connection: Connection, hook_id: str) -> Leased | None:
    """Lease all that is due for a hook for people, and start its pause; None if another did."""
    this = (Hook.id == hook_id, is_not_quiet)
    hook = select(Hook.id).where(*this).with_for_update(skip_locked=True, key_share=True)
    if connection.scalar(hook) is None:
        return None
    of_hook = Delivery.hook_id == hook_id
    cancel(connection, of_hook, is_due, Delivery.created_at < database_now(-DAY_SECONDS))
    claimed = _claim(connection, of_hook)
    if not claimed:
        return None
    pause = update(Hook).where(Hook.id == hook_id)
    connection.execute(pause.values(quiet_until=database_now(PAUSE_SECONDS)))
    first = min(claimed, key=attrgetter("attempt_count", "id"))
    return Leased(*first)._replace(is_shared=True)


def release(leased: Collection[Leased]) -> None:
    """End leases early, with no attempt counted, so that another process may post."""
    if leased:
        with transaction() as connection:
            for each in leased:
                connection.execute(update(Delivery).where(*held(each)).values(NO_LEASE))
        resources.find(DueDeliveries).set()


def held(leased: Leased) -> tuple[Any, ...]:
    """The deliveries posted with this lease: one, or all that are one message for people."""
    which = Delivery.hook_id == leased.hook_id if leased.is_shared else Delivery.id == leased.id
    return which, Delivery.lease == leased.lease


def require_lease(leased: Leased) -> None:
    """Raises LeaseLost unless this lease still allows its holder to post the delivery."""
    holds = ((Delivery.lease == leased.lease) & ~is_unleased).label("holds")
    now = read_one(select(Delivery.state, holds).where(Delivery.id == leased.id))
    if now is None:
        raise LeaseLost("The task was deleted.", terms.FAILED)
    if now.state == terms.CANCELLED:
        # By a late report.
        raise LeaseLost("A newer delivery has replaced it.", terms.FAILED)
    if not now.holds:
        # While this machine was suspended; another process may have it.
        raise LeaseLost("Its lease has run out.", now.state)


def record_attempt(leased: Leased, started: str, outcome: Outcome) -> str:
    """Store an attempt, and the next state of its deliveries if the lease holds; returns it."""
    state, delay = _next_state(outcome, leased.attempt_count)
    these = held(leased)
    stored = ("duration_ms", "status_code", "message", "answer")
    attempt = {"at": started, **{name: getattr(outcome, name) for name in stored}}
    next_attempt_at = None if delay is None else database_now(delay)
    values: dict[str, Any] = {"state": state, "next_attempt_at": next_attempt_at, **NO_LEASE}
    values["attempt_count"] = leased.attempt_count + 1
    with transaction() as connection:
        if leased.hook_id:
            # Before its deliveries, as in every transaction that changes both.
            hook = select(Hook.state).where(Hook.id == leased.hook_id)
            hook_state = connection.scalar(hook.with_for_update(key_share=True))
            if state == terms.PENDING and hook_state == terms.OFF:
                # It was turned off during the attempt: this waits like all that is pending for it.
                values["next_attempt_at"] = database_now(DAY_SECONDS)
        # The attempt of a deleted delivery is not stored; PostgreSQL waits for its deletion.
        # A single delivery keeps an attempt even if its lease has passed to another holder.
        attempted = select(Delivery.id).where(*these if leased.is_shared else these[:1])
        ids = connection.scalars(attempted.with_for_update()).all()
        if ids:
            connection.execute(insert(Attempt), [{**attempt, "delivery_id": each} for each in ids])
        newest_first = select(Attempt.id).where(Attempt.delivery_id == leased.id)
        older = newest_first.order_by(Attempt.id.desc()).offset(terms.MAX_ATTEMPTS)
        connection.execute(delete(Attempt).where(Attempt.id.in_(older)))
        changed = connection.execute(update(Delivery).where(*these).values(values))
        if leased.hook_id and changed.rowcount:
            _record_outcome_of_hook(connection, leased.hook_id, state, outcome)
    if state == terms.PENDING:
        resources.find(DueDeliveries).set()
    return state


def _record_outcome_of_hook(
    connection: Connection, hook_id: str, state: str, outcome: Outcome
) -> None:
    """Turn off a hook whose address is gone, or at which MAX_LOST deliveries in a row failed."""
    this = update(Hook).where(Hook.id == hook_id)
    if state == terms.DELIVERED:
        connection.execute(this.values(failures=0, last_delivered_at=database_now()))
    elif state == terms.FAILED:
        lost = this.values(failures=Hook.failures + 1).returning(Hook.failures, Hook.format)
        hook = connection.execute(lost).one()
        # An MCP client means only this event.
        is_gone = outcome.status_code == GONE and hook.format != terms.MCP
        if hook.failures >= MAX_LOST or is_gone:
            set_hook_state(connection, hook_id, terms.OFF, outcome.message)


def set_hook_state(
    connection: Connection, hook_id: str, state: str, reason: str | None = None
) -> None:
    """Turn a hook on or off; what is pending is due now, or waits for a day."""
    values = {"state": state, "reason": reason, "failures": 0}
    connection.execute(update(Hook).where(Hook.id == hook_id).values(values))
    waiting = update(Delivery).where(Delivery.hook_id == hook_id, is_pending)
    due = database_now(DAY_SECONDS if state == terms.OFF else 0.0)
    connection.execute(waiting.values(next_attempt_at=due))


def _next_state(outcome: Outcome, attempt_count: int) -> tuple[str, float | None]:
    """The delivery's next state, and the seconds until its next attempt if there is one."""
    if outcome.delivered:
        return terms.DELIVERED, None
    if outcome.permanent or attempt_count >= len(SCHEDULE):
        return terms.FAILED, None
    # Spread out, so that a receiver that was down is not flooded.
    delay = SCHEDULE[attempt_count] * random.uniform(1 - JITTER, 1 + JITTER)
    # Neither before `Retry-After` nor before the schedule: a receiver that always asks for a second
    # must not use up all attempts within seconds.
    return terms.PENDING, max(delay, outcome.retry_after or 0)


def cancel_waiting() -> None:
    """Cancel what has waited for a day for a hook that is off."""
    for hook in read_all(select(Hook.id).where(Hook.state == terms.OFF)):
        with transaction() as connection:
            cancel(connection, Delivery.hook_id == hook.id, is_due)


def redeliver(caller: Caller, task_id: str) -> Any:
    """Make a task's newest delivery due now, with a new schedule. Raises 404 and 409."""
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        newest = _newest(connection, task_id)
        if newest is None:
            detail = "The task has no delivery: it is running, or has no callback"
            raise Problem(409, detail, code=terms.NO_DELIVERY)
        make_due(connection, newest)
    resources.find(DueDeliveries).set()
    # The task may have been deleted in the meantime.
    return require(find(newest), "task")


def redeliver_any(delivery_id: str) -> None:
    """Redeliver a delivery of any user by its own id. Raises 404 and 409."""
    with transaction() as connection:
        of_delivery = select(Delivery.task_id).where(Delivery.id == delivery_id, is_of_callback)
        task_id = connection.scalar(of_delivery)
        if task_id is None:
            raise Problem(404, f"No such delivery: {delivery_id}")
        # A late report waits for this lock, or has replaced this delivery already.
        connection.execute(select(Task.id).where(Task.id == task_id).with_for_update())
        newest = _newest(connection, task_id)
        if newest != delivery_id:
            raise Problem(409, f"A newer delivery has replaced it: {newest}")
        make_due(connection, delivery_id)
    resources.find(DueDeliveries).set()


def _newest(connection: Connection, task_id: str) -> str | None:
    of_task = select(Delivery.id).where(Delivery.task_id == task_id, is_of_callback)
    newest_first = of_task.order_by(Delivery.created_at.desc(), Delivery.id.desc())
    return connection.scalar(newest_first.limit(1))


def make_far_due() -> bool:
    """Make due what is too far ahead; returns whether there may be more."""
    # Later than any delay: the clock was set back in between.
    far_ahead = Delivery.next_attempt_at > time_from_now(LONGEST_DELAY_SECONDS + 60)
    far = select(Delivery.id).where(is_pending, far_ahead)
    if not read_all(far.limit(1)):
        return False
    with transaction() as connection:
        found = connection.scalars(far.limit(FAR_BATCH).with_for_update(skip_locked=True)).all()
        these = update(Delivery).where(Delivery.id.in_(found))
        connection.execute(these.values(next_attempt_at=database_now()))
    resources.find(DueDeliveries).set()
    return len(found) == FAR_BATCH


def make_due(connection: Connection, delivery_id: str) -> None:
    """Deliver again now. Raises 409 while the delivery is being posted."""
    due = {"state": terms.PENDING, "attempt_count": 0, "next_attempt_at": database_now()}
    this = update(Delivery).where(Delivery.id == delivery_id, is_unleased)
    if connection.execute(this.values(due | NO_LEASE)).rowcount == 0:
        detail = "The delivery is being posted; wait for the outcome"
        raise Problem(409, detail, code=terms.DELIVERY_UNDER_WAY)
