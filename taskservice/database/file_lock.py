"""A lock between processes, with a limit to the wait for it."""

import fcntl
import os
import threading
from functools import partial

from taskservice.threads import start_thread

TOO_LATE = "other writers took too long"


class FileLock:
    """A lock between processes, which the kernel releases when its holder is killed.

    Each holder opens a new descriptor and closes it to release the lock: with a shared one, a
    waiter that timed out could release the lock of another thread. Within a process only one
    thread at a time may call `acquire`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._is_awaited = self._is_wanted = False
        self._waiter: threading.Thread | None = None
        self._granted: int | None = None

    def acquire(self, seconds: float) -> int:
        """Return the descriptor that holds the lock, within `seconds`.

        Raises OSError (TimeoutError among them), and RuntimeError when no thread can be started.
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
        # flock has no timeout, so a separate thread waits; after a timeout it keeps waiting, for
        # the next caller.
        with self._changed:
            # A lack of memory may have ended the thread.
            if self._is_awaited and self._waiter is not None and self._waiter.is_alive():
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
            self._waiter = start_thread("writer turn", partial(self._wait, file))
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
