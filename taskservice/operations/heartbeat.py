"""The heartbeat of the serving processes: written, and read where a database may be served."""

import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Connection, Float, bindparam, case, insert, select, update
from sqlalchemy.engine import URL

from taskservice.database import clock
from taskservice.database.address import shown
from taskservice.database.models import ServiceHeartbeat
from taskservice.database.transactions import moment_by, reading, retry_on_conflict, transaction
from taskservice.database.types import database_now

# How often one of the serving processes writes the heartbeat.
HEARTBEAT_SECONDS = 10.0
# Each round of upkeep may write it, so that it is younger than this while a process serves.
MAX_AGE_SECONDS = 25.0
# After a longer gap the service was away.
MAX_GAP_SECONDS = 60.0
POLL_SECONDS = 1.0


def seconds_ago(parameter: str) -> database_now:
    """The moment that is this many seconds ago, as a parameter says."""
    return database_now(-bindparam(parameter, type_=Float()))


# A heartbeat in the future does not count: the clock was set.
IS_CURRENT: ColumnElement[bool] = ServiceHeartbeat.until.between(
    seconds_ago("max_gap"), database_now()
)
_RENEW = update(ServiceHeartbeat).values(
    since=case((IS_CURRENT, ServiceHeartbeat.since), else_=database_now()), until=database_now()
)
_INSERT = insert(ServiceHeartbeat).values(id=1, since=database_now(), until=database_now())


@retry_on_conflict
def record(max_age: float = HEARTBEAT_SECONDS) -> None:
    """Record that agents can reach the service now, for all processes that may end tasks.

    Nothing is written if a process has recorded it within the last `max_age` seconds.
    """
    with reading() as connection:
        fresh = select(ServiceHeartbeat.id).where(IS_CURRENT)
        if connection.scalar(fresh, {"max_gap": max_age}) is not None:
            return
    with transaction() as connection:
        if connection.execute(_RENEW, {"max_gap": MAX_GAP_SECONDS}).rowcount == 0:
            connection.execute(_INSERT)


def is_served(connection: Connection, address: URL, remark: Callable[[str], None]) -> bool:
    """Wait until the heartbeat is too old to be that of a process, or changes."""
    first = _heartbeat(connection)
    if first is None or not _is_fresh(connection, first):
        return False
    remark(f"{shown(address)} was served a moment ago; waiting up to {MAX_AGE_SECONDS:.0f} s")
    while _is_fresh(connection, first):
        time.sleep(POLL_SECONDS)
        if _heartbeat(connection) != first:
            return True
    return False


def _heartbeat(connection: Connection) -> str | None:
    # Each read sees what was written since the last one.
    connection.rollback()
    return connection.scalar(select(ServiceHeartbeat.until))


def _is_fresh(connection: Connection, moment: str) -> bool:
    # One in the future does not count: the clock was set.
    return 0 <= clock.seconds_between(moment, moment_by(connection)) < MAX_AGE_SECONDS
