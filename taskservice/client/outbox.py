"""Sends the lines, the progress and the final report of a Python program's task, in this order."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from taskservice.client.http import Connection
from taskservice.client.responses import TaskServiceError, Unreachable
from taskservice.client.sender import LineQueue, Sender, as_lines
from taskservice.quantities import plural

logger = logging.getLogger(__name__)

# While this much is waiting in memory, the program waits too.
MAX_BYTES = 16 * 1024 * 1024
# Between two checks for space.
_SPACE_POLL_SECONDS = 0.02

# How long a program waits at its exit for the last lines to be sent; child processes too.
EXIT_SECONDS = 5.0
# How often a program that waits for its sender checks whether to keep waiting.
_POLL_SECONDS = 0.2
# Outboxes with lines that may be unsent, even if the program no longer uses them.
_outboxes: set["Outbox"] = set()
_registered_processes: set[int] = set()


class Outbox:
    """Sends for one task, in a thread that starts with the first line.

    A copy in another process, by a fork or by pickle, starts empty: lines and thread belong to
    the process that created them.
    """

    def __init__(self, connection: Connection, task_id: str, writer: str, heartbeat: float) -> None:
        self._connection = connection
        self._task_id = task_id
        self._writer = writer
        self._heartbeat = heartbeat
        self.reset()

    def __reduce__(self) -> tuple[Any, ...]:
        return Outbox, (self._connection, self._task_id, self._writer, self._heartbeat)

    def reset(self) -> None:
        """Forget the lines and the thread: after a fork they belong to the parent."""
        self._lock = threading.Lock()
        self._queue = LineQueue()
        self._sender: Sender | None = None

    @property
    def is_started(self) -> bool:
        return self._sender is not None

    def start(self) -> Sender:
        """The sender; its thread starts with the first line or with `with`."""
        with self._lock:
            sender = self._sender
            # A thread that has finished cannot be reused.
            if sender is not None and not sender.is_delivered:
                return sender
            _outboxes.difference_update([box for box in list(_outboxes) if box.is_sent()])
            _outboxes.add(self)
            _register_in_child()
            queue = self._queue = LineQueue()
            sender = self._sender = Sender(
                self._connection,
                queue,
                # Unique, because the service numbers the lines of each writer.
                f"{self._writer}-{uuid4().hex[:12]}",
                lambda: self._task_id,
                heartbeat=self._heartbeat,
                # A thread that waits for space must not wait any longer.
                on_stop=lambda error: queue.discard(),
            )
            sender.start()
            return sender

    def put_lines(self, milliseconds: int, text: str) -> None:
        """Add the lines of this text, with their time in milliseconds since 1970.

        Waits while the queue is full. Raises the reason to stop, and Unreachable if the service
        has not responded for the connection's `patience`.
        """
        sender, queue = self.start(), self._queue
        began = time.monotonic()
        while queue.memory_bytes() >= MAX_BYTES:
            time.sleep(_SPACE_POLL_SECONDS)
            self._raise_if_stuck(sender, began)
        self.check()
        queue.put(as_lines(text), milliseconds)

    def put_progress(self, progress: Mapping[str, Any]) -> None:
        sender = self.start()
        self.check()
        sender.put_progress(progress)

    def pop_progress(self) -> dict[str, Any]:
        """Remove and return the unsent progress, for the caller to send."""
        return {} if self._sender is None else self._sender.pop_progress()

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if self._sender is not None and self._sender.stop_reason is not None:
            raise self._sender.stop_reason

    def pause(self, seconds: float) -> None:
        """Wait before the next attempt; raise the reason to stop as soon as there is one."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            self.check()

    def finish(self, report: dict[str, Any] | None) -> None:
        """Send all lines, then this report if there is one.

        Raises the TaskServiceError that prevents it.
        """
        sender = self.start()
        try:
            self._send_all(sender, report)
        except TaskServiceError as error:
            if lines := self._queue.count():
                error.args = (f"{error}; {plural(lines, 'line')} not sent",)
            self.drop()
            raise
        self.drop()

    def _send_all(self, sender: Sender, report: dict[str, Any] | None) -> None:
        """Let the sender send everything; raises the TaskServiceError that prevents it."""
        began = time.monotonic()
        sender.finish(report)
        while not sender.has_ended.is_set():
            sender.has_ended.wait(_POLL_SECONDS)
            if not sender.has_ended.is_set():
                self._raise_if_stuck(sender, began)
        if not sender.is_delivered:
            error = sender.stop_reason or sender.outage
            raise error or TaskServiceError("The final status could not be sent")

    def _raise_if_stuck(self, sender: Sender, began: float) -> None:
        """Raise the reason to stop waiting for the sender, if there is one."""
        if sender.stop_reason is not None:
            raise sender.stop_reason
        if time.monotonic() - max(sender.last_response_at, began) > self._connection.patience:
            raise sender.outage or Unreachable(f"{self._connection.url} does not respond")

    def drop(self) -> None:
        """Stop sending; unsent lines are lost."""
        with self._lock:
            if self._sender is not None:
                self._sender.abandon()
                self._queue.discard()
                self._sender = None
                _outboxes.discard(self)

    def is_sent(self) -> bool:
        """Whether no line is waiting to be sent."""
        sender = self._sender
        return sender is not None and (sender.is_delivered or sender.stop_reason is not None)

    def send_rest(self, until: float) -> None:
        """Send the waiting lines, at most until this time of the monotonic clock."""
        sender = self._sender
        if sender is None:
            return
        sender.finish(None)
        sender.has_ended.wait(max(until - time.monotonic(), 0))
        if not sender.is_delivered and sender.stop_reason is None:
            lines = plural(self._queue.count(), "line")
            logger.warning("%s of task %s could not be sent in time", lines, self._task_id)


def _register_in_child() -> None:
    """Register an exit handler in a child of multiprocessing, which does not run atexit's."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and os.getpid() not in _registered_processes:
        _registered_processes.add(os.getpid())
        util.Finalize(None, _send_all, exitpriority=10)


def _send_all() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for outbox in list(_outboxes):
        outbox.send_rest(until)


def _reset_after_fork() -> None:
    for outbox in list(_outboxes):
        outbox.reset()
    _outboxes.clear()


atexit.register(_send_all)
os.register_at_fork(after_in_child=_reset_after_fork)
