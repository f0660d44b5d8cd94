"""The threads that run the application."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread


class ThreadPool:
    """Threads that run the `jobs`; a thread ends when its job returns False."""

    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        for _ in range(size):
            self._start_thread()

    def add_thread(self) -> bool:
        """Start one more thread; False when the machine refuses it, which may be temporary."""
        try:
            self._start_thread()
        except RuntimeError:
            return False
        return True

    def _start_thread(self) -> None:
        # A daemon: a request that never ends must not keep the process from ending.
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self.jobs.get()():
            pass
