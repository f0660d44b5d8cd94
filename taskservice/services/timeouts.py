"""Timeouts: claimed tasks whose agents have fallen silent are ended, and their callbacks owed."""

from datetime import datetime

from flask import current_app
from sqlalchemy import ColumnElement, Float, bindparam, case, exists, insert, select, update

from taskservice import stamps
from taskservice.db import Timestamp, again_on_conflict, database_now, reading, transaction
from taskservice.models import (
    CLAIMED,
    CLAIMED_WITH_TIMEOUT,
    ERROR,
    TIMEOUT,
    Identifier,
    Presence,
    Task,
)
from taskservice.queries import AnySelect
from taskservice.services import deliveries
from taskservice.services.batches import in_batches

# Nobody who could not be heard is blamed: after so many seconds without a look at the
# tasks, or without anybody who serves, nothing is ended for so many more.
ABSENCE_SECONDS = 60.0
GRACE_SECONDS = 300.0
# Of all who serve, one writes that down so often.
PRESENCE_SECONDS = 10.0
BATCH = 50


def _ago(seconds: str) -> database_now:
    return database_now(-bindparam(seconds, type_=Float()))


# A moment ahead is none: the clock was set.
_IS_PRESENT: ColumnElement[bool] = Presence.until.between(_ago("absence"), database_now())
_STAY = update(Presence).values(
    since=case((_IS_PRESENT, Presence.since), else_=database_now()), until=database_now()
)
_COME = insert(Presence).values(id=1, since=database_now(), until=database_now())
_WAS_PRESENT = exists().where(_IS_PRESENT, Presence.since <= _ago("grace"))
_NOW = select(
    database_now(), _ago("default").label("long_ago"), _WAS_PRESENT.label("could_be_heard")
)
_COLUMNS = (Task.id, Task.user_id, Task.callback_url, Task.timeout)
# One select for each index, the one that has been silent for longest first. What somebody
# is writing to at this moment is not silent.
_SILENT_BY_DEFAULT: AnySelect = (
    select(*_COLUMNS)
    .where(CLAIMED, Task.heard_at < bindparam("long_ago", type_=Timestamp()))
    .order_by(Task.heard_at)
)
_SILENT_BY_TIMEOUT: AnySelect = (
    select(*_COLUMNS)
    .where(CLAIMED_WITH_TIMEOUT, Task.silent_at < bindparam("now", type_=Timestamp()))
    .order_by(Task.silent_at)
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


@again_on_conflict
def be_present() -> None:
    """Write down that agents can be heard at this moment, for all who may end their tasks."""
    with reading() as connection:
        fresh = select(Presence.id).where(_IS_PRESENT)
        if connection.scalar(fresh, {"absence": PRESENCE_SECONDS}) is not None:
            return
    with transaction() as connection:
        if connection.execute(_STAY, {"absence": ABSENCE_SECONDS}).rowcount == 0:
            connection.execute(_COME)


class Watch:
    """Watches over the claimed tasks, and knows for how long it and the service have done so.

    By the database's clock, which the silence is judged by as well: so it notices whatever
    kept agents from being heard, be it that the machine slept, that the clock was set, or
    that the database was away.
    """

    def __init__(self) -> None:
        self._watching_since = self._last_look = ""

    def end_silent(self) -> None:
        """End the tasks that have been silent for too long, if all have watched long enough."""
        default: float = current_app.config["TASK_TIMEOUT"]
        seconds = {"default": default, "absence": ABSENCE_SECONDS, "grace": GRACE_SECONDS}
        with reading() as connection:
            now, long_ago, could_be_heard = connection.execute(_NOW, seconds).one()
        if not self._has_watched(now) or not could_be_heard:
            return
        moments = {"now": now, "long_ago": long_ago}
        in_batches(lambda: _end_batch(_SILENT_BY_TIMEOUT, moments))
        if default > 0:
            in_batches(lambda: _end_batch(_SILENT_BY_DEFAULT, moments))

    def _has_watched(self, now: str) -> bool:
        gap = _seconds(self._last_look, now) if self._last_look else 0.0
        if not self._last_look or not 0 <= gap <= ABSENCE_SECONDS:
            self._watching_since = now
        self._last_look = now
        return _seconds(self._watching_since, now) >= GRACE_SECONDS


def _end_batch(silent: AnySelect, moments: dict[str, str]) -> bool:
    """End some of the tasks that are silent; returns whether there may be more."""
    default: float = current_app.config["TASK_TIMEOUT"]
    with transaction() as connection:
        locked = silent.limit(BATCH).with_for_update(skip_locked=True)
        tasks = connection.execute(locked, moments).all()
        # Taken here, as every end is: a list by end relies on that.
        now = stamps.now()
        for task in tasks:
            timeout = task.timeout if task.timeout is not None else default
            values = {"of_task_id": task.id, "message": _message(timeout), "at": now}
            connection.execute(_END, values)
            deliveries.owe_to_loop(connection, task, now)
    return len(tasks) == BATCH


def _message(timeout: float) -> str:
    units = ((3_600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next(each for each in units if timeout % each[0] == 0 or each[0] == 1)
    plural = "" if timeout == size else "s"
    return f"Nothing was heard from its agent for {timeout / size:g} {unit}{plural}"


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
