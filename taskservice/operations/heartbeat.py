"""Whether a process serves a database of PostgreSQL, as its heartbeat says."""

import time
from collections.abc import Callable

from sqlalchemy import Connection, select
from sqlalchemy.engine import URL

from taskservice.database import timestamps
from taskservice.database.address import shown
from taskservice.database.models import ServiceHeartbeat
from taskservice.database.transactions import moment_by

# A serving process writes its heartbeat at least every 20 s.
HEARTBEAT_SECONDS = 25.0
POLL_SECONDS = 1.0


def is_served(connection: Connection, address: URL, remark: Callable[[str], None]) -> bool:
    """Wait until the heartbeat is too old to be that of a process, or changes."""
    first = _heartbeat(connection)
    if first is None or not _is_fresh(connection, first):
        return False
    remark(f"{shown(address)} was served a moment ago; waiting up to {HEARTBEAT_SECONDS:.0f} s")
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
    return 0 <= timestamps.seconds_between(moment, moment_by(connection)) < HEARTBEAT_SECONDS
