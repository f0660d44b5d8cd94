"""Enqueues deliveries for callbacks, leases all due deliveries, and records their attempts."""

import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence, Set
from itertools import groupby, islice
from operator import attrgetter
from threading import Event as Flag
from types import SimpleNamespace
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from taskservice import error_codes, resources, terms
from taskservice.auth import Caller, visible_tasks
from taskservice.database import clock
from taskservice.database.models import (
    Attempt,
    CallbackSecret,
    Delivery,
    Event,
    EventStream,
    Hook,
    Question,
    Task,
    User,
)
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import read_all, read_one, reading, transaction
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Timestamp,
    a_day_after,
    database_now,
    has_prefix,
    time_from_now,
)
from taskservice.errors import Problem, require
from taskservice.event_kinds import TASK_ASKS
from taskservice.schemas.tasks import ATTEMPT_COLUMNS, DELIVERY_COLUMNS
from taskservice.services import tasks
from taskservice.services.events import DAY_SECONDS, PAUSE_SECONDS, after_pause
from taskservice.webhooks.circuit_breaker import Receiver, host_of
from taskservice.webhooks.outcome import Outcome
from taskservice.webhooks.retry_schedule import JITTER, LONGEST_DELAY_SECONDS, SCHEDULE

logger = logging.getLogger(__name__)

# The state is a literal, as in the conditions of the partial indexes: with a parameter, the
# database would not use these indexes.
is_pending = Delivery.state == literal_column(f"'{terms.PENDING}'")
# Until a lease expires, only its holder may post the delivery. An attempt takes much less time than
# a lease.
LEASE_SECONDS = 60.0
# Leases that end later than a new lease would end are ignored: they began before the clock was set
# back. A second is added, since PostgreSQL rounds the time.
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


def matching_ids(prefix: str) -> Sequence[str]:
    """At most two IDs of callback deliveries, of any user, that begin with `prefix`."""
    with reading() as connection:
        matching = select(Delivery.id).where(has_prefix(Delivery.id, prefix), is_of_callback)
        return connection.scalars(matching.limit(2)).all()


def find(delivery_id: str) -> Any | None:
    """A delivery of any user, with its `attempts`, oldest first; None if it was deleted."""
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
    attempts = connection.execute(_ATTEMPTS, {"delivery_ids": ids}).all() if ids else []
    by_id = {key: list(group) for key, group in groupby(attempts, attrgetter("delivery_id"))}
    return [SimpleNamespace(**row._asdict(), attempts=by_id.get(row.id, [])) for row in rows]


def states(rows: Sequence[TaskRow]) -> dict[str, str]:
    """The state of each task's newest delivery, by task ID; only for tasks with a delivery."""
    of_these = _STATES.where(Delivery.task_id.in_([row.id for row in rows]))
    return {row.task_id: row.state for row in read_all(of_these)}


# Chooses the deliveries to send next: users take turns, and each receiver has a few slots.

# A process makes at most this many concurrent attempts for a user at one host, so that a slow host
# does not delay other deliveries.
MAX_PER_RECEIVER = 4
# A receiver whose circuit breaker is open has one slot. All receivers with an open circuit breaker
# share MAX_TO_FAILING slots.
MAX_TO_FAILING = 8


class ReceiverSlots:
    """The free slots of each receiver in this process."""

    def __init__(self, running: Iterable[Receiver], failing: Set[Receiver]) -> None:
        self._used = Counter(running)
        self._failing = failing
        self._left_to_failing = MAX_TO_FAILING - sum(self._used[receiver] for receiver in failing)

    def full_hosts(self, user_id: str) -> list[str]:
        """The hosts at which this user has no free slot."""
        known = {*self._used, *self._failing}
        of_user = (receiver for receiver in known if receiver.user_id == user_id)
        return [receiver.host for receiver in of_user if not self.is_free(receiver)]

    def acquire(self, receiver: Receiver) -> bool:
        """Use a slot of this receiver; returns false if none is free."""
        is_free = self.is_free(receiver)
        if is_free:
            self._used[receiver] += 1
            self._left_to_failing -= receiver in self._failing
        return is_free

    def is_free(self, receiver: Receiver) -> bool:
        if receiver not in self._failing:
            return self._used[receiver] < MAX_PER_RECEIVER
        return not self._used[receiver] and self._left_to_failing > 0


