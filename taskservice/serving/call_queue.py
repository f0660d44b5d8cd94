"""Calls that other threads and signal handlers pass to the worker's loop."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue


class CallQueue:
    """Calls for the loop to run; its file descriptor is readable while there are any."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._is_awake = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def fileno(self) -> int:
        return self._wake_read

    def put(self, call: Callable[..., object], *arguments: object) -> None:
        """Safe in a signal handler too: nothing here takes a lock of Python's."""
        self._calls.put(partial(call, *arguments))
        # One byte is enough for all calls that arrive before the loop reads it.
        if not self._is_awake:
            self._is_awake = True
            os.write(self._wake_write, b"!")

    def run_all(self, _file: object = None) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 64)
        # Before the queue is read: a call that is put from here on writes another byte.
        self._is_awake = False
        with suppress(Empty):
            while True:
                self._calls.get_nowait()()
