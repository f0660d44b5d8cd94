"""Lets writers of an SQLite file take turns, and lets waiting writers share a commit."""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from taskservice.database.connections import KeptConnections
from taskservice.database.files import lock

# Limits of a group of writers, since the first writer waits until the last writer has written.
MAX_GROUP = 32
MAX_GROUP_SECONDS = 0.02
# After the writer at the head of the queue has waited this many seconds for other processes, the
# database counts as locked by another process, and at most half of the threads may wait to write.
BLOCKED_SECONDS = 0.5


class WriterQueue:
    """The queue of all threads and processes that write to an SQLite file.

    SQLite's own lock has no queue: a writer that waits for this lock sleeps and retries, and other
    writers can overtake it for seconds. Instead, the threads of a process wait for a Python lock,
    and the process that writes holds a lock on a file. A commit takes most of the time of a write.
    Therefore, a writer leaves its transaction open for a writer that already waits; the last writer
    commits for all of them, and each writer receives the outcome of the commit.

    While another process locks the database, at most half of the `threads` of this process wait to
    write, so that the other threads can read.
    """

    def __init__(self, database: str | None, threads: int = 16) -> None:
        self._path = f"{database}-writers"
        self._threads = threading.Lock()
        # Guards the next two attributes.
        self._lock = threading.Lock()
        self._waiting = 0
        self._left_open: _Group | None = None
        # The time at which the thread that has the turn began to wait for other processes; infinity
        # if it does not wait.
        self._attempt_began = math.inf
        self._blocked = threading.Semaphore(max(1, threads // 2))

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """Hold the turn to write; raises OperationalError if the wait exceeds `seconds`."""
        until = time.monotonic() + seconds
        group = self._acquire(seconds)
        try:
            if group:
                group.end()
            with self._attempt():
                descriptor = self._hold(until)
            try:
                yield
            finally:
                os.close(descriptor)
        finally:
            self._threads.release()

    @contextmanager
    def transaction(self, connections: KeptConnections, seconds: float) -> Iterator[Connection]:
        """A connection in a write transaction; raises OperationalError like `turn`."""
        until = time.monotonic() + seconds
        group = self._acquire(seconds)
        try:
            if group is None:
                with self._attempt():
                    group = _Group(connections, self._hold(until), until)
        except BaseException:
            self._threads.release()
            raise
        try:
            with group.part() as connection:
                yield connection
        finally:
            self._leave(group)
            group.wait()

    def _acquire(self, seconds: float) -> "_Group | None":
        """Wait for this thread's turn; returns the group that the previous thread left open."""
        with self._lock:
            self._waiting += 1
        has_turn = self._await_turn(seconds)
        with self._lock:
            self._waiting -= 1
            # The previous writer may have left its group open for this thread.
            if not has_turn and not self._threads.acquire(blocking=False):
                error = TimeoutError("other writers took too long")
                raise OperationalError("BEGIN IMMEDIATE", None, error)
            group, self._left_open = self._left_open, None
            return group

    def _await_turn(self, seconds: float) -> bool:
        """Wait for this thread's turn; returns false early if too many threads wait."""
        if not self._is_blocked():
            soon = min(seconds, 2 * BLOCKED_SECONDS)
            if self._threads.acquire(timeout=soon):
                return True
            seconds -= soon
        if not self._is_blocked():
            return self._threads.acquire(timeout=seconds)
        if not self._blocked.acquire(blocking=False):
            return False
        try:
            return self._threads.acquire(timeout=seconds)
        finally:
            self._blocked.release()

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Measures how long the thread that has the turn waits until it can write."""
        self._attempt_began = time.monotonic()
        try:
            yield
        finally:
            self._attempt_began = math.inf

    def _is_blocked(self) -> bool:
        """Whether another process has locked the database for more than BLOCKED_SECONDS."""
        return time.monotonic() - self._attempt_began > BLOCKED_SECONDS

    def _leave(self, group: "_Group") -> None:
        with self._lock:
            if self._waiting and group.has_room():
                self._left_open = group
                self._threads.release()
                return
        try:
            group.end()
        finally:
            self._threads.release()

    def _hold(self, until: float) -> int:
        try:
            return lock(self._path, until - time.monotonic(), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise OperationalError("BEGIN IMMEDIATE", None, error) from None


class _Group:
    """A transaction that several writers use in turn, while the process holds the file lock."""

    def __init__(self, connections: KeptConnections, held: int, until: float) -> None:
        self._connections, self._held = connections, held
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._is_sound = True
        self._parts = 0
        self._until = time.monotonic() + MAX_GROUP_SECONDS
        with ExitStack() as undo:
            undo.callback(os.close, held)
            self._connection = connections.acquire()
            undo.callback(self._connection.close)
            driver: Any = self._connection.connection.driver_connection
            self._driver = driver
            # The wait for SQLite's lock ends at the same deadline as the wait for the turn.
            milliseconds = max(0, int((until - time.monotonic()) * 1000))
            driver.execute(f"PRAGMA busy_timeout = {milliseconds}")
            self._connection.begin()
            undo.pop_all()

    def has_room(self) -> bool:
        """Whether another writer may join the group."""
        has_time = self._parts < MAX_GROUP and time.monotonic() < self._until
        return has_time and self._is_sound and self._is_in_transaction()

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """The connection for one writer; an error undoes only the writes of this writer."""
        self._parts += 1
        if self._parts > 1:
            with self._connection.begin_nested():
                yield self._connection
            return
        try:
            yield self._connection
        except BaseException:
            self._is_sound = False
            raise

    def end(self) -> None:
        """Commit, and report the outcome to all writers."""
        try:
            try:
                if self._is_sound:
                    self._commit()
            finally:
                self._connections.release(self._connection)
            # Raises an error if the database files were replaced: the commit went to the old files,
            # which the next start does not open.
            self._connections.is_usable(self._driver)
        except BaseException as error:
            self._error = error
        finally:
            os.close(self._held)
            self._ended.set()

    def _commit(self) -> None:
        # SQLite itself rolls back a transaction if, for example, the disk is full.
        if not self._is_in_transaction():
            raise OperationalError("COMMIT", None, RuntimeError("SQLite has rolled back"))
        try:
            self._connection.commit()
        except BaseException:
            # After a failed commit, the connection may still be in the transaction.
            self._connection.invalidate()
            raise

    def _is_in_transaction(self) -> bool:
        return not self._connection.invalidated and self._driver.in_transaction

    def wait(self) -> None:
        """Wait for the commit of the group; raises OperationalError if it failed."""
        self._ended.wait()
        if self._error is not None:
            # Each writer raises a separate error object, since the writers are in different
            # threads.
            cause = getattr(self._error, "orig", None) or self._error
            raise OperationalError("COMMIT", None, cause) from self._error
