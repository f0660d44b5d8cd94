"""Detects writes of any process to the database, and wakes the threads that wait for changes."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter

from flask import Flask
from sqlalchemy import Connection, Engine

from taskservice import resources
from taskservice.database.engine import Database

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
# Added to POLL_SECONDS for each watching thread, since all of these threads read the database after
# a change, which delays other requests.
POLL_SECONDS_EACH = 0.001
# The pause after a failed poll.
PAUSE_SECONDS = 5.0

# A cheap query for each database; its result changes with each commit.
CHANGE_QUERIES = {
    "sqlite": "PRAGMA data_version",
    "postgresql": "SELECT pg_current_snapshot()::text",
}


class Watcher:
    """Polls the database up to 20 times a second, in one thread, while any thread is `watching`.

    To miss no change, a thread reads `changes`, then reads the database, and then calls `wait`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._watching = 0
        self._thread: threading.Thread | None = None
        # Incremented to wake the waiting threads.
        self.changes = 0
        resources.on_stop(self.wake)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self._changed:
            if self._thread is None:
                self._thread = resources.start_thread("watcher", self._watch)
            self._watching += 1
        try:
            yield
        finally:
            with self._changed:
                self._watching -= 1

    def wait(self, since: int, seconds: float) -> None:
        """Wait until `changes` is not `since`, `seconds` have passed, or the process stops."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.changes != since or resources.stopping.is_set(), max(0.0, seconds)
            )

    def wake(self) -> None:
        """Wake all waiting threads as if the database had changed."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def _watch(self) -> None:
        while self._is_wanted():
            try:
                with self._engine.connect() as connection:
                    # Remove the connection from the pool, since this thread uses it for a long
                    # time.
                    connection.detach()
                    self._poll(connection)
            except Exception as error:
                logger.error("Can't watch the database: %s", error)
                # Wake the waiting threads, which then read the database and report the same error.
                self.wake()
                resources.stopping.wait(PAUSE_SECONDS)

    def _poll(self, connection: Connection) -> None:
        query = CHANGE_QUERIES[connection.dialect.name]
        before = None
        while self._is_wanted():
            now = connection.exec_driver_sql(query).scalar()
            # The first poll counts as a change, since the database may have changed after a thread
            # read it and before this poll.
            if now != before:
                before = now
                self.wake()
            resources.stopping.wait(POLL_SECONDS + self._watching * POLL_SECONDS_EACH)

    def _is_wanted(self) -> bool:
        with self._changed:
            if self._watching and not resources.stopping.is_set():
                return True
            self._thread = None
            return False


@dataclass(eq=False)
class WaitSlot:
    """A slot for a stream or a wait; `is_over` is true once another request has taken it."""

    user_id: str
    is_stream: bool = False
    # The ID of the link that the request uses; empty if the request uses a key.
    link_id: str = ""
    is_over: bool = False


class WaitSlots:
    """Limits the number of threads for streams and waits.

    A wait is a request that waits for a change. A user can hold all slots while no other user needs
    a slot. If no slot is free, a user with fewer slots takes a slot from the user with the most
    slots. A stream can also take a slot from a wait of the same user, since a client simply repeats
    a wait that ends early. The oldest wait loses its slot, or the oldest stream if there is no
    wait; `wake` then notifies the thread that has lost the slot. Viewers of links hold at most a
    quarter of the slots, but at least one slot. The same rules divide these slots, first among
    users and then among the links of each user. Viewers of links take no slots from requests with
    keys.
    """

    def __init__(self, count: int, wake: Callable[[], None]) -> None:
        self._count, self._wake = count, wake
        self._lock = threading.Lock()
        # The slots in the order in which they were acquired.
        self._held: list[WaitSlot] = []

    def acquire(self, slot: WaitSlot) -> bool:
        """Acquire a slot, and hold it until `release`. Returns false if no slot is available."""
        with self._lock:
            has_room = len(self._held) < self._count
            if slot.link_id:
                viewers = [held for held in self._held if held.link_id]
                has_room = has_room and len(viewers) < max(1, self._count // 4)
                has_room = has_room or self._take_another(slot, viewers)
            elif not has_room:
                has_room = self._take_another(slot, self._held)
            if has_room:
                self._held.append(slot)
            return has_room

    def release(self, slot: WaitSlot) -> None:
        with self._lock:
            if not slot.is_over:
                self._held.remove(slot)

    def _take_another(self, new_slot: WaitSlot, slots: Sequence[WaitSlot]) -> bool:
        of_user = [slot for slot in slots if slot.user_id == new_slot.user_id]
        losers = _of_most(slots, attrgetter("user_id"), new_slot)
        if not losers and new_slot.link_id:
            losers = _of_most(of_user, attrgetter("link_id"), new_slot)
        elif not losers and new_slot.is_stream:
            losers = [slot for slot in of_user if not slot.is_stream]
        if not losers:
            return False
        # Take the slot of a wait if there is one, otherwise the slot of a stream. Of several waits
        # or streams, `min` returns the first, which is the oldest.
        given_up = min(losers, key=attrgetter("is_stream"))
        self._held.remove(given_up)
        given_up.is_over = True
        self._wake()
        return True


def _of_most(
    slots: Sequence[WaitSlot], owner: Callable[[WaitSlot], str], new_slot: WaitSlot
) -> list[WaitSlot]:
    """The slots of the owner with the most slots.

    Empty if the owner of `new_slot` has almost as many.
    """
    counts = Counter(map(owner, slots))
    most = max(counts.values(), default=0)
    # With a difference of only one slot, two owners would repeatedly take it from each other.
    if most <= counts[owner(new_slot)] + 1:
        return []
    return [slot for slot in slots if counts[owner(slot)] == most]


def init_app(app: Flask, waits: int) -> None:
    """Provide the watcher of `app`, and `waits` slots for streams and waits."""
    watcher = Watcher(resources.find(Database, app).reads.engine)
    resources.provide(app, watcher)
    resources.provide(app, WaitSlots(waits, watcher.wake))
