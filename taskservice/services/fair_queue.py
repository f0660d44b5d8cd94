"""Chooses the deliveries to send next: users take turns, and each receiver has a few slots."""

from collections import Counter
from collections.abc import Iterable, Set
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, func, select

from taskservice.database.models import Delivery, User
from taskservice.database.types import AnyRow, Identifier, Timestamp, database_now, moment_from_now
from taskservice.queries.deliveries import is_due, is_pending, is_unleased
from taskservice.webhooks.circuit_breaker import Receiver

# Maximum attempts of one user at one host at a time in a process, so that a slow host leaves most
# to others.
MAX_PER_RECEIVER = 4
# A receiver whose circuit breaker is open has one slot, and all such receivers have these together.
MAX_TO_FAILING = 8
# Hosts of a user that are searched when the first due deliveries are for hosts without a slot.
MAX_HOSTS = 1_000


class ReceiverSlots:
    """The attempts that may still start at each receiver, beside those that run in this process."""

    def __init__(self, running: Iterable[Receiver], failing: Set[Receiver]) -> None:
        self._used = Counter(running)
        self._failing = failing
        self._left_to_failing = MAX_TO_FAILING - sum(self._used[receiver] for receiver in failing)

    def full_hosts(self, user_id: str) -> list[str]:
        """The hosts at which this user has no free slot."""
        known = {*self._used, *self._failing}
        return sorted(
            each.host for each in known if each.user_id == user_id and not self.is_free(each)
        )

    def acquire(self, receiver: Receiver) -> bool:
        """Use a slot of this receiver; False when none is free."""
        is_free = self.is_free(receiver)
        if is_free:
            self._used[receiver] += 1
            self._left_to_failing -= receiver in self._failing
        return is_free

    def is_free(self, receiver: Receiver) -> bool:
        """Whether this receiver has a free slot."""
        if receiver not in self._failing:
            return self._used[receiver] < MAX_PER_RECEIVER
        return not self._used[receiver] and self._left_to_failing > 0


# Each of these statements reads a few entries of an index, however many deliveries are due.
_LEASES = (
    select(Delivery.user_id, func.count().label("count"))
    .where(Delivery.leased_until > moment_from_now())
    .group_by(Delivery.user_id)
    .subquery()
)
_FIRST_MOMENT = (
    select(Delivery.next_attempt_at)
    .where(Delivery.user_id == User.id, is_pending, is_unleased)
    .order_by(Delivery.next_attempt_at)
    .limit(1)
    .scalar_subquery()
)
_USERS = (
    select(
        User.id,
        func.coalesce(_LEASES.c.count, 0).label("leases"),
        database_now().label("now"),
    )
    .outerjoin(_LEASES, _LEASES.c.user_id == User.id)
    .where(database_now() >= _FIRST_MOMENT)
)
_OF_USER = (Delivery.user_id == bindparam("of_user_id", type_=Identifier), is_pending)
_DUE = select(Delivery.id, Delivery.user_id, Delivery.host, Delivery.next_attempt_at).where(is_due)
_FIRST_DUE = (
    # PostgreSQL uses the index only when the moment is a parameter.
    _DUE.where(*_OF_USER, Delivery.next_attempt_at <= bindparam("now", type_=Timestamp()))
    .order_by(Delivery.next_attempt_at)
    .limit(bindparam("limit", type_=Integer()))
    # PostgreSQL: skip what another process is leasing, rather than wait for it.
    .with_for_update(skip_locked=True)
)


def _first_host(*wanted: ColumnElement[bool]) -> Any:
    return select(func.min(Delivery.host)).where(*_OF_USER, *wanted).scalar_subquery()


# Steps from each host to the next one, however many deliveries it has.
_EACH_HOST = select(_first_host().label("host")).cte("each_host", recursive=True)
_EACH_HOST = _EACH_HOST.union_all(
    select(_first_host(Delivery.host > _EACH_HOST.c.host)).where(_EACH_HOST.c.host.is_not(None))
)
_HOSTS = select(_EACH_HOST.c.host).limit(MAX_HOSTS).subquery()
_FIRST_OF_HOST = (
    select(Delivery.id)
    .where(
        *_OF_USER,
        Delivery.host == _HOSTS.c.host,
        Delivery.next_attempt_at <= bindparam("now", type_=Timestamp()),
        is_due,
    )
    .order_by(Delivery.next_attempt_at)
    .limit(1)
    .correlate(_HOSTS)
    .scalar_subquery()
)
_FIRST_DUE_OF_HOSTS = (
    _DUE.join(_HOSTS, Delivery.id == _FIRST_OF_HOST)
    .where(_HOSTS.c.host.not_in(bindparam("full_hosts", expanding=True)))
    .order_by(Delivery.next_attempt_at)
    .limit(bindparam("limit", type_=Integer()))
    .with_for_update(skip_locked=True, of=Delivery)
)


def due_deliveries(connection: Connection, limit: int, slots: ReceiverSlots) -> list[AnyRow]:
    """Due deliveries, at most `limit` of each user, in the order in which to send them.

    Users with the fewest leases in all processes come first, then the longest due deliveries.
    """
    ranked: list[tuple[int, str, AnyRow]] = []
    for user in connection.execute(_USERS).all():
        due = _due_of_user(connection, user, limit, slots)
        ranked += [(user.leases + n, row.next_attempt_at, row) for n, row in enumerate(due)]
    return [row for *_, row in sorted(ranked, key=lambda entry: entry[:2])]


def _due_of_user(
    connection: Connection, user: AnyRow, limit: int, slots: ReceiverSlots
) -> list[AnyRow]:
    """Due deliveries of a user to hosts with a free slot, longest due first."""
    wanted = {"of_user_id": user.id, "now": user.now, "limit": limit}
    first = connection.execute(_FIRST_DUE, wanted).all()
    sendable = [row for row in first if slots.is_free(Receiver(user.id, row.host))]
    if sendable or len(first) < limit:
        return sendable
    # All of these wait for slow or failing hosts: look at the user's other hosts.
    hosts = {**wanted, "full_hosts": slots.full_hosts(user.id)}
    return list(connection.execute(_FIRST_DUE_OF_HOSTS, hosts))
