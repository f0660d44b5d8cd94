"""Sends the log lines, the progress and the final report of a task to the service."""

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any
from uuid import uuid4

from taskservice.client import responses
from taskservice.client.http import Connection, delays, pause_after
from taskservice.client.responses import Object, TaskCancelled, TaskFinished, TaskServiceError
from taskservice.client.spool import Batch, InterruptSafeEvent, Spool, as_lines, note, now, timed
from taskservice.error_codes import LOG_FULL
from taskservice.quantities import plural
from taskservice.terms import MAX_LOG

logger = logging.getLogger(__name__)


# Minimum number of seconds between two requests, and between two reports of progress.
REQUEST_INTERVAL = 0.2
PROGRESS_INTERVAL = 1.0
# A heartbeat is sent after this time without a request. The response to the heartbeat shows whether
# the task was cancelled.
HEARTBEAT_SECONDS = 5.0
# The response to a claim does not contain the task's timeout, so this interval is shorter than the
# minimum timeout, 1 s.
CLAIMED_HEARTBEAT_SECONDS = 0.8
# A member of a report that is not sent: the task is cancelled instead, if the key may do so.
CANCELS = "cancels"
_NOTE_BYTES = 200  # reserved in each log for the marker that the log is full


def heartbeat_for(timeout: int | None) -> float:
    """The heartbeat interval, in seconds, for a task with this timeout in seconds."""
    return min(HEARTBEAT_SECONDS * 3, timeout) / 3 if timeout else HEARTBEAT_SECONDS


