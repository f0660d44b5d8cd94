"""Sends the remaining lines when the program ends, in child processes too."""

import atexit
import os
import sys
import time
from typing import Protocol

# How long a program that ends waits for its last lines to be sent.
EXIT_SECONDS = 5.0


class HasUnsentLines(Protocol):
    """The outbox of a task."""

    def is_sent(self) -> bool:
        """Whether none of its lines is still to be sent."""

    def send_rest(self, until: float) -> None:
        """Send its lines, at most until this time of the monotonic clock."""

    def reset(self) -> None:
        """Forget the lines and the thread: after a fork they are the parent's."""


_outboxes: set[HasUnsentLines] = set()
_registered_processes: set[int] = set()
_is_over = False


def is_over() -> bool:
    """Whether the program ends, and the lines that waited were sent.

    The exit handlers of others may still log lines. These must be sent at once, and without a
    new thread, which Python 3.12 and later refuse to start then.
    """
    return _is_over


def add(outbox: HasUnsentLines) -> None:
    """Keep this outbox until its lines are sent, even if the program no longer does."""
    _outboxes.difference_update([each for each in list(_outboxes) if each.is_sent()])
    _outboxes.add(outbox)
    _register_in_child()


def remove(outbox: HasUnsentLines) -> None:
    _outboxes.discard(outbox)


def _register_in_child() -> None:
    """Children of multiprocessing run its own exit handlers only, not those of atexit."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and os.getpid() not in _registered_processes:
        _registered_processes.add(os.getpid())
        util.Finalize(None, _send_all, exitpriority=10)


def _send_all() -> None:
    global _is_over
    _is_over = True
    until = time.monotonic() + EXIT_SECONDS
    for outbox in list(_outboxes):
        outbox.send_rest(until)


def _reset_after_fork() -> None:
    global _is_over
    _is_over = False
    for outbox in list(_outboxes):
        outbox.reset()
    _outboxes.clear()


atexit.register(_send_all)
os.register_at_fork(after_in_child=_reset_after_fork)
