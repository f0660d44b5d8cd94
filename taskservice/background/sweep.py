"""Removes the lines of dropped logs, in small batches."""

from sqlalchemy import delete, func, select

from taskservice.background.batches import CHORE_SECONDS, in_batches
from taskservice.database.models import Log, LogChunk
from taskservice.database.transactions import transaction
from taskservice.database.types import database_now

# Chunks that are removed in one transaction, few enough not to delay writers noticeably.
SWEEP_CHUNKS = 100
# The answer to a deletion may still be streaming the log that it dropped.
SWEEP_AFTER_SECONDS = 60
_SWEEPABLE = (
    select(Log.id)
    .where(Log.dropped_at < database_now(-SWEEP_AFTER_SECONDS))
    .order_by(Log.dropped_at)
    .limit(1)
)


def sweep(seconds: float = CHORE_SECONDS) -> None:
    """Remove the lines of logs that were dropped a minute ago, for at most `seconds`."""
    in_batches(_sweep_batch, seconds)


def _sweep_batch() -> bool:
    with transaction() as connection:
        log_id = connection.scalar(_SWEEPABLE)
        if log_id is None:
            return False
        batch = (
            select(LogChunk.last)
            .where(LogChunk.log_id == log_id)
            .order_by(LogChunk.last)
            .limit(SWEEP_CHUNKS)
        )
        until = connection.scalar(select(func.max(batch.subquery().c.last)))
        if until is None:
            connection.execute(delete(Log).where(Log.id == log_id))
        else:
            connection.execute(
                delete(LogChunk).where(LogChunk.log_id == log_id, LogChunk.last <= until)
            )
    return True
