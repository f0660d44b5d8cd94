"""Runs long work in short transactions, with pauses for other writers."""

import time
from collections.abc import Callable

from taskservice import resources

# The length of a transaction that removes many rows. Other writers wait for it.
BATCH_SECONDS = 0.03
# The time of one call in a round. A round of 20 s has eight calls.
CHORE_SECONDS = 1.9


def in_batches(batch: Callable[[], bool], seconds: float = CHORE_SECONDS) -> None:
    """Call `batch`, a short transaction, until it returns False because nothing is left.

    After each batch it pauses for as long as the batch took, so that writers wait for one batch
    at most. It ends early after `seconds`, or when the process begins to stop.
    """
    until = time.monotonic() + seconds
    began = time.monotonic()
    while batch() and time.monotonic() < until:
        if resources.stopping.wait(time.monotonic() - began):
            break
        began = time.monotonic()
