"""Starts a thread, unless the system can start no more."""

import threading


def try_start(thread: threading.Thread) -> bool:
    """Start a thread; false if no more threads can be started."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
