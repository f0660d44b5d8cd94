"""Timeouts: claimed tasks whose agents have fallen silent are ended, and their callbacks owed."""

import logging
import time
from dataclasses import dataclass
from datetime import datetime

from flask import current_app
from sqlalchemy import ColumnElement, Float, bindparam, case, exists, insert, select, update

from taskservice.background.batches import in_batches
from taskservice.contract.terms import ERROR, TIMEOUT
from taskservice.database import timestamps
from taskservice.database.models import (
    CLAIMED,
    CLAIMED_WITH_TIMEOUT,
    Identifier,
    Log,
    ServiceHeartbeat,
    Task,
)
from taskservice.database.rows import AnySelect
from taskservice.database.transactions import (
    database_moment,
    reading,
    retry_on_conflict,
    transaction,
)
from taskservice.database.types import Timestamp, database_now
from taskservice.services import deliveries as delivery_service
from taskservice.services.tasks import HEARTBEAT

logger = logging.getLogger(__name__)

# Nobody who could not be heard is blamed: after so many seconds without a look at the
# tasks, or without anybody who serves, nothing is ended for so many more.
MAX_GAP_SECONDS = 60.0
GRACE_SECONDS = 300.0
# A clock that gains or loses more between two looks was set; less is how long a look may take.
MAX_DRIFT_SECONDS = 2.0
# Of all who serve, one writes that down so often.
HEARTBEAT_SECONDS = 10.0
BATCH = 50


def _ago(seconds: str) -> database_now:
    return database_now(-bindparam(seconds, type_=Float()))


# A moment ahead is none: the clock was set.
_IS_CURRENT: ColumnElement[bool] = ServiceHeartbeat.until.between(_ago("absence"), database_now())
_RENEW = update(ServiceHeartbeat).values(
    since=case((_IS_CURRENT, ServiceHeartbeat.since), else_=database_now()), until=database_now()
)
_INSERT = insert(ServiceHeartbeat).values(id=1, since=database_now(), until=database_now())
_WAS_SERVING = exists().where(_IS_CURRENT, ServiceHeartbeat.since <= _ago("grace"))
_COLUMNS = (Task.id, Task.user_id, Task.callback_url, Task.timeout)
# One select for each index, the one that has been silent for longest first. What somebody
# is writing to at this moment is not silent.
_SILENT_BY_DEFAULT: AnySelect = (
    select(*_COLUMNS)
    .where(CLAIMED, Task.last_heartbeat_at < bindparam("long_ago", type_=Timestamp()))
    .order_by(Task.last_heartbeat_at)
)
_SILENT_BY_TIMEOUT: AnySelect = (
    select(*_COLUMNS)
    .where(CLAIMED_WITH_TIMEOUT, Task.heartbeat_deadline < bindparam("now", type_=Timestamp()))
    .order_by(Task.heartbeat_deadline)
)
_END = (
    update(Task)
    .where(Task.id == bindparam("of_task_id", type_=Identifier))
    .values(
        status=ERROR,
        error_type=TIMEOUT,
        error_message=bindparam("message"),
        updated_at=bindparam("at", type_=Timestamp()),
        finished_at=bindparam("at", type_=Timestamp()),
        timed_out_at=bindparam("at", type_=Timestamp()),
        version=Task.version + 1,
    )
)


@retry_on_conflict
def record_heartbeat() -> None:
    """Write down that agents can be heard at this moment, for all who may end their tasks."""
    with reading() as connection:
        fresh = select(ServiceHeartbeat.id).where(_IS_CURRENT)
        if connection.scalar(fresh, {"absence": HEARTBEAT_SECONDS}) is not None:
            return
    with transaction() as connection:
        if connection.execute(_RENEW, {"absence": MAX_GAP_SECONDS}).rowcount == 0:
            connection.execute(_INSERT)


