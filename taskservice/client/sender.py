"""A thread that brings one task's lines, and then its end, to the service: each once."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from taskservice.client.answers import APPENDED, Shape, task
from taskservice.client.errors import (
    PASSING,
    Invalid,
    LinesMissing,
    NotTheService,
    TaskCancelled,
    TaskFinished,
    TaskServiceError,
    TooLarge,
    Unreadable,
)
from taskservice.client.http import Connection, delays, pause_after
from taskservice.client.text import mark
from taskservice.contract.terms import MAX_LOG

# About five requests a second at most, so that a line is seen within a second.
SECONDS_BETWEEN = 0.2
# How long a task may be silent before its agent says that it lives, and hears of a cancel.
HEARTBEAT_SECONDS = 5.0
# For a claimed task, whose timeout its JSON does not tell: less than the shortest, 1 s.
CLAIMED_HEARTBEAT_SECONDS = 0.8
# How often another thread may ask in place of the sender while that gets no answer.
SECONDS_BETWEEN_QUESTIONS = 0.5
QUESTION_SECONDS = 2.0
_NOTHING: dict[str, Any] = {"logs": []}
BATCH_BYTES = 512 * 1024
# So much of a log is left for the mark that says that it is full.
_ROOM_FOR_MARK = 200


def heartbeat_for(timeout: int | None) -> float:
    """Seconds between heartbeats of a task that may be silent so long."""
    return min(HEARTBEAT_SECONDS, timeout / 3) if timeout else HEARTBEAT_SECONDS


class Batch(NamedTuple):
    """Lines to send at once: `data` is text in which each ends with a line feed."""

    seq: int  # the number of the first one, counted by its writer from 1
    lines: int
    data: bytes


class Waiting(Protocol):
    """Where lines wait to be sent."""

    def put(self, lines: Sequence[bytes]) -> None:
        """Add lines, without their line feeds."""

    def peek(self, most: int) -> Batch | None:
        """The next lines, of at most `most` bytes but one line at least.

        Until they are confirmed nothing happens to them: called again, it gives the same,
        or with a smaller `most` fewer of them.
        """

    def confirm(self, batch: Batch) -> None:
        """These lines, or the first of them, are with the service."""

    def renumber(self, seq: int) -> None:
        """The next line has this number."""

    def discard(self) -> None:
        """None of the lines is wanted any more, nor those that are still to come."""

    def wait(self, seconds: float) -> None:
        """Return when there are lines, when `wake` is called, or after so many seconds."""

    def wake(self) -> None:
        """Let `wait` return."""


class Sender(threading.Thread):
    """Sends what waits, in batches; heartbeats while nothing does; and at last the report.

    `task_id` is called until it gives the task's id: the task may have to be made first.
    `on_stop` is called when nothing more can be sent: the task was cancelled or deleted, or
    the service refuses what another attempt would not mend. `on_trouble` is called when the
    service is away, and with None when it is back. Both are called from this thread.
    """

    def __init__(
        self,
        connection: Connection,
        waiting: Waiting,
        writer: str,
        task_id: Callable[[], str],
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        log_bytes: int = 0,
        on_stop: Callable[[TaskServiceError], None] = lambda error: None,
        on_trouble: Callable[[TaskServiceError | None], None] = lambda error: None,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self.waiting = waiting
        # Why nothing more will be sent.
        self.stopped: TaskServiceError | None = None
        self.last_answer = time.monotonic()
        self.trouble: TaskServiceError | None = None
        self.delivered = False
        self._connection, self._writer, self._task_id = connection, writer, task_id
        self._heartbeat = heartbeat
        self._log_bytes = log_bytes
        self._on_stop, self._on_trouble = on_stop, on_trouble
        self._batch_bytes = BATCH_BYTES
        self._last_request = 0.0
        self._report: dict[str, Any] | None = None
        self._is_finished = False
        self._asking = threading.Lock()
        self._asked_at = 0.0
        self._closing = threading.Event()
        self._abandoned = threading.Event()

    # --- what the other threads call -----------------------------------------------------

    def finish(self, report: dict[str, Any] | None) -> None:
        """After the lines that wait now, send this report, if any, and end."""
        self._report = report
        self._closing.set()
        self.waiting.wake()

    def abandon(self) -> None:
        """End without having sent everything."""
        self._abandoned.set()
        self._closing.set()
        self.waiting.wake()

    def ask(self) -> None:
        """Hear of a cancel or a deletion now, for a thread that waits for this one.

        This one may be in the middle of a long pause, or of a slow request. What is heard
        is in `stopped` then.
        """
        since = max(self.last_answer, self._asked_at)
        if time.monotonic() - since < SECONDS_BETWEEN_QUESTIONS or self._is_finished:
            return
        if not self._asking.acquire(blocking=False):
            return
        try:
            self._asked_at = time.monotonic()
            path = f"/task/{self._task_id()}/logs"
            self._connection.once("POST", path, APPENDED, json=_NOTHING, timeout=QUESTION_SECONDS)
        except (*PASSING, NotTheService):
            return
        except TaskServiceError as error:
            self._refused(error)
        finally:
            self._asking.release()

    # --- the thread ----------------------------------------------------------------------

    def run(self) -> None:
        pauses = delays()
        while not self._abandoned.is_set():
            try:
                if self._step():
                    self.delivered = True
                    return
            except (*PASSING, NotTheService, LinesMissing) as error:
                self._troubled(error)
                self._abandoned.wait(pause_after(error, next(pauses)))
                continue
            except TaskServiceError as error:
                if self._refused(error):
                    return
            self._answered()
            pauses = delays()

    def _refused(self, error: TaskServiceError) -> bool:
        """Whether nothing more can be sent."""
        if isinstance(error, TaskFinished) and not isinstance(error, TaskCancelled):
            # Somebody else has ended it. The program goes on, but its lines go nowhere.
            self._is_finished = True
            self.waiting.discard()
            return False
        self.stopped = error
        self.abandon()
        self._on_stop(error)
        return True

    def _troubled(self, error: TaskServiceError) -> None:
        if self.trouble is None:
            self._on_trouble(error)
        self.trouble = error

    def _answered(self) -> None:
        if self.trouble is not None:
            self._on_trouble(None)
        self.trouble = None

    def _step(self) -> bool:
        """One request, or a wait for a reason to make one; true when all is done."""
        closing = self._closing.is_set()
        if self._is_finished:
            return True
        path = f"/task/{self._task_id()}"
        batch = self.waiting.peek(self._batch_bytes)
        if batch is not None:
            self._send(path, batch)
        elif closing:
            return self._send_report(path)
        elif time.monotonic() - self._last_request >= self._heartbeat:
            self._request("POST", f"{path}/logs", APPENDED, json=_NOTHING)
        else:
            until = self._last_request + self._heartbeat
            self.waiting.wait(max(until - time.monotonic(), 0))
        return False

    def _request(self, method: str, path: str, shape: Shape, **options: Any) -> None:
        pause = self._last_request + SECONDS_BETWEEN - time.monotonic()
        if pause > 0:
            # At the end there is nothing to be gained by sending less often.
            self._closing.wait(pause)
        self._last_request = time.monotonic()
        self._connection.once(method, path, shape, **options)
        self.last_answer = time.monotonic()

    def _send(self, path: str, batch: Batch) -> None:
        fitting = self._fitting(batch)
        if fitting is None:
            self._fill(path, batch.seq)
            return
        try:
            self._append(path, fitting.seq, fitting.data)
        except LinesMissing as error:
            if error.expected >= fitting.seq:
                raise
            self.waiting.renumber(error.expected)
        except TooLarge:
            self._send_less(fitting)
        else:
            self._log_bytes += len(fitting.data)
            self.waiting.confirm(fitting)

    def _append(self, path: str, seq: int, data: bytes) -> None:
        query = {"seq": str(seq), "writer": self._writer}
        headers = {"Content-Type": "text/plain"}
        self._request("POST", f"{path}/logs", APPENDED, params=query, headers=headers, data=data)

    def _fitting(self, batch: Batch) -> Batch | None:
        """As many lines of the batch as the log has room for; None if not even one."""
        room = MAX_LOG - _ROOM_FOR_MARK - self._log_bytes
        if len(batch.data) <= room:
            return batch
        data = batch.data[: batch.data.rfind(b"\n", 0, max(room, 0)) + 1]
        return Batch(batch.seq, data.count(b"\n"), data) if data else None

    def _send_less(self, batch: Batch) -> None:
        """A batch was too large: for the service's settings, or for what its log has left."""
        if batch.lines > 1:
            self._batch_bytes = max(len(batch.data) // 2, 1)
        else:
            self.waiting.discard()

    def _fill(self, path: str, seq: int) -> None:
        """Say in the log that it is full; what comes after that is left out."""
        # Where others write too, there may be no room for saying so either.
        with contextlib.suppress(TooLarge, LinesMissing):
            self._append(path, seq, mark("the log is full, what follows is left out"))
        self.waiting.discard()

    def _send_report(self, path: str) -> bool:
        """Whether it is reported; if not, there is something to be sent before."""
        if self._report is None:
            return True
        try:
            self._request("PATCH", path, task("id"), params={"fields": "id"}, json=self._report)
        except (Unreadable, TooLarge, Invalid) as error:
            if not self._report.pop("output", None):
                raise
            # How the program ended counts for more than what it has put out.
            self.waiting.put([mark(f"the output was refused: {error}").rstrip()])
            return False
        return True
