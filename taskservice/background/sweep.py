"""Removes the lines of dropped logs, in small batches."""

import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, delete, func, select

from taskservice.background.batches import CHORE_SECONDS, BatchSize, in_batches
from taskservice.database.models import Log, LogChunk
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import AnyRow, moment_from_now

# How many dropped logs are found at once.
LOGS = 500
# How many chunks one transaction removes at most.
MAX_CHUNKS = 2_000
# The answer to a deletion may still be streaming the log that it dropped.
SWEEP_AFTER_SECONDS = 60

_SOME_CHUNKS = (
    select(LogChunk.last).where(LogChunk.log_id == Log.id).limit(MAX_CHUNKS + 1).correlate(Log)
)
_DROPPED = (
    select(Log.id, select(func.count()).select_from(_SOME_CHUNKS.subquery()).label("chunks"))
    .where(Log.dropped_at < moment_from_now(-SWEEP_AFTER_SECONDS))
    .order_by(Log.dropped_at)
    .limit(LOGS)
)
_IDS: BindParameter[Any] = bindparam("log_ids", expanding=True)
_DELETE_LOGS = delete(Log).where(Log.id.in_(_IDS))
_DELETE_CHUNKS = delete(LogChunk).where(LogChunk.log_id.in_(_IDS))
# Both statements on a long log start after what was removed before: the databases keep deleted
# entries for a while, and PostgreSQL reads the whole table if it expects to find many rows.
_AFTER = (LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
_NEXT_CHUNKS = (
    select(LogChunk.last).where(*_AFTER).order_by(LogChunk.last).limit(bindparam("limit"))
)
_LAST_OF_NEXT = select(func.max(_NEXT_CHUNKS.subquery().c.last))
_DELETE_NEXT = delete(LogChunk).where(*_AFTER, LogChunk.last <= bindparam("last"))


def sweep(seconds: float = CHORE_SECONDS) -> bool:
    """Remove the lines of logs that were dropped a minute ago, for at most `seconds`.

    Returns whether there may be more.
    """
    return in_batches(_Sweep().next_batch, seconds)


class _Sweep:
    """One pass over the dropped logs, the oldest first."""

    def __init__(self) -> None:
        self._size = BatchSize(most=MAX_CHUNKS)
        self._logs: Sequence[AnyRow] = ()
        # The last chunk that was removed of the first of these logs.
        self._after = 0

    def next_batch(self) -> bool:
        """Remove some logs, or some chunks of a long one; returns whether there may be more."""
        if not self._logs:
            with reading() as connection:
                self._logs = connection.execute(_DROPPED).all()
        if not self._logs:
            return False
        with transaction() as connection:
            began = time.monotonic()
            is_long = self._after or self._logs[0].chunks > self._size.rows
            rows = self._shorten_first(connection) if is_long else self._remove_some(connection)
        self._size.adapt(rows, time.monotonic() - began)
        return True

    def _remove_some(self, connection: Connection) -> int:
        """Remove the first logs that have few chunks together; returns how many rows those were."""
        totals = accumulate(log.chunks + 1 for log in self._logs)
        count = max(1, sum(total <= self._size.rows for total in totals))
        log_ids = {"log_ids": [log.id for log in self._logs[:count]]}
        self._logs = self._logs[count:]
        chunks = connection.execute(_DELETE_CHUNKS, log_ids).rowcount
        return chunks + connection.execute(_DELETE_LOGS, log_ids).rowcount

    def _shorten_first(self, connection: Connection) -> int:
        """Remove chunks of the first log, and at last the log itself; returns how many rows."""
        log_id, limit = self._logs[0].id, self._size.rows
        here = {"log_id": log_id, "after": self._after}
        last = connection.scalar(_LAST_OF_NEXT, {**here, "limit": limit})
        if last is None:
            connection.execute(_DELETE_LOGS, {"log_ids": [log_id]})
            self._logs, self._after = self._logs[1:], 0
            return 1
        self._after = last
        return connection.execute(_DELETE_NEXT, {**here, "last": last}).rowcount
