"""Makes due the deliveries that a jump of the clock has left too far ahead."""

from sqlalchemy import (
    bindparam,
    select,
    update,
)

from taskservice import resources
from taskservice.background.batches import in_batches
from taskservice.database.models import Delivery
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from taskservice.database.watcher import Watcher
from taskservice.queries.deliveries import is_pending, is_too_far

# How many are made due in one transaction, after the clock was set back.
BATCH = 200
_TOO_FAR = select(Delivery.id).where(is_too_far)
_MAKE_DUE = (
    update(Delivery)
    .where(Delivery.id.in_(bindparam("ids", expanding=True)), is_pending)
    .values(next_attempt_at=database_now())
)


def reschedule_far_deliveries() -> None:
    """Make due what is scheduled further away than any delay, since the clock was set back."""
    with reading() as connection:
        if connection.scalar(_TOO_FAR) is None:
            return
    in_batches(_reschedule_batch)
    resources.find(Watcher).wake()


def _reschedule_batch() -> bool:
    with transaction() as connection:
        ids = connection.scalars(_TOO_FAR.limit(BATCH).with_for_update(skip_locked=True)).all()
        connection.execute(_MAKE_DUE, {"ids": ids})
    return len(ids) == BATCH
