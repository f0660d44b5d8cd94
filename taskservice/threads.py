"""Starts threads where the system may have no more threads, or too little memory."""

from collections.abc import Callable
from threading import Thread


def start_thread(name: str, run: Callable[[], object]) -> Thread:
    """Call `run` in a new daemon thread; raises RuntimeError when no thread can be started.

    A lack of memory can also end a thread later, at any time: check `is_alive`.
    """
    try:
        thread = Thread(target=run, name=name, daemon=True)
        thread.start()
    except MemoryError as error:
        raise RuntimeError("no memory for a thread") from error
    return thread
