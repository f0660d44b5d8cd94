"""Lets the writers of one SQLite file in one at a time, in about the order they came."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError


class WriterQueue:
    """The queue of all threads and processes that want to write to one SQLite file.

    SQLite itself makes a waiting writer sleep and look again, and the unlucky one
    sleeps on while others pass (2 s were seen). Here threads wait for a lock and
    processes for a file lock, both of which the kernel hands on at once.
    """

    def __init__(self, path: str) -> None:
        self._threads = threading.Lock()
        self._processes = FileLock(path)

    @classmethod
    def of(cls, address: URL) -> "WriterQueue":
        """The queue of the SQLite file at this address."""
        return cls(f"{address.database}-writers")

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """Hold the right to write; raises OperationalError when it does not come in time."""
        until = time.monotonic() + seconds
        if not self._threads.acquire(timeout=seconds):
            raise _too_late()
        try:
            if not self._processes.acquire(until - time.monotonic()):
                raise _too_late()
            try:
                yield
            finally:
                self._processes.release()
        finally:
            self._threads.release()

    def close(self) -> None:
        """Nobody may be in the queue any more."""
        self._processes.close()


class FileLock:
    """A lock between processes, which goes to the next one also when its holder was killed.

    Within a process one thread at a time may ask for it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._changed = threading.Condition()
        self._is_awaited = self._is_wanted = self._is_granted = False

    def acquire(self, seconds: float) -> bool:
        """Whether it is ours, at once or within so many seconds. Raises OSError."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._await(self._file, seconds)
        return True

    def release(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        # A thread that still waits would use its number, which may then be another file's.
        if self._file is not None and not self._is_awaited:
            os.close(self._file)
            self._file = None

    def _await(self, file: int, seconds: float) -> bool:
        # The kernel knows no limit for this wait (its holder may be stopped), so that a
        # thread of its own does it, and goes on for whoever comes next.
        with self._changed:
            self._is_wanted = True
            if not self._is_awaited:
                threading.Thread(target=self._wait, args=[file], daemon=True).start()
                self._is_awaited = True
            is_granted = self._changed.wait_for(lambda: self._is_granted, seconds)
            self._is_wanted = self._is_granted = False
        return is_granted

    def _wait(self, file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
        with self._changed:
            self._is_awaited = False
            self._is_granted = self._is_wanted
            if not self._is_wanted:
                fcntl.flock(file, fcntl.LOCK_UN)
            self._changed.notify_all()


def _too_late() -> OperationalError:
    return OperationalError("BEGIN IMMEDIATE", None, TimeoutError("other writers took too long"))
