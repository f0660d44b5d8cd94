"""The ways between the loop and other threads: a crew that works, and calls that come back."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread


class ThreadPool:
    """Threads that do the `jobs`; one leaves when its job returns False."""

    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[Callable[[], bool]] = SimpleQueue()
        for _ in range(size):
            self._start_thread()

    def hire(self) -> bool:
        """Adds a thread; False if this machine has none left, which may pass."""
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


class Calls:
    """Calls that the loop is asked to make; readable, for its poller, when there are any."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_awake = False
        self._bell, self._button = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._button, False)

    def fileno(self) -> int:
        return self._bell

    def ask(self, call: Callable[..., object], *arguments: object) -> None:
        """Safe in a signal handler too: nothing here takes a lock of Python's."""
        self._calls.put(partial(call, *arguments))
        # One ring is enough for all the calls that come before the loop looks.
        if not self._is_awake:
            self._is_awake = True
            os.write(self._button, b"!")

    def make(self, _bell: object = None) -> None:
        with suppress(BlockingIOError):
            os.read(self._bell, 64)
        # Before looking: what is asked for from here on rings again.
        self._is_awake = False
        with suppress(Empty):
            while True:
                self._calls.get_nowait()()