@dataclass(frozen=True)
class _ClockReading:
    """What the clocks showed at one moment: the database's, this machine's, and one never set."""

    database: str
    machine: str
    monotonic: float

    def follows(self, before: "_ClockReading") -> bool:
        """Whether all clocks have gone evenly since, without a gap."""
        passed = self.monotonic - before.monotonic
        return passed <= MAX_GAP_SECONDS and max(map(abs, self.jumps(before))) <= MAX_DRIFT_SECONDS

    def jumps(self, before: "_ClockReading") -> tuple[float, float]:
        """By how many seconds the database's clock and this machine's were set since."""
        passed = self.monotonic - before.monotonic
        return (
            _seconds(before.database, self.database) - passed,
            _seconds(before.machine, self.machine) - passed,
        )


class ClockMonitor:
    """Watches the clocks, and says when what is old by them may be ended or removed.

    Time that passes while the machine sleeps, a clock that is set forward or back, and a
    database that was away are all noticed as a jump or a gap between two looks.
    """

    def __init__(self) -> None:
        # The moment by the database's clock, once all has been steady for long enough.
        self.now: str | None = None
        # Whether `now` is the first such moment since the clocks were in doubt.
        self.is_first = False
        self._last: _ClockReading | None = None
        self._since = 0.0

    def look(self) -> None:
        """Look at the clocks, once in each round, before `now` is used."""
        was_steady, self.now = self.now is not None, None
        database = database_moment()
        look = _ClockReading(database, timestamps.now(), time.monotonic())
        if self._last is None or not look.follows(self._last):
            self._begin(look)
            was_steady = False
        self._last = look
        if look.monotonic - self._since >= GRACE_SECONDS:
            self.now, self.is_first = database, not was_steady

    def _begin(self, look: _ClockReading) -> None:
        self._since = look.monotonic
        if self._last is not None:
            jumps = look.jumps(self._last)
            logger.warning(
                "After a gap of %.0f s, in which the database's clock was set by %+.0f s and this "
                "machine's by %+.0f s, no task is timed out or pruned for %.0f s",
                look.monotonic - self._last.monotonic, *jumps, GRACE_SECONDS,
            )  # fmt: skip


def correct_future_moments(now: str) -> None:
    """Let begin now what lies ahead of now, since it was written while a clock was ahead.

    Otherwise a silent task would not be ended, and a log not swept, until then.
    """
    ahead = timestamps.moved(now, MAX_DRIFT_SECONDS)
    with transaction() as connection:
        for claimed in (CLAIMED, CLAIMED_WITH_TIMEOUT):
            connection.execute(
                update(Task).where(claimed, Task.last_heartbeat_at > ahead).values(HEARTBEAT)
            )
        dropped = update(Log).where(Log.dropped_at > ahead)
        connection.execute(dropped.values(dropped_at=database_now()))


def end_silent_tasks(now: str) -> None:
    """End the tasks that have been silent for too long at `now`, if their agents could be heard."""
    default: float = current_app.config["TASK_TIMEOUT"]
    with reading() as connection:
        seconds = {"absence": MAX_GAP_SECONDS, "grace": GRACE_SECONDS}
        if not connection.execute(select(_WAS_SERVING), seconds).scalar_one():
            return
    moments = {"now": now, "long_ago": timestamps.moved(now, -default)}
    in_batches(lambda: _end_batch(_SILENT_BY_TIMEOUT, moments))
    if default > 0:
        in_batches(lambda: _end_batch(_SILENT_BY_DEFAULT, moments))


def _end_batch(silent: AnySelect, moments: dict[str, str]) -> bool:
    """End some of the tasks that are silent; returns whether there may be more."""
    default: float = current_app.config["TASK_TIMEOUT"]
    with transaction() as connection:
        locked = silent.limit(BATCH).with_for_update(skip_locked=True)
        tasks = connection.execute(locked, moments).all()
        # Taken here, as every end is: a list by end relies on that.
        now = timestamps.now()
        for task in tasks:
            timeout = task.timeout if task.timeout is not None else default
            values = {"of_task_id": task.id, "message": _message(timeout), "at": now}
            connection.execute(_END, values)
            delivery_service.enqueue_for_loop(connection, task, now)
    return len(tasks) == BATCH


def _message(timeout: float) -> str:
    units = ((3_600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next(each for each in units if timeout % each[0] == 0 or each[0] == 1)
    plural = "" if timeout == size else "s"
    return f"Nothing was heard from its agent for {timeout / size:g} {unit}{plural}"


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
