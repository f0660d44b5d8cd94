"""Tells every stream, wait and loop of this process that it is about to stop."""

import threading
from collections.abc import Callable

# Set once, by `begin`; what holds an answer open or works in the background ends then.
event = threading.Event()
_callbacks: list[Callable[[], None]] = []


def on_stop(callback: Callable[[], None]) -> None:
    """Has `callback` called when the process is about to stop, at once if it already is.

    It runs between the signal and the stop, so it must be quick: notify, don't work.
    """
    _callbacks.append(callback)
    if event.is_set():
        callback()


def begin() -> None:
    """Sets `event` and makes the calls.

    Not for a signal handler: one that interrupted this very call would wait for it for ever.
    """
    event.set()
    for callback in _callbacks:
        callback()
