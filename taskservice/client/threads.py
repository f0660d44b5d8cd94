"""Starts a thread where the system may have no more of them."""

import threading


def try_start(thread: threading.Thread) -> bool:
    """Start a thread; false if no more threads can be started."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
