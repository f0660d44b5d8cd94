"""Notices what any process writes to the database, and wakes whoever waits for it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from flask import Flask
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from taskservice import resources
from taskservice.database.engine import Database
from taskservice.resources import Slots

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 0.05
# For loops, which would find out by themselves, if later.
SLOW_LOOK_SECONDS = 1.0
# How long after a look that failed.
PAUSE_SECONDS = 5.0
# How often those who wait look whether somebody still wants them to.
TURN_SECONDS = 1.0

# What one cheap look sees: the same as before exactly if nothing has been committed since.
LOOKS = {"sqlite": "PRAGMA data_version", "postgresql": "SELECT pg_current_snapshot()::text"}


class Watcher:
    """Looks at the database many times a second, in one thread, while anybody is `watching`.

    To miss nothing: read `changes`, then the database, then `wait` for more changes.
    While all who watch are patient, a look each second has to do.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._watching = self._patient = 0
        self._thread: threading.Thread | None = None
        # How many looks have found something new.
        self.changes = 0
        resources.on_stop(self.wake)

    @contextmanager
    def watching(self, *, patient: bool = False) -> Iterator[None]:
        with self._changed:
            self._watching += 1
            self._patient += patient
            # The watcher may be at a long pause.
            self._changed.notify_all()
            self._start_thread()
        try:
            yield
        finally:
            with self._changed:
                self._watching -= 1
                self._patient -= patient

    def wait(self, since: int, seconds: float) -> None:
        """Return when `changes` is no longer `since`, the time is over, or the process stops."""
        with self._changed:
            self._start_thread()
            self._changed.wait_for(
                lambda: self.changes != since or resources.stopping.is_set(), max(0.0, seconds)
            )

    def _start_thread(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
            # Without it those who wait still look each second, and try to start it again.
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def wake(self) -> None:
        """Wake all who wait, as a change does: for what is not in the database, or in a hurry."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def _watch(self) -> None:
        while self._is_wanted():
            try:
                with self._engine.connect() as connection:
                    # Held for long, it is none of the pool's, and closed at the end.
                    connection.detach()
                    self._watch_by(connection)
            except SQLAlchemyError as error:
                logger.error("Can't watch the database: %s", error)
                # Whoever waits will find the same, and says so to its caller.
                self.wake()
                resources.stopping.wait(PAUSE_SECONDS)

    def _watch_by(self, connection: Connection) -> None:
        look = LOOKS[connection.dialect.name]
        before = None
        while self._is_wanted():
            now = connection.exec_driver_sql(look).scalar()
            # The first look too: who waits may have read before it.
            if now != before:
                before = now
                self.wake()
            self._pause()

    def _pause(self) -> None:
        if not resources.stopping.wait(LOOK_SECONDS):
            with self._changed:
                self._changed.wait_for(self._is_urgent, SLOW_LOOK_SECONDS - LOOK_SECONDS)

    def _is_urgent(self) -> bool:
        return self._watching > self._patient or resources.stopping.is_set()

    def _is_wanted(self) -> bool:
        with self._changed:
            if self._watching and not resources.stopping.is_set():
                return True
            self._thread = None
            return False


class WaitSlots(Slots):
    """Limits the threads that followers and waits hold, so that ordinary requests stay fast."""


def init_app(app: Flask, threads: int) -> None:
    """Provide the watcher of `app`, and wait slots for half of its `threads`."""
    resources.provide(app, Watcher(resources.find(Database, app).reader))
    resources.provide(app, WaitSlots(threads // 2))


def wait_until(
    look: Callable[[], T],
    is_enough: Callable[[T], bool],
    seconds: float,
    is_wanted: Callable[[], bool],
) -> T:
    """What `look` finds, as soon as that is enough; else what it finds after so many seconds.

    It looks again after each change of the database. It ends early when `is_wanted` says so,
    or when the process stops.
    """
    until = time.monotonic() + seconds
    watcher = resources.find(Watcher)
    with watcher.watching():
        while True:
            since = watcher.changes
            found = look()
            left = until - time.monotonic()
            if is_enough(found) or left <= 0 or resources.stopping.is_set():
                return found
            watcher.wait(since, min(left, TURN_SECONDS))
            # Before the next look, which may take something for a client that has gone.
            if not is_wanted():
                return found
