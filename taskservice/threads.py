"""Starts threads where the system may have no more threads, or too little memory."""

from collections.abc import Callable
from threading import Event, Lock, Thread

# A thread that has not begun to run after this time is abandoned.
BEGIN_SECONDS = 5.0


def start_thread(name: str, run: Callable[[], object]) -> Thread:
    """Call `run` in a new daemon thread; raises RuntimeError when no thread can be started.

    A lack of memory can also end a thread later, at any moment: check `is_alive`.
    """
    try:
        thread = _BoundedStart(target=run, name=name, daemon=True)
        thread.start()
    except MemoryError as error:
        raise RuntimeError("no memory for a thread") from error
    return thread


def try_start(thread: Thread) -> bool:
    """Start a thread; false if no more threads can be started."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


class _StartedEvent(Event):
    """The event that `Thread.start` waits for, with a time limit."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(BEGIN_SECONDS if timeout is None else timeout)


class _BoundedStart(Thread):
    """A thread whose `start` returns even if the thread ends before it has begun.

    Python's own `start` would then wait for ever.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._started = _StartedEvent()
        # Taken by the thread when it begins, or by `start` when it abandons the thread.
        self._turn = Lock()

    def start(self) -> None:
        super().start()
        if not self._started.is_set() and self._turn.acquire(blocking=False):
            raise RuntimeError("a new thread did not begin")

    def run(self) -> None:
        if self._turn.acquire(blocking=False):
            super().run()
