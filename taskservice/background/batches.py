"""Much work in small transactions, with room for other writers between them."""

import time
from collections.abc import Callable

from taskservice import resources

# A transaction that removes many rows stops after so many seconds: whoever waits to write
# waits that long, and for the disk.
BATCH_SECONDS = 0.03
# What one chore may take of a round, so that the others get their turn and the next round
# comes in time: six times it is worked in batches.
CHORE_SECONDS = 2.5


def in_batches(batch: Callable[[], bool], seconds: float = CHORE_SECONDS) -> None:
    """Call `batch`, a short transaction, until it returns False: that nothing is left.

    After each it rests as long as that took, so that writers wait for one at most. It ends
    early after so many seconds, or when the process is about to stop.
    """
    until = time.monotonic() + seconds
    began = time.monotonic()
    while batch() and time.monotonic() < until:
        if resources.stopping.wait(time.monotonic() - began):
            break
        began = time.monotonic()