class Sender(threading.Thread):
    """Sends lines in batches, heartbeats while there are no lines, and finally the report.

    The thread calls `task_id`, which can start the task, before each request, and `on_stop` when
    nothing more can be sent. It calls `on_outage` with the error when the service becomes
    unavailable, and with None when the service is reachable again.
    """

    def __init__(
        self,
        connection: Connection,
        spool: Spool,
        writer: str,
        task_id: Callable[[], str],
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        on_stop: Callable[[TaskServiceError], None] = lambda error: None,
        on_outage: Callable[[TaskServiceError | None], None] = lambda error: None,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.spool = spool
        self.stop_reason: TaskServiceError | None = None  # the error that ended the thread
        self.outage: TaskServiceError | None = None  # the error of the last request, if it failed
        self.last_response_at = -math.inf
        self.is_delivered = False
        # Before Python 3.13, `is_alive` returns a wrong result after Ctrl-C interrupted a `join`.
        self.has_ended = InterruptSafeEvent()
        self._connection, self._writer, self._task_id = connection, writer, task_id
        self._heartbeat = heartbeat
        self._on_stop, self._on_outage = on_stop, on_outage
        self._batch_bytes = 512 * 1024
        self._last_request_at = 0.0
        self._report: dict[str, Any] | None = None
        self._closing, self._abandoned = InterruptSafeEvent(), InterruptSafeEvent()
        self._progress: dict[str, Any] = {}  # the unsent progress
        self._progress_at = -math.inf  # when the progress was last sent
        self._lock = threading.Lock()
        # Locked while progress is sent, so that the values arrive in order.
        self._sending_progress = threading.Lock()

    # --- methods for other threads -------------------------------------------------------

    def finish(self, report: dict[str, Any] | None) -> None:
        """Send the waiting lines, then the progress and this report, if any, and end."""
        self._report = report
        self.spool.end()
        self._closing.set()
        self.spool.news.set()

    def put_progress(self, progress: Mapping[str, Any]) -> None:
        """Send the progress within a second, unless a newer value replaces it. Does not block."""
        with self._lock:
            self._progress |= progress
        self.spool.news.set()

    def pop_progress(self) -> dict[str, Any]:
        """Remove and return the unsent progress, for the caller to send."""
        with self._sending_progress, self._lock:
            unsent, self._progress = self._progress, {}
            return unsent

    def abandon(self) -> None:
        """End the thread without sending the remaining data."""
        self._abandoned.set()
        self._closing.set()
        self.spool.news.set()

    # --- methods for this thread ---------------------------------------------------------

    def run(self) -> None:
        pauses = delays()
        try:
            while not (self._abandoned.is_set or self.is_delivered):
                try:
                    self.is_delivered = self._step()
                except (*responses.RETRYABLE, responses.NotTheService, responses.LineGap) as error:
                    self._set_outage(error)
                    self._abandoned.wait(pause_after(error, next(pauses)))
                    continue
                if not self.is_delivered:
                    self._set_outage(None)
                    pauses = delays()
        except TaskServiceError as error:
            if isinstance(error, TaskFinished) and not isinstance(error, TaskCancelled):
                # Another program has ended the task. This program continues; drop its lines.
                self.spool.discard()
                self._set_outage(None)
                self.is_delivered = True
            else:
                self.stop_reason = error
                self.abandon()
                self._on_stop(error)
        finally:
            self.has_ended.set()

    def _set_outage(self, error: TaskServiceError | None) -> None:
        if (self.outage is None) != (error is None):
            self._on_outage(error)
        self.outage = error

    def _step(self) -> bool:
        """Make one request, or wait for something to send. Return whether everything is sent."""
        closing = self._closing.is_set
        path = f"/task/{self._task_id()}"
        next_progress = self._progress_at + PROGRESS_INTERVAL if self._progress else math.inf
        if time.monotonic() >= next_progress and not closing:
            self._send_progress(path)
            return False
        space = MAX_LOG - _NOTE_BYTES - self.spool.sent_bytes
        batch = self.spool.peek(min(self._batch_bytes, space))
        if batch is not None and batch.size > space:
            self._note_full_log(path, batch.seq)
        elif batch is not None:
            self._send_batch(path, batch)
        elif self._needs_heartbeat(closing):
            self._send_heartbeat(path)
        elif closing:
            return self._send_report(path)
        else:
            until = min(self._last_request_at + self._heartbeat, next_progress)
            self.spool.news.wait(max(until - time.monotonic(), 0))
            self.spool.news.clear()
        return False

    def _needs_heartbeat(self, closing: bool) -> bool:
        # Before the report, it only checks that the service still has the lines.
        is_due = time.monotonic() - self._last_request_at >= self._heartbeat
        return is_due and not (closing and self.spool.seq == 1)

    def _send_heartbeat(self, path: str) -> None:
        heartbeat: dict[str, Any] = {"logs": []}
        if self.spool.seq > 1:
            # With this, the service refuses the heartbeat if it has lost lines that were sent.
            heartbeat |= {"seq": self.spool.seq, "writer": self._writer}
        try:
            self._request("POST", f"{path}/logs", responses.APPENDED, json=heartbeat)
        except responses.LineGap as error:
            self.spool.renumber(error.expected)

    def _patch(self, path: str, changes: dict[str, Any]) -> None:
        self._request("PATCH", path, Object("id"), params={"fields": "id"}, json=changes)

    def _request(self, method: str, path: str, expected: Object, **options: Any) -> None:
        pause = self._last_request_at + REQUEST_INTERVAL - time.monotonic()
        # The pause lets lines accumulate into larger batches; `finish` ends the pause.
        self._closing.wait(max(pause, 0))
        self._last_request_at = time.monotonic()
        self._connection.once(method, path, expected, **options)
        self.last_response_at = time.monotonic()

    def _send_progress(self, path: str) -> None:
        with self._sending_progress:
            with self._lock:
                unsent, self._progress = self._progress, {}
            try:
                self._patch(path, unsent)
            except TaskServiceError:
                with self._lock:
                    self._progress = unsent | self._progress
                raise
        self._progress_at = time.monotonic()

    def _send_batch(self, path: str, batch: Batch) -> None:
        try:
            self._append(path, batch)
        except responses.LineGap as error:
            if error.expected >= batch.seq:
                raise
            self.spool.renumber(error.expected)
        except responses.TooLarge as error:
            # The batch is too large for the service, for a proxy, or for the free space in the log.
            if batch.lines > 1:
                self._batch_bytes = batch.size // 2
            elif error.problem.get("code") == LOG_FULL:
                self._note_full_log(path, batch.seq)
            else:
                raise
        else:
            self.spool.confirm(batch)

    def _append(self, path: str, batch: Batch) -> None:
        lines = batch.json() | {"writer": self._writer}
        self._request("POST", f"{path}/logs", responses.APPENDED, json=lines)

    def _note_full_log(self, path: str, seq: int) -> None:
        marker = note("the log is full; later lines are dropped")
        # Other writers may have filled the space that is reserved for the marker.
        with suppress(responses.TooLarge, responses.LineGap):
            self._append(path, Batch.of(seq, timed(marker, now())))
        self.spool.discard()

    def _send_report(self, path: str) -> bool:
        """Send the report; return False if it must be sent again without its output."""
        with self._lock:
            report = self._report = self._progress | (self._report or {})
            self._progress = {}
        if not report:
            return True
        try:
            if CANCELS in report:
                self._cancel(path, report)
            else:
                self._patch(path, report)
        except responses.Forbidden:
            # An agent key cannot cancel tasks.
            if not report.pop(CANCELS, False):
                raise
            return False
        except (responses.BadRequest, responses.TooLarge, responses.Invalid) as error:
            # The final status must be stored even if the output is refused.
            if not report.pop("output", None):
                raise
            self.spool.put(note(f"the output was refused: {error}"), now())
            return False
        return True

    def _cancel(self, path: str, report: Mapping[str, Any]) -> None:
        of_end = ("status", "error", "seconds", CANCELS)
        if changes := {name: value for name, value in report.items() if name not in of_end}:
            self._patch(path, changes)
        self._request("POST", f"{path}/cancel", Object("id"), params={"fields": "id"})


MAX_BYTES = 16 * 1024 * 1024  # `put_lines` blocks while the unsent lines have at least this size
EXIT_SECONDS = 5.0  # how long an exiting process waits until its lines are sent
_POLL_SECONDS = 0.2  # how often a thread that waits for the sender checks for errors
# Outboxes that may contain unsent lines, even if the program no longer uses them.
_outboxes: set["Outbox"] = set()


class Outbox:
    """Sends the lines of one task in a thread. Child processes begin without unsent lines."""

    def __init__(self, connection: Connection, task_id: str, writer: str, heartbeat: float) -> None:
        self._connection, self._task_id = connection, task_id
        self._writer, self._heartbeat = writer, heartbeat
        self.reset()

    def reset(self) -> None:
        """Forget the lines and the thread: after a fork they belong to the parent."""
        self._lock = threading.Lock()
        self.sender: Sender | None = None  # None until `start` is called

    def start(self) -> Sender:
        """Start the thread of the sender if necessary, and return the sender."""
        with self._lock:
            sender = self.sender
            # A sender that has sent everything is replaced, since its thread has ended.
            if sender is not None and not sender.is_delivered:
                return sender
            _outboxes.difference_update([box for box in list(_outboxes) if box.is_sent()])
            _outboxes.add(self)
            _register_exit(os.getpid())
            spool = Spool(None, max_memory=math.inf)
            # Each sender needs a unique writer name, since every writer numbers its lines from 1.
            writer = f"{self._writer}-{uuid4().hex[:12]}"
            sender = self.sender = Sender(
                self._connection, spool, writer, lambda: self._task_id, heartbeat=self._heartbeat,
                # Empty the spool, so that threads that wait for space continue.
                on_stop=lambda error: spool.discard(),
            )  # fmt: skip
            sender.start()
            return sender

    def put_lines(self, milliseconds: int, text: str) -> None:
        """Add the lines of a text. Blocks while the spool is full. Raises TaskServiceError."""
        sender = self.start()
        began = time.monotonic()
        while len(sender.spool.memory) >= MAX_BYTES:
            time.sleep(0.02)
            self._raise_if_stuck(sender, began)
        self.check()
        sender.spool.put(as_lines(text), milliseconds)

    def check(self) -> None:
        """Raise the error that stopped the sender, if any."""
        if self.sender is not None and self.sender.stop_reason is not None:
            raise self.sender.stop_reason

    def pause(self, seconds: float, _: TaskServiceError) -> None:
        """Wait before the next attempt; if the sender stops, raise its error immediately."""
        until = time.monotonic() + seconds
        while (remaining := until - time.monotonic()) > 0:
            time.sleep(min(remaining, _POLL_SECONDS))
            self.check()

    def finish(self, report: dict[str, Any] | None) -> None:
        """Send all lines, then the report, if any. Raises TaskServiceError if this fails."""
        sender = self.start()
        began = time.monotonic()
        sender.finish(report)
        try:
            while not sender.has_ended.wait(_POLL_SECONDS):
                self._raise_if_stuck(sender, began)
            if not sender.is_delivered:
                error = sender.stop_reason or sender.outage
                raise error or TaskServiceError("The final status could not be sent")
        except TaskServiceError as error:
            if lines := sender.spool.count():
                error.args = (f"{error}; {plural(lines, 'line')} not sent",)
            self.drop()
            raise
        self.drop()

    def _raise_if_stuck(self, sender: Sender, began: float) -> None:
        """Raise an error if the sender has stopped, or the service does not respond."""
        if sender.stop_reason is not None:
            raise sender.stop_reason
        if time.monotonic() - max(sender.last_response_at, began) > self._connection.retry_timeout:
            raise sender.outage or responses.Unreachable(f"{self._connection.url} does not respond")

    def drop(self) -> None:
        """Stop the sender; unsent lines are lost."""
        with self._lock:
            if self.sender is not None:
                self.sender.abandon()
                self.sender.spool.discard()
                self.sender = None
                _outboxes.discard(self)

    def is_sent(self) -> bool:
        """Whether no line is waiting to be sent."""
        sender = self.sender
        return sender is not None and (sender.is_delivered or sender.stop_reason is not None)

    def send_rest(self, until: float) -> None:
        """Send the waiting lines; give up when the monotonic clock reaches `until`."""
        if sender := self.sender:
            sender.finish(None)
            sender.has_ended.wait(max(until - time.monotonic(), 0))
            if not sender.is_delivered and sender.stop_reason is None:
                lines = plural(sender.spool.count(), "line")
                logger.warning("%s of task %s could not be sent in time", lines, self._task_id)


@cache
def _register_exit(process_id: int) -> None:
    """Call `_send_rest` at the exit of a multiprocessing child, which runs no atexit handlers."""
    if util := sys.modules.get("multiprocessing.util"):
        util.Finalize(None, _send_rest, exitpriority=10)


@atexit.register
def _send_rest() -> None:
    until = time.monotonic() + EXIT_SECONDS
    for outbox in list(_outboxes):
        outbox.send_rest(until)


def _reset_after_fork() -> None:
    for outbox in list(_outboxes):
        outbox.reset()
    _outboxes.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
