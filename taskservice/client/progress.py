"""Sends how far a task is: the newest state, at most once a second, in a thread."""

import time
from collections.abc import Callable, Mapping
from threading import Lock, Timer
from typing import Any

from taskservice.client.errors import RETRYABLE, TaskServiceError
from taskservice.client.log_text import cut_note
from taskservice.threads import try_start

INTERVAL = 1.0

Send = Callable[[Mapping[str, Any]], None]


def changes(done: float, total: float, unit: str, note: str | None) -> dict[str, Any]:
    """What a report says of it. Raises ValueError for numbers that are no part of a whole."""
    if not 0 <= done <= total or not 0 < total < float("inf"):
        raise ValueError(f"progress must be from 0 to its total, not {done} of {total}")
    if note is None and (unit or total != 1):
        note = f"{done:,} of {total:,} {unit}".rstrip()
    said = {} if note is None else {"note": cut_note(note)}
    return {"progress": done / total} | said


class ProgressSender:
    """Sends the progress of one task; the program never waits for it."""

    def __init__(self) -> None:
        self._unsent: dict[str, Any] = {}
        self._timer: Timer | None = None
        self._sent_at = -INTERVAL
        self._lock = Lock()
        # Held while something is sent, so that nothing older arrives later.
        self._sending = Lock()

    def put(self, progress: Mapping[str, Any], send: Send) -> None:
        """Send this soon, unless something newer comes."""
        with self._lock:
            self._unsent |= progress
            if self._timer is None:
                pause = max(self._sent_at + INTERVAL - time.monotonic(), 0)
                timer = Timer(pause, self._send_unsent, [send])
                timer.daemon = True
                # If no thread can be started, it is sent with the end of the task.
                self._timer = timer if try_start(timer) else None

    def take(self) -> dict[str, Any]:
        """What is still to be sent, for the caller to send."""
        with self._sending, self._lock:
            taken, self._unsent = self._unsent, {}
            return taken

    def _send_unsent(self, send: Send) -> None:
        with self._sending:
            with self._lock:
                taken, self._unsent = self._unsent, {}
                self._timer, self._sent_at = None, time.monotonic()
            if taken:
                self._try_to_send(taken, send)

    def _try_to_send(self, taken: dict[str, Any], send: Send) -> None:
        try:
            send(taken)
        except RETRYABLE:
            with self._lock:
                self._unsent = taken | self._unsent
            self.put({}, send)
        except TaskServiceError:
            return  # the task's own methods raise it too
