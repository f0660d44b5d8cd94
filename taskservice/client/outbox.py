"""What a task still has to send: its lines, its progress and its end, in this order."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from taskservice.client import answers, at_exit, log_text
from taskservice.client.errors import TaskServiceError, Unreachable
from taskservice.client.http import Connection
from taskservice.client.memory_queue import MemoryQueue
from taskservice.client.output import check_output
from taskservice.client.progress import ProgressSender
from taskservice.client.sender import CHECK_TIMEOUT, Sender
from taskservice.threads import try_start

# How often a program that waits for its sender checks whether to keep waiting.
_POLL_SECONDS = 0.2
logger = logging.getLogger(__name__)


class Outbox:
    """Sends for one task, by a thread that starts with the first line.

    A copy in another process, by a fork or by pickle, begins empty: lines and thread belong to
    the process that made them.
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
        self._lock = threading.Lock()
        self._queue = MemoryQueue()
        self._sender: Sender | None = None
        self._progress = ProgressSender()

    @property
    def is_started(self) -> bool:
        return self._sender is not None

    def start(self) -> Sender:
        """What sends; its thread starts with the first line or with `with`.

        At the end of the program, or where no thread can be started, the program's own sends.
        """
        with self._lock:
            sender = self._sender
            if sender is None or (sender.is_delivered and sender.ident is not None):
                return self._start_sender()  # a thread that has sent its last is of no more use
            return sender

    def _start_sender(self) -> Sender:
        at_exit.add(self)
        queue = self._queue = MemoryQueue()
        sender = self._sender = Sender(
            self._connection,
            queue,
            # Unique, because the service counts lines by their writer.
            f"{self._writer}-{uuid4().hex[:12]}",
            lambda: self._task_id,
            heartbeat=self._heartbeat,
            # Ends the wait of a thread that waits for space.
            on_stop=lambda error: queue.discard(),
        )
        if not at_exit.is_over():
            try_start(sender)
        return sender

    def put_lines(self, milliseconds: int, text: str) -> None:
        """Add the lines of this text, with their time in milliseconds since 1970.

        Waits while the queue is full. Raises the reason to stop, and Unreachable when the service
        has not answered for the connection's `patience`.
        """
        sender, queue = self.start(), self._queue
        began = time.monotonic()
        while not queue.wait_for_space(_POLL_SECONDS):
            self._raise_if_stuck(sender, began)
        self.check()
        queue.put(log_text.split_lines(text), milliseconds)
        if at_exit.is_over():
            self.send_rest(time.monotonic() + at_exit.EXIT_SECONDS)
        elif sender.ident is None:
            # If the service is away, the line waits for the next one.
            sender.send_here(None, until=0.0)

    def put_progress(self, progress: Mapping[str, Any]) -> None:
        self.start()
        self.check()
        self._progress.put(progress, self._send_progress)

    def _send_progress(self, progress: Mapping[str, Any]) -> None:
        self._connection.once(
            "PATCH", f"/task/{self._task_id}", answers.task("id"),
            params={"fields": "id"}, json=progress, timeout=CHECK_TIMEOUT,
        )  # fmt: skip

    def take_progress(self) -> dict[str, Any]:
        """The progress that is still to be sent, for the caller to send."""
        return self._progress.take()

    def check(self) -> None:
        """Raise the reason to stop, if the service has told of one."""
        if self._sender is not None and self._sender.stop_reason is not None:
            raise self._sender.stop_reason

    def pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless there is a reason to stop meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
            if self._sender is not None:
                self._sender.check_for_stop()
            self.check()

    def finish(self, report: dict[str, Any] | None) -> None:
        """Send all lines, then this report if there is one.

        Raises the TaskServiceError that keeps them from being sent; TypeError or ValueError
        for a report that JSON lacks.
        """
        # Checked here: in the sender's thread the program would not see the error.
        check_output((report or {}).get("output") or {})
        json.dumps(report, allow_nan=False)
        report = (self._progress.take() | (report or {})) or None
        sender = self.start()
        try:
            self._send_all(sender, report)
        except TaskServiceError as error:
            if lines := self._queue.count():
                error.args = (f"{error}; {log_text.line_count(lines)} not sent",)
            self.drop()
            raise
        self.drop()

    def _send_all(self, sender: Sender, report: dict[str, Any] | None) -> None:
        """Let the sender send everything; raises what keeps it from that."""
        began = time.monotonic()
        if sender.ident is None:
            patience = at_exit.EXIT_SECONDS if at_exit.is_over() else self._connection.patience
            sender.send_here(report, began + patience)
        else:
            sender.finish(report)
            while not sender.has_ended.is_set():
                sender.has_ended.wait(_POLL_SECONDS)
                if not sender.has_ended.is_set():
                    self._raise_if_stuck(sender, began)
        if not sender.is_delivered:
            error = sender.stop_reason or sender.outage
            raise error or TaskServiceError("The end of the task could not be sent")

    def _raise_if_stuck(self, sender: Sender, began: float) -> None:
        """Raise the reason not to wait for the sender any longer, if there is one."""
        sender.check_for_stop()
        if sender.stop_reason is not None:
            raise sender.stop_reason
        if time.monotonic() - max(sender.last_answer_at, began) > self._connection.patience:
            raise sender.outage or Unreachable(f"{self._connection.url} does not answer")

    def drop(self) -> None:
        """Stop sending; what is not sent is lost."""
        with self._lock:
            if self._sender is not None:
                self._sender.abandon()
                self._queue.discard()
                self._sender = None
                at_exit.remove(self)

    # --- at the end of the program -------------------------------------------------------

    def is_sent(self) -> bool:
        """Whether none of its lines is still to be sent."""
        sender = self._sender
        return sender is not None and (sender.is_delivered or sender.stop_reason is not None)

    def send_rest(self, until: float) -> None:
        """Send the lines that wait, at most until this time of the monotonic clock."""
        sender = self._sender
        if sender is None:
            return
        progress = self._progress.take() or None
        if sender.ident is None:
            sender.send_here(progress, until)
        else:
            sender.finish(progress)
            sender.has_ended.wait(max(until - time.monotonic(), 0))
        if not sender.is_delivered and sender.stop_reason is None:
            lines = log_text.line_count(self._queue.count())
            logger.warning("%s of task %s could not be sent in time", lines, self._task_id)
