"""Threads of a process, and what they share: objects by their class, slots, the signal to stop."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock, Thread
from typing import TypeVar

from flask import Flask, current_app

T = TypeVar("T")

EXTENSION = "taskservice"
# In the WSGI environ, if the server has a thread pool: a function that starts a thread in place of
# this request's thread until its response is sent.
REPLACE_THREAD = "taskservice.replace_thread"


def provide(app: Flask, resource: object) -> None:
    """Let `find` return `resource` for its class in `app`."""
    app.extensions.setdefault(EXTENSION, {})[type(resource)] = resource


def find(kind: type[T], app: Flask | None = None) -> T:
    """The resource of exactly this class in `app`, by default the current app."""
    resource: T = (app or current_app).extensions[EXTENSION][kind]
    return resource


class Slots:
    """Limits how many threads do something at a time."""

    def __init__(self, count: int) -> None:
        self._free = BoundedSemaphore(count)

    @contextmanager
    def acquire(self, seconds: float = 0.0) -> Iterator[bool]:
        """Hold a slot during the block; False when none becomes free within `seconds`."""
        is_acquired = self._free.acquire(timeout=seconds)
        try:
            yield is_acquired
        finally:
            if is_acquired:
                self._free.release()


class SharedSlots:
    """Limits how many threads do something at a time; the last slot is for a user without one."""

    def __init__(self, count: int) -> None:
        self._lock = Lock()
        self._free = count
        self._held: Counter[str] = Counter()

    @contextmanager
    def acquire(self, user_id: str) -> Iterator[bool]:
        """Hold a slot for this user during the block; False when none is free."""
        with self._lock:
            is_acquired = self._free > (user_id in self._held)
            if is_acquired:
                self._free -= 1
                self._held[user_id] += 1
        try:
            yield is_acquired
        finally:
            if is_acquired:
                with self._lock:
                    self._free += 1
                    # Subtracting drops a user whose count falls to 0.
                    self._held -= Counter([user_id])


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


# Set once, by `begin_stop`; streams, long polls and background loops end then.
stopping = threading.Event()
_callbacks: list[Callable[[], None]] = []


def on_stop(callback: Callable[[], None]) -> None:
    """Call `callback` when the process begins to stop, or now if it already has.

    It delays the stop, so it must be quick.
    """
    _callbacks.append(callback)
    if stopping.is_set():
        callback()


def begin_stop() -> None:
    """Set `stopping` and run the callbacks of `on_stop`.

    Never call it in a signal handler, which may interrupt this very call and then deadlock.
    """
    stopping.set()
    for callback in _callbacks:
        callback()