# These statements read few index entries, unless many deliveries wait for a slot of their host.
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
# All pending deliveries of a hook for people are sent as one message, on the schedule of the hook.
_is_active = Hook.state == terms.ACTIVE
_is_for_people = Hook.format.in_(terms.PEOPLE_FORMATS)
_is_hook_due = _is_active & (Hook.next_attempt_at <= database_now())
is_message_due = _is_hook_due & _is_for_people
_USERS = (
    select(User.id, func.coalesce(_LEASES.c.count, 0).label("leases"), database_now().label("now"))
    .outerjoin(_LEASES, _LEASES.c.user_id == User.id)
    .where(
        or_(
            database_now() >= _first_of_user,
            User.id.in_(select(Hook.user_id).where(is_message_due)),
        )
    )
)
_is_told_at_once = _is_active & ~_is_for_people
_DUE_OF_USER: AnySelect = (
    select(Delivery.id, Delivery.host, Delivery.next_attempt_at)
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
    # PostgreSQL: skip deliveries that another process is leasing, instead of waiting.
    .with_for_update(skip_locked=True, of=Delivery)
)
_DUE_HOOKS_OF_USER = select(Hook.id, Hook.target, Hook.next_attempt_at).where(
    Hook.user_id == bindparam("of_user_id"), is_message_due
)


class _Due(NamedTuple):
    """A delivery that is due, or a hook for people with a message that is due."""

    next_attempt_at: str
    receiver: Receiver
    delivery_id: str | None = None
    hook_id: str | None = None


def due_deliveries(connection: Connection, limit: int, slots: ReceiverSlots) -> list[_Due]:
    """The next deliveries to send, in order: at most `limit` of each user, and due messages."""
    ranked: list[tuple[int, str, _Due]] = []
    for user in connection.execute(_USERS).all():
        values = {"of_user_id": user.id, "now": user.now, "limit": limit}
        values["full_hosts"] = slots.full_hosts(user.id)
        due = [
            _Due(row.next_attempt_at, Receiver(user.id, row.host), delivery_id=row.id)
            for row in connection.execute(_DUE_OF_USER, values)
        ]
        due += [
            _Due(hook.next_attempt_at, Receiver(user.id, host_of(hook.target)), hook_id=hook.id)
            for hook in connection.execute(_DUE_HOOKS_OF_USER, {"of_user_id": user.id})
        ]
        due.sort(key=attrgetter("next_attempt_at"))
        ranked += [(user.leases + n, entry.next_attempt_at, entry) for n, entry in enumerate(due)]
    return [entry for *_, entry in sorted(ranked, key=lambda ranks: ranks[:2])]


class DueDeliveries(Flag):
    """Set when the loop of this process should look for due deliveries."""


class Leased(NamedTuple):
    """A delivery with a lease; only the holder may post the delivery until the lease expires."""

    id: str
    lease: str
    task_id: str | None  # None for the event of a late agent
    user_id: str
    callback_url: str
    host: str  # includes the port if the URL has a port
    attempt_count: int
    hook_id: str | None = None  # None for a callback; `event_id` is then None too
    event_id: str | None = None
    # For a message to people: when it was leased, and the position of its last event. If the
    # position is None, the message contains only the event of this delivery.
    leased_at: str | None = None
    last_position: int | None = None

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.user_id, self.host)

    @property
    def destination(self) -> str:
        """The host, or the domain of an email address."""
        return self.host or self.callback_url.rpartition("@")[2]


class LeaseLost(Exception):
    """The delivery must no longer be posted. Arguments: the reason and the `Callback-Status`."""


