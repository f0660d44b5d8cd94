"""Times out claimed tasks whose agents no longer report, and enqueues their webhooks."""

import logging
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from flask import current_app
from sqlalchemy import bindparam, select, update

from taskservice.background.removal import in_batches
from taskservice.database import clock
from taskservice.database.models import (
    CLAIMED,
    CLAIMED_WITH_TIMEOUT,
    Agent,
    ApiKey,
    Log,
    ServiceHeartbeat,
    Task,
)
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import current_time, database_time, read_one, transaction
from taskservice.database.types import AnySelect, database_now
from taskservice.operations.health import IS_CURRENT, MAX_GAP_SECONDS
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.services import deliveries as delivery_service
from taskservice.services import events, expected_runs, hanging, mutes, questions
from taskservice.services.tasks import HEARTBEAT, NOT_HANGING
from taskservice.terms import ERROR, SERVICE, TIMEOUT

logger = logging.getLogger(__name__)

# A task must not time out only because its agent could not reach the service. Therefore, no task
# times out in the first GRACE_SECONDS after an outage of more than MAX_GAP_SECONDS.
GRACE_SECONDS = 300.0
# A clock that drifts further than this from the monotonic clock between two readings was set.
MAX_DRIFT_SECONDS = 2.0
BATCH = 50


_SERVING_SINCE = select(ServiceHeartbeat.since).where(IS_CURRENT)
# A task with an open question does not time out, since its agent waits for a person.
_ASKING_NOTHING = (
    select(Task.id, Task.user_id, Task.agent_id, Task.labels, Task.callback_url, Task.timeout)
    .add_columns(Task.hanging_since, Task.hanging_reason)
    .where(Task.questions == NO_QUESTIONS)
    .limit(BATCH)
    # A task whose row is locked is being changed, so its agent is not silent.
    .with_for_update(skip_locked=True)
)
# Each ORDER BY matches an index, so the database need not sort the tasks.
_SILENT_BY_DEFAULT = _ASKING_NOTHING.where(
    CLAIMED, Task.last_heartbeat_at < bindparam("long_ago")
).order_by(Task.last_heartbeat_at)
_SILENT_BY_TIMEOUT = _ASKING_NOTHING.where(
    CLAIMED_WITH_TIMEOUT, Task.heartbeat_deadline < bindparam("now")
).order_by(Task.heartbeat_deadline)
_END = (
    update(Task)
    .where(Task.id == bindparam("of_task_id"))
    .values(
        status=ERROR,
        error_type=TIMEOUT,
        error_message=bindparam("message"),
        ended_by=SERVICE,
        updated_at=bindparam("at"),
        finished_at=bindparam("at"),
        version=Task.version + 1,
        **NOT_HANGING,
    )
)


class ClockMonitor:
    """Measures how long the clocks have been steady; timeouts and retention require this."""

    def __init__(self) -> None:
        # The database's time; None until the clocks have been steady for GRACE_SECONDS.
        self.now: str | None = None
        self.is_first = False  # whether `now` was None in the previous round
        # The database's time at the last reading, and its time when the clocks became steady.
        self.time = self.steady_since = clock.EARLIEST
        # The last readings of the database's clock, this machine's clock and the monotonic clock.
        self._last: tuple[str, str, float] | None = None
        self._steady_since = 0.0

    def read_clocks(self) -> None:
        """Read the clocks; call this once in each round, before using `now`."""
        was_steady, self.now = self.now is not None, None
        database, machine, monotonic = database_time(), clock.now(), time.monotonic()
        is_steady = False
        if self._last is not None:
            *before, last = self._last
            # A suspended machine, a clock that was set, and an unavailable database all cause a gap
            # or a jump.
            passed = monotonic - last
            jumps = [
                clock.seconds_between(since, until) - passed
                for since, until in zip(before, (database, machine), strict=True)
            ]
            is_steady = passed <= MAX_GAP_SECONDS and max(map(abs, jumps)) <= MAX_DRIFT_SECONDS
            if not is_steady:
                logger.warning(
                    "Maintenance paused for %.0f s; the database's clock jumped by %+.0f s and "
                    "this machine's clock by %+.0f s: no task is timed out or pruned for %.0f s",
                    passed, *jumps, GRACE_SECONDS,
                )  # fmt: skip
        if not is_steady:
            was_steady, self._steady_since, self.steady_since = False, monotonic, database
        self.time = database
        self._last = (database, machine, monotonic)
        if monotonic - self._steady_since >= GRACE_SECONDS:
            self.now, self.is_first = database, not was_steady


def correct_future_times(now: str) -> None:
    """Set times in the future to `now`, since timeouts and schedules would wait for these times.

    Times are in the future if the clock was set back.
    """
    ahead = clock.moved(now, MAX_DRIFT_SECONDS)
    with transaction() as connection:
        for claimed in (CLAIMED, CLAIMED_WITH_TIMEOUT):
            connection.execute(
                update(Task).where(claimed, Task.last_heartbeat_at > ahead).values(HEARTBEAT)
            )
        for column in (Log.dropped_at, Agent.worker_seen_at, ApiKey.last_used_at):
            connection.execute(
                update(column.class_).where(column > ahead).values({column: database_now()})
            )
    questions.correct_future_times(ahead, now)
    mutes.correct_future_times(ahead, now)
    expected_runs.correct_future_times(now)
    hanging.correct_future_times(ahead, now)


def serving_since() -> str | None:
    """The time since which the service has been available without a gap; None if it is not."""
    row = read_one(_SERVING_SINCE, max_gap=MAX_GAP_SECONDS)
    return row and row.since


def was_serving(now: str) -> bool:
    """Whether the service has been available without a gap for at least GRACE_SECONDS."""
    since = serving_since()
    return since is not None and since <= clock.moved(now, -GRACE_SECONDS)


def time_out_tasks(now: str) -> None:
    default: float = current_app.config["TASK_TIMEOUT"]
    times = {"now": now, "long_ago": clock.moved(now, -default)}
    in_batches(lambda: _end_batch(_SILENT_BY_TIMEOUT, times))
    if default > 0:
        in_batches(lambda: _end_batch(_SILENT_BY_DEFAULT, times))


def _end_batch(silent: AnySelect, times: dict[str, str]) -> bool:
    """Time out a batch of the silent tasks; returns whether more may remain."""
    default: float = current_app.config["TASK_TIMEOUT"]
    with transaction() as connection:
        tasks = cast(Sequence[TaskRow], connection.execute(silent, times).all())
        events.lock_ends(connection, tasks, ERROR)
        now = current_time(connection)
        for task in tasks:
            timeout = task.timeout if task.timeout is not None else default
            values = {"of_task_id": task.id, "message": _message(timeout), "at": now}
            connection.execute(_END, values)
            delivery_service.enqueue_webhook(connection, task, now, for_loop=True)
        outcome = {"status": ERROR, "error_type": TIMEOUT, "finished_at": now}
        events.record_ends(
            connection, [SimpleNamespace(**task._asdict(), **outcome) for task in tasks]
        )
    return len(tasks) == BATCH


def _message(timeout: float) -> str:
    units = ((3_600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next((size, unit) for size, unit in units if size == 1 or timeout % size == 0)
    plural = "" if timeout == size else "s"
    return f"Its agent sent nothing for {timeout / size:g} {unit}{plural}"
