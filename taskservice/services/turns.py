"""Whose deliveries are sent next: users take turns, and no host gets more than it has room for."""

from collections import Counter
from collections.abc import Iterable, Set
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, func, select

from taskservice.database.models import Delivery, Identifier, User
from taskservice.database.rows import AnyRow
from taskservice.database.types import Timestamp, database_now
from taskservice.queries.deliveries import is_due, is_pending, is_unleased

# One host that answers slowly or never leaves most senders of a process to the others.
HOST_LIMIT = 4
# A host that has just failed several times gets one, and all such hosts get so many.
FAILING_LIMIT = 8
# Where those that are due first are of hosts without room, so many hosts of a user are searched.
HOSTS_MOST = 1_000


class Room:
    """How many more attempts each host may have from this process, beside those under way."""

    def __init__(self, in_flight: Iterable[str], failing: Set[str]) -> None:
        self._taken = Counter(in_flight)
        self._failing = failing
        self._left_to_failing = FAILING_LIMIT - sum(self._taken[host] for host in failing)

    def full(self) -> list[str]:
        """The hosts without room, of those that have an attempt under way or are failing."""
        return sorted(host for host in {*self._taken, *self._failing} if not self.has(host))

    def take(self, host: str) -> bool:
        """Take a place of this host; False where it has none."""
        has_room = self.has(host)
        if has_room:
            self._taken[host] += 1
            self._left_to_failing -= host in self._failing
        return has_room

    def has(self, host: str) -> bool:
        """Whether one more may be sent to this host."""
        if host not in self._failing:
            return self._taken[host] < HOST_LIMIT
        return not self._taken[host] and self._left_to_failing > 0


# However many deliveries of however few users are due, each of these reads a few of an index.
_LEASES = (
    select(Delivery.user_id, func.count().label("count"))
    .where(Delivery.leased_until > database_now())
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
_DUE = select(Delivery.id, Delivery.host, Delivery.next_attempt_at).where(is_due)
_FIRST_DUE = (
    # PostgreSQL uses an index for a moment only if that is given.
    _DUE.where(*_OF_USER, Delivery.next_attempt_at <= bindparam("now", type_=Timestamp()))
    .order_by(Delivery.next_attempt_at)
    .limit(bindparam("limit", type_=Integer()))
    # PostgreSQL: what another process is just claiming is passed over, and not waited for.
    .with_for_update(skip_locked=True)
)


def _first_host(*wanted: ColumnElement[bool]) -> Any:
    return select(func.min(Delivery.host)).where(*_OF_USER, *wanted).scalar_subquery()


# From each host to the next one, past however many deliveries.
_EACH_HOST = select(_first_host().label("host")).cte("each_host", recursive=True)
_EACH_HOST = _EACH_HOST.union_all(
    select(_first_host(Delivery.host > _EACH_HOST.c.host)).where(_EACH_HOST.c.host.is_not(None))
)
_HOSTS = select(_EACH_HOST.c.host).limit(HOSTS_MOST).subquery()
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


def in_turn(connection: Connection, limit: int, room: Room) -> list[AnyRow]:
    """What is due, at most `limit` of each user, in the order in which it should be sent.

    First comes what has waited longest of the users who hold the fewest leases, in all processes.
    """
    turns: list[tuple[int, str, AnyRow]] = []
    for user in connection.execute(_USERS).all():
        due = _due_of_user(connection, user, limit, room)
        turns += [(user.leases + n, row.next_attempt_at, row) for n, row in enumerate(due)]
    return [row for *_, row in sorted(turns, key=lambda turn: turn[:2])]


def _due_of_user(connection: Connection, user: AnyRow, limit: int, room: Room) -> list[AnyRow]:
    """What is due and has room, what has waited longest first."""
    wanted = {"of_user_id": user.id, "now": user.now, "limit": limit}
    first = connection.execute(_FIRST_DUE, wanted).all()
    with_room = [row for row in first if room.has(row.host)]
    if with_room or len(first) < limit:
        return with_room
    # All of them wait for hosts that hang or fail: what is due at the user's others?
    hosts = {**wanted, "full_hosts": room.full()}
    return list(connection.execute(_FIRST_DUE_OF_HOSTS, hosts))
