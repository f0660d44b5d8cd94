"""Runs long work in short transactions, with pauses for other writers."""

import time
from collections.abc import Callable

from taskservice import resources
from taskservice.database.transactions import has_writer_queue

# The length of a transaction that removes many rows. Other writers wait for it.
BATCH_SECONDS = 0.03
# The time of one call in a round. A round of 20 s has eight calls.
CHORE_SECONDS = 1.9


# The pause after a batch, as a part of its time, where writers do not take turns.
POSTGRESQL_PAUSE = 0.25


class BatchSize:
    """How many rows or pages a batch takes to last about BATCH_SECONDS, learnt from the last one.

    A row of a large database on a slow disk takes a hundred times as long as of a small one.
    """

    def __init__(self, most: int) -> None:
        self.rows = 20
        self._most = most

    def adapt(self, rows: int, seconds: float) -> None:
        """Learn from the last batch: its number of rows, and its time including the commit."""
        if seconds > BATCH_SECONDS:
            self.rows = max(1, int(rows * BATCH_SECONDS / seconds))
        elif 2 * rows > self.rows and seconds < BATCH_SECONDS / 2:
            self.rows = min(2 * rows, self._most)


def in_batches(batch: Callable[[], bool], seconds: float = CHORE_SECONDS) -> bool:
    """Call `batch`, a short transaction, until it returns False because nothing is left.

    After each batch it pauses for as long as the batch took, so that writers wait for one batch
    at most; on PostgreSQL, where they do not wait for it, for a part of that. It ends early after
    `seconds`, or when the process begins to stop; returns whether it did, so that more may be left.
    """
    until = time.monotonic() + seconds
    pause = 1.0 if has_writer_queue() else POSTGRESQL_PAUSE
    began = time.monotonic()
    while batch():
        took = time.monotonic() - began
        if time.monotonic() > until or resources.stopping.wait(pause * took):
            return True
        began = time.monotonic()
    return False