# People are not notified of events that are older than a day, so the `next_attempt_at` of a
# delivery for people is the time when it expires. Deliveries of a hook that is off also wait for at
# most a day. A hook is turned off if MAX_LOST deliveries in a row fail permanently, or if its
# receiver responds with 410.
MAX_LOST = 3
GONE = 410
_NO_FAILURES = {"failures": 0, "attempt_count": 0, "failed_since": None, "last_error": None}
BATCH = 200  # the maximum number of deliveries that one transaction changes
NO_LEASE = {"lease": None, "leased_until": None}
_PENDING = {"state": terms.PENDING, **NO_LEASE}
_INSERT = insert(Delivery).values(
    state=terms.PENDING,
    next_attempt_at=database_now(),
    leased_until=database_now(bindparam("seconds")),
)
# The time when the next lease expires. If the process that holds the lease has died, its delivery
# is due again at this time.
_LEASED = select(func.min(Delivery.leased_until)).where(Delivery.leased_until > time_from_now())
_FIRST_MESSAGE = select(func.min(Hook.next_attempt_at)).where(_is_active)
_NEXT = select(
    _FIRST_TIME.scalar_subquery(),
    _FIRST_MESSAGE.scalar_subquery(),
    _LEASED.scalar_subquery(),
    database_now(),
)
_CLAIM = (
    update(Delivery)
    .values(lease=bindparam("new_lease"), leased_until=database_now(bindparam("seconds")))
    .returning(*(getattr(Delivery, name) for name in Leased._fields[:-2]))
)
# Selects the deliveries that the next message of a hook for people contains: the pending deliveries
# that are less than a day old.
_of_message = (
    Delivery.hook_id == bindparam("of_hook_id"),
    is_pending,
    is_unleased,
    a_day_after(Delivery.created_at) > database_now(),
)
_FIRST_OF_MESSAGE = (
    select(Delivery.id)
    .where(*_of_message)
    .order_by(Delivery.next_attempt_at, Delivery.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
# An open question is sent in a separate message, with buttons for the answers.
_FIRST_QUESTION = (
    select(Delivery.id, Event.position)
    .join(Event, Event.id == Delivery.event_id)
    .join(Question, Question.id == Event.question_id)
    .where(
        *_of_message,
        Event.name == TASK_ASKS.name,
        Question.state == literal_column(f"'{terms.OPEN}'"),
        # This condition is redundant, but lets the databases start with the few open questions
        # instead of all pending deliveries.
        Delivery.task_id == Question.task_id,
    )
    .order_by(Event.position)
    .limit(1)
    .with_for_update(skip_locked=True, of=Delivery)
)
# A question has priority over events that have waited for less than WAIT_SECONDS. Older events are
# sent first; otherwise, an agent that asks all day would delay them.
WAIT_SECONDS = 300.0
_FIRST_BEFORE_QUESTION = (
    select(Delivery.id)
    .join(Event, Event.id == Delivery.event_id)
    .where(
        *_of_message,
        Event.position < bindparam("position"),
        Delivery.next_attempt_at <= database_now(DAY_SECONDS - WAIT_SECONDS),
    )
    .order_by(Delivery.next_attempt_at, Delivery.id)
    .limit(1)
    .with_for_update(skip_locked=True, of=Delivery)
)


def cancel(connection: Connection, *which: Any) -> int:
    """Cancel the pending deliveries that match `which`; returns their number."""
    cancelled = {"state": terms.CANCELLED, "next_attempt_at": None, **NO_LEASE}
    return connection.execute(update(Delivery).where(is_pending, *which).values(cancelled)).rowcount


def enqueue_webhook(
    connection: Connection, task: TaskRow, now: str, *, for_loop: bool = False
) -> Leased | None:
    """Enqueue the webhook of a task that ends in this transaction.

    The task's earlier webhook is cancelled if it is pending. The new delivery is leased to this
    request, unless `for_loop` is true. Returns None if the task has no callback.
    """
    if task.callback_url is None:
        return None
    leased = Leased(
        id=clock.new_id(),
        lease=clock.new_id(),
        task_id=task.id,
        user_id=task.user_id,
        callback_url=task.callback_url,
        host=host_of(task.callback_url),
        attempt_count=0,
    )
    cancel(connection, Delivery.task_id == task.id, is_of_callback)
    columns = leased._asdict() | {"created_at": now, "seconds": LEASE_SECONDS}
    if for_loop:
        columns |= {"lease": None, "seconds": None}
    del columns["leased_at"], columns["last_position"]
    connection.execute(_INSERT, columns)
    return leased


def seconds_until_due() -> float | None:
    """Seconds until a delivery is due or a lease expires; None if no delivery is pending."""
    [(*times, now)] = read_all(_NEXT)
    return min((clock.seconds_between(now, time) for time in times if time), default=None)


def lease_due(limit: int, slots: ReceiverSlots) -> Sequence[Leased]:
    """Lease at most `limit` due deliveries, each user's in the order in which they became due.

    Users take turns: the next delivery is chosen from the user with the fewest leases in all
    processes. A receiver gets at most as many leases as it has free slots, so some deliveries may
    remain due; call this again when an attempt has ended.
    """
    with transaction() as connection:
        _restart(connection)
        due = due_deliveries(connection, limit, slots)
        chosen = list(islice((entry for entry in due if slots.acquire(entry.receiver)), limit))
        ids = [entry.delivery_id for entry in chosen if entry.delivery_id]
        leased = _claim(connection, is_due, ids)
        messages = (_lease_message(connection, entry.hook_id) for entry in chosen if entry.hook_id)
        return leased + list(filter(None, messages))


def _restart(connection: Connection) -> None:
    """After a hook for programs was turned on, make a batch of its deliveries due."""
    # Choose a random hook, so that a hook with very many deliveries does not delay other hooks.
    this = select(Hook.id, Hook.next_attempt_at).where(_is_hook_due, ~_is_for_people)
    this = this.order_by(func.random()).limit(1)
    hook = connection.execute(this.with_for_update(skip_locked=True, key_share=True)).first()
    if hook is None:
        return
    # Skip deliveries that were attempted after the hook was turned on; they have a new schedule.
    was_tried = (Attempt.delivery_id == Delivery.id, Attempt.at >= hook.next_attempt_at)
    is_later = Delivery.next_attempt_at > database_now()
    waiting = (
        select(Delivery.id)
        .where(Delivery.hook_id == hook.id, is_pending, is_later, ~exists().where(*was_tried))
        .order_by(Delivery.next_attempt_at)
        .limit(BATCH)
    )
    ids = connection.scalars(waiting.with_for_update()).all()
    these = update(Delivery).where(Delivery.id.in_(ids))
    connection.execute(these.values(next_attempt_at=database_now()))
    if len(ids) < BATCH:
        connection.execute(update(Hook).where(Hook.id == hook.id).values(next_attempt_at=None))


def _claim(connection: Connection, which: Any, ids: Sequence[str]) -> list[Leased]:
    lease = {"new_lease": clock.new_id(), "seconds": LEASE_SECONDS}
    rows = connection.execute(_CLAIM.where(which, Delivery.id.in_(ids)), lease)
    return [Leased(*row) for row in rows]


def _lease_message(connection: Connection, hook_id: str) -> Leased | None:
    """Lease the first delivery of a message for people, and start the pause of its hook.

    Returns None if another process has leased it, or if nothing is pending.
    """
    this = (Hook.id == hook_id, is_message_due)
    due = select(Hook.target, Hook.attempt_count, Hook.user_id, database_now().label("now"))
    locked = due.where(*this).with_for_update(skip_locked=True, key_share=True)
    hook = connection.execute(locked).first()
    if hook is None:
        return None
    of_hook = {"of_hook_id": hook_id}
    # Events get their positions in the order of commits, so later commits do not add events before
    # this position.
    of_user = EventStream.user_id == hook.user_id
    position = connection.scalar(select(EventStream.position).where(of_user))
    question = connection.execute(_FIRST_QUESTION, of_hook).first()
    if question is None:
        first = connection.scalar(_FIRST_OF_MESSAGE, of_hook)
    else:
        before = of_hook | {"position": question.position}
        first = connection.scalar(_FIRST_BEFORE_QUESTION, before)
        position = question.position - 1 if first else None
        first = first or question.id
    change = update(Hook).where(Hook.id == hook_id)
    if first is None:
        connection.execute(change.values(next_attempt_at=None))
        return None
    [leased] = _claim(connection, is_pending, [first])
    # Until this lease expires, no other process sends a message of this hook.
    times = {"quiet_until": PAUSE_SECONDS, "next_attempt_at": LEASE_SECONDS}
    connection.execute(change.values({name: database_now(times[name]) for name in times}))
    return leased._replace(
        callback_url=hook.target,
        host=host_of(hook.target),
        attempt_count=hook.attempt_count,
        leased_at=hook.now,
        last_position=position,
    )


def release(leased: Collection[Leased]) -> None:
    """End leases early, without counting an attempt, so that another process can post."""
    if leased:
        with transaction() as connection:
            for lease in leased:
                if lease.leased_at:
                    is_held = exists().where(*held(lease))
                    this = update(Hook).where(Hook.id == lease.hook_id, is_held)
                    connection.execute(this.values(next_attempt_at=database_now()))
                connection.execute(update(Delivery).where(*held(lease)).values(NO_LEASE))
        resources.find(DueDeliveries).set()


def held(leased: Leased) -> tuple[Any, ...]:
    """Selects the delivery of this lease, unless the lease was released or replaced."""
    return Delivery.id == leased.id, Delivery.lease == leased.lease


def of_message(leased: Leased) -> tuple[Any, ...]:
    """Selects the deliveries of a message for people, in a statement that joins their events."""
    if leased.last_position is None:
        return (Delivery.id == leased.id,)
    return (
        Delivery.hook_id == leased.hook_id,
        is_pending,
        a_day_after(Delivery.created_at) > leased.leased_at,
        Event.position <= leased.last_position,
    )


def require_lease(leased: Leased) -> None:
    """Raises LeaseLost unless this lease still allows its holder to post the delivery."""
    holds = ((Delivery.lease == leased.lease) & ~is_unleased).label("holds")
    has_secret = exists().where(CallbackSecret.user_id == Delivery.user_id).label("has_secret")
    now = read_one(select(Delivery.state, holds, has_secret).where(Delivery.id == leased.id))
    if now is None:
        raise LeaseLost("The task was deleted.", terms.FAILED)
    if not now.has_secret:
        raise LeaseLost("The user is being deleted.", terms.FAILED)
    if now.state == terms.CANCELLED:
        # A late report has replaced the delivery.
        raise LeaseLost("A newer delivery has replaced this delivery.", terms.FAILED)
    if not now.holds:
        # This machine may have been suspended, and another process may hold a new lease.
        raise LeaseLost("The lease of the delivery has expired.", now.state)


def record_attempt(leased: Leased, started: str, outcome: Outcome) -> str:
    """Store an attempt, and the new state of its deliveries unless the lease was lost.

    Returns the new state.
    """
    state, delay = _next_state(outcome, leased.attempt_count)
    if leased.last_position is not None and state != terms.PENDING:
        _settle_message(leased, state)
    stored = ("duration_ms", "status_code", "message", "answer", "text")
    attempt = {"at": started, **{name: getattr(outcome, name) for name in stored}}
    values: dict[str, Any] = {"state": state, **NO_LEASE}
    values["attempt_count"] = Delivery.attempt_count + 1
    if delay is None:
        values["next_attempt_at"] = None
    elif not leased.leased_at:
        values["next_attempt_at"] = database_now(delay)
    hook = None
    with transaction() as connection:
        if leased.hook_id:
            # Lock the hook before its deliveries, in the same order as other transactions;
            # otherwise, two transactions could deadlock.
            row = select(Hook.state, Hook.format).where(Hook.id == leased.hook_id)
            hook = connection.execute(row.with_for_update(key_share=True)).one_or_none()
            is_waiting = hook and (hook.state == terms.OFF or hook.format in terms.PEOPLE_FORMATS)
            if not leased.leased_at and state == terms.PENDING and is_waiting:
                # The hook was turned off, or changed to a format for people, during the attempt.
                # This delivery then waits like the other deliveries of the hook.
                values["next_attempt_at"] = database_now(DAY_SECONDS)
        # The attempt is stored even if the lease now has another holder, but not if the delivery
        # was deleted. The lock makes PostgreSQL wait for a deletion that is not committed yet.
        attempted = select(Delivery.id).where(Delivery.id == leased.id)
        is_deleted = connection.scalar(attempted.with_for_update()) is None
        if not is_deleted:
            connection.execute(insert(Attempt), {**attempt, "delivery_id": leased.id})
        newest_first = select(Attempt.id).where(Attempt.delivery_id == leased.id)
        older = newest_first.order_by(Attempt.id.desc()).offset(terms.MAX_ATTEMPTS)
        connection.execute(delete(Attempt).where(Attempt.id.in_(older)))
        changed = connection.execute(update(Delivery).where(*held(leased)).values(values))
        # A message for people can contain other events, even if the leased delivery was deleted.
        is_current = changed.rowcount or (leased.leased_at and is_deleted)
        if hook and leased.hook_id and is_current:
            if leased.leased_at:
                _schedule_message(connection, leased.hook_id, delay)
            _record_outcome_of_hook(connection, leased.hook_id, state, outcome)
    if state == terms.PENDING:
        resources.find(DueDeliveries).set()
    return state


def _settle_message(leased: Leased, state: str) -> None:
    """Set the state of all deliveries of a message except the leased delivery.

    Changes nothing if the lease is lost.
    """
    is_other = Delivery.lease.is_distinct_from(leased.lease)
    is_lost = exists().where(Delivery.id == leased.id, is_other).correlate(None)
    others = (
        select(Delivery.id)
        .join(Event, Event.id == Delivery.event_id)
        .where(*of_message(leased), Delivery.id != leased.id)
        .order_by(Delivery.next_attempt_at)
        .limit(BATCH)
    )
    has_more = True
    while has_more:
        began = time.monotonic()
        with transaction() as connection:
            ids = connection.scalars(others).all()
            these = update(Delivery).where(Delivery.id.in_(ids), is_pending, ~is_lost)
            changed = connection.execute(these.values(state=state, next_attempt_at=None))
        # If the lease is lost, no row is changed.
        has_more = len(ids) == BATCH and changed.rowcount > 0
        if has_more:
            # Pause, so that other writers wait for at most one batch.
            time.sleep(time.monotonic() - began)


def _schedule_message(connection: Connection, hook_id: str, delay: float | None) -> None:
    """Set the time of the next message of a hook for people; null if nothing is pending."""
    # The format of the hook may have changed during the attempt.
    this = update(Hook).where(Hook.id == hook_id, Hook.format.in_(terms.PEOPLE_FORMATS))
    if delay is not None:
        later = database_now(max(delay, PAUSE_SECONDS))
        connection.execute(this.values(next_attempt_at=later))
        return
    is_left = exists().where(Delivery.hook_id == hook_id, is_pending)
    connection.execute(this.where(is_left).values(next_attempt_at=after_pause))
    connection.execute(this.where(~is_left).values(next_attempt_at=None))


def _record_outcome_of_hook(
    connection: Connection, hook_id: str, state: str, outcome: Outcome
) -> None:
    """Store the outcome for a hook; turn it off after a 410 or MAX_LOST failures in a row."""
    this = update(Hook).where(Hook.id == hook_id)
    if state == terms.DELIVERED:
        connection.execute(this.values(_NO_FAILURES | {"last_delivered_at": database_now()}))
        return
    attempted = this.values(
        attempt_count=Hook.attempt_count + 1,
        failed_since=func.coalesce(Hook.failed_since, database_now()),
        last_error=outcome.message,
        failures=Hook.failures + int(state == terms.FAILED),
    )
    failures = connection.execute(attempted.returning(Hook.failures)).scalar_one()
    if state == terms.FAILED and (failures >= MAX_LOST or outcome.status_code == GONE):
        set_hook_state(connection, hook_id, terms.OFF, outcome.message)


# These conditions use the index of leases, since a hook may have very many pending deliveries, but
# few leases.
leased_hook_id = case((Delivery.leased_until.is_not(None), Delivery.hook_id))
has_lease = Delivery.leased_until > clock.EARLIEST
# The time when a hook for people can receive the next message. A running attempt sets this time
# again when it ends, unless its process dies.
_end_of_lease = (
    select(func.max(Delivery.leased_until))
    .where(leased_hook_id == Hook.id, has_lease, ~is_unleased)
    .scalar_subquery()
)
_next_message_at = func.coalesce(_end_of_lease, after_pause)


def set_hook_state(
    connection: Connection, hook_id: str, state: str, reason: str | None = None
) -> None:
    """Turn a hook on or off.

    When the hook is on, its deliveries become due (for people, after the pause); when it is off,
    they wait. The deliveries are not changed here, since very many may be pending: `_restart` and
    `expire` change them in batches.
    """
    values: dict[str, Any] = {"state": state, "reason": reason, **_NO_FAILURES}
    if state == terms.ACTIVE:
        values["next_attempt_at"] = case((_is_for_people, _next_message_at), else_=database_now())
    else:
        until = case((_is_for_people, Hook.quiet_until), else_=database_now(DAY_SECONDS))
        values |= {"next_attempt_at": None, "quiet_until": until}
    connection.execute(update(Hook).where(Hook.id == hook_id).values(values))


def _next_state(outcome: Outcome, attempt_count: int) -> tuple[str, float | None]:
    """The delivery's next state, and the seconds until its next attempt if there is one."""
    if outcome.delivered:
        return terms.DELIVERED, None
    if outcome.permanent or attempt_count >= len(SCHEDULE):
        return terms.FAILED, None
    # The random factor spreads the attempts, so that a receiver is not flooded after an outage.
    delay = SCHEDULE[attempt_count] * random.uniform(1 - JITTER, 1 + JITTER)
    # Wait for the longer of `Retry-After` and the schedule's delay: a receiver that always requests
    # 1 s must not use up all attempts within seconds.
    return terms.PENDING, max(delay, outcome.retry_after or 0)


def expire() -> bool:
    """Process a batch of due deliveries of one hook that is for people or is off.

    Ends the expired deliveries; the others become due when they expire. Expired deliveries count as
    failed if the hook is active and at least MAX_LOST attempts failed; otherwise, they are
    cancelled. Returns whether more deliveries may be due.
    """
    waits = (Hook.state == terms.OFF) | _is_for_people
    of_hook = exists().where(Delivery.hook_id == Hook.id, is_due)
    first = read_one(select(Hook.id).where(waits, of_hook).limit(1))
    if first is None:
        return False
    with transaction() as connection:
        # The hook may have been turned on in the meantime.
        this = select(Hook.__table__).where(Hook.id == first.id, waits)
        hook = connection.execute(this.with_for_update(key_share=True)).first()
        if hook is None:
            return True
        expires_at: Any = a_day_after(Delivery.created_at)
        if hook.format not in terms.PEOPLE_FORMATS:
            # If the clock was set back, `quiet_until` can be too far in the future.
            until = min(hook.quiet_until or clock.EARLIEST, clock.now(DAY_SECONDS))
            expires_at = literal(until, Timestamp())
        which = select(Delivery.id, (expires_at <= database_now()).label("has_expired"))
        oldest = which.where(Delivery.hook_id == hook.id, is_due).order_by(Delivery.next_attempt_at)
        due = connection.execute(oldest.limit(BATCH).with_for_update(skip_locked=True)).all()
        expired = [row.id for row in due if row.has_expired]
        waiting = update(Delivery).where(Delivery.id.in_([row.id for row in due]))
        connection.execute(
            waiting.where(Delivery.id.not_in(expired)).values(next_attempt_at=expires_at)
        )
        # With fewer failed attempts, this service was probably unavailable, not the receiver.
        is_lost = hook.state == terms.ACTIVE and hook.attempt_count >= MAX_LOST
        ended = {"state": terms.FAILED if is_lost else terms.CANCELLED, "next_attempt_at": None}
        these = update(Delivery).where(Delivery.id.in_(expired))
        connection.execute(these.values(ended | NO_LEASE))
        if is_lost and expired:
            failures = hook.failures + len(expired)
            lost = update(Hook).where(Hook.id == hook.id)
            connection.execute(lost.values(failures=failures))
            if failures >= MAX_LOST:
                set_hook_state(connection, hook.id, terms.OFF, hook.last_error)
    return bool(due)


def redeliver(caller: Caller, task_id: str) -> Any:
    """Make a task's newest delivery due now, with a new schedule. Raises 404 and 409."""
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        newest = _newest(connection, task_id)
        if newest is None:
            detail = "The task has no delivery: it is running, or has no callback"
            raise Problem(409, detail, code=error_codes.NO_DELIVERY)
        make_due(connection, newest)
    resources.find(DueDeliveries).set()
    # The task may have been deleted in the meantime.
    return require(find(newest), "task")


def redeliver_any(delivery_id: str) -> None:
    """Make a delivery of any user due now, with a new schedule. Raises 404 and 409."""
    with transaction() as connection:
        of_delivery = select(Delivery.task_id).where(Delivery.id == delivery_id, is_of_callback)
        task_id = connection.scalar(of_delivery)
        if task_id is None:
            raise Problem(404, f"No such delivery: {delivery_id}")
        # A late report waits for this lock, or has already replaced this delivery.
        connection.execute(select(Task.id).where(Task.id == task_id).with_for_update())
        newest = _newest(connection, task_id)
        if newest != delivery_id:
            raise Problem(409, f"A newer delivery has replaced this delivery: {newest}")
        make_due(connection, delivery_id)
    resources.find(DueDeliveries).set()


def _newest(connection: Connection, task_id: str) -> str | None:
    of_task = select(Delivery.id).where(Delivery.task_id == task_id, is_of_callback)
    newest_first = of_task.order_by(Delivery.created_at.desc(), Delivery.id.desc())
    return connection.scalar(newest_first.limit(1))


def make_far_due() -> bool:
    """Make deliveries due that are scheduled too far ahead; returns whether more may remain."""
    # A time that is further ahead than the longest delay was set before the clock was set back.
    limit = time_from_now(LONGEST_DELAY_SECONDS + 60)
    of_people = select(Hook.id).where(Hook.format.in_(terms.PEOPLE_FORMATS))
    has_schedule = is_of_callback | Delivery.hook_id.not_in(of_people)
    far = select(Delivery.id).where(is_pending, Delivery.next_attempt_at > limit, has_schedule)
    far_hooks = select(Hook.id).where(Hook.next_attempt_at > limit)
    if not read_all(far.limit(1)) and not read_all(far_hooks.limit(1)):
        return False
    now = {"next_attempt_at": database_now()}
    with transaction() as connection:
        connection.execute(update(Hook).where(Hook.id.in_(far_hooks)).values(now))
        ids = connection.scalars(far.limit(BATCH).with_for_update(skip_locked=True)).all()
        connection.execute(update(Delivery).where(Delivery.id.in_(ids)).values(now))
    resources.find(DueDeliveries).set()
    return len(ids) == BATCH


def make_due(connection: Connection, delivery_id: str) -> None:
    """Make a delivery due now, with a new schedule. Raises 409 while it is being posted."""
    due = {"attempt_count": 0, "next_attempt_at": database_now()}
    this = update(Delivery).where(Delivery.id == delivery_id, is_unleased)
    if connection.execute(this.values(_PENDING | due)).rowcount == 0:
        raise _under_way()


def make_message_due(connection: Connection, hook_id: str, delivery: AnyRow) -> None:
    """Send a message again after the hook's pause. Raises 409 while a message is being sent."""
    is_leased = has_lease & ~is_unleased
    if connection.scalar(select(exists().where(leased_hook_id == hook_id, is_leased))):
        raise _under_way()
    expires_at = clock.moved(delivery.created_at, DAY_SECONDS)
    this = update(Delivery).where(Delivery.id == delivery.id)
    connection.execute(this.values(_PENDING | {"next_attempt_at": expires_at}))
    hook = update(Hook).where(Hook.id == hook_id)
    connection.execute(hook.values(attempt_count=0, next_attempt_at=after_pause))


def _under_way() -> Problem:
    detail = "The delivery is being posted; wait for the outcome"
    return Problem(409, detail, code=error_codes.DELIVERY_UNDER_WAY)
