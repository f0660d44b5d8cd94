"""Brings the index for parts of names up to date."""

from taskservice.background.batches import CHORE_SECONDS, in_batches
from taskservice.database import name_index
from taskservice.database.transactions import reading, transaction


def index_names(seconds: float = CHORE_SECONDS) -> bool:
    """Add the names of new tasks, and remove those of deleted ones, for at most `seconds`.

    Returns whether more may be left.
    """
    return in_batches(_index_batch, seconds)


def _index_batch() -> bool:
    with reading() as connection:
        is_behind = name_index.is_behind(connection)
    if is_behind:
        with transaction() as connection:
            name_index.update(connection)
    return is_behind
