"""Lets the writers of one SQLite file in one at a time, in about the order they came."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

TOO_LATE = "other writers took too long"


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
            raise _refused(TimeoutError(TOO_LATE))
        try:
            held = self._hold(until - time.monotonic())
            try:
                yield
            finally:
                os.close(held)
        finally:
            self._threads.release()

    def _hold(self, seconds: float) -> int:
        try:
            return self._processes.acquire(seconds)
        except (OSError, RuntimeError) as error:
            raise _refused(error) from None


class FileLock:
    """A lock between processes, which goes to the next one also when its holder was killed.

    Each holder has a descriptor of its own and closes it to release the lock. On a shared one
    a waiter that comes too late would release what another thread has taken meanwhile.
    Within a process one thread at a time may ask for it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._is_awaited = self._is_wanted = False
        self._granted: int | None = None

    def acquire(self, seconds: float) -> int:
        """The descriptor that holds the lock, at once or within this many seconds.

        Raises OSError, of which TimeoutError is one, and RuntimeError when no thread can wait.
        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._await(file, seconds)
        except OSError:
            os.close(file)
            raise
        return file

    def _await(self, file: int, seconds: float) -> int:
        # The kernel knows no limit for this wait (its holder may be stopped), so that a
        # thread of its own does it, and goes on for the next caller.
        with self._changed:
            if self._is_awaited:
                os.close(file)
            else:
                self._start_waiting(file)
            self._is_wanted = True
            self._changed.wait_for(lambda: self._granted is not None, seconds)
            self._is_wanted, granted, self._granted = False, self._granted, None
        if granted is None:
            raise TimeoutError(TOO_LATE)
        return granted

    def _start_waiting(self, file: int) -> None:
        try:
            threading.Thread(target=self._wait, args=[file], daemon=True).start()
        except RuntimeError:
            os.close(file)
            raise
        self._is_awaited = True

    def _wait(self, file: int) -> None:
        is_held = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_held = True
        finally:
            with self._changed:
                self._is_awaited = False
                if is_held and self._is_wanted:
                    self._granted = file
                    self._changed.notify_all()
                else:
                    os.close(file)


def _refused(error: Exception) -> OperationalError:
    return OperationalError("BEGIN IMMEDIATE", None, error)
