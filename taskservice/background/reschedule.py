"""Makes deliveries due now that are too far in the future because the clock was set back."""

from sqlalchemy import bindparam, select, update

from taskservice import resources
from taskservice.background.batches import in_batches
from taskservice.database.models import Delivery
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now
from taskservice.database.watcher import Watcher
from taskservice.services.deliveries import is_pending, is_too_far

# Deliveries in one transaction.
BATCH = 200
_TOO_FAR = select(Delivery.id).where(is_too_far)
_MAKE_DUE = (
    update(Delivery)
    .where(Delivery.id.in_(bindparam("ids", expanding=True)), is_pending)
    .values(next_attempt_at=database_now())
)


def reschedule_far_deliveries() -> None:
    """Make deliveries due that are scheduled further ahead than any retry can be."""
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
