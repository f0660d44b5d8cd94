"""The threads that run the application."""

import logging
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from taskservice.threads import start_thread

logger = logging.getLogger(__name__)


class ThreadPool:
    """Threads that run the `jobs`; a thread ends when its job returns False."""

    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        for _ in range(size):
            self._start_thread()

    def add_thread(self) -> bool:
        """Start one more thread; False when no thread can be started, which may be temporary."""
        try:
            self._start_thread()
        except RuntimeError:
            return False
        return True

    def _start_thread(self) -> None:
        # A daemon: a request that never ends must not keep the process from ending.
        start_thread("pool", self._run)

    def _run(self) -> None:
        while self._is_wanted_after_job():
            pass

    def _is_wanted_after_job(self) -> bool:
        try:
            return self.jobs.get()()
        except BaseException:
            # Without memory even this may fail; the pool must lose no thread to it.
            with suppress(BaseException):
                logger.exception("A job failed")
            return True
