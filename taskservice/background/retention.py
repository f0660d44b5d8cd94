"""Retention: removes old finished tasks, and logs before that, in small transactions."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from flask import current_app
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    exists,
    func,
    literal,
    select,
    update,
)

from taskservice.background import sizes, sweep
from taskservice.background.batches import BATCH_SECONDS, CHORE_SECONDS, in_batches
from taskservice.contract.terms import PENDING
from taskservice.database import timestamps
from taskservice.database.models import WITH_OLD_LOG, Delivery, Task, User
from taskservice.database.rows import AnyRow, AnySelect
from taskservice.database.transactions import has_writer_queue, reading, transaction
from taskservice.database.types import Identifier, Timestamp
from taskservice.services.tasks import detach_log, remove

BATCH = 200
DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Bounds:
    """Tasks that ended before `tasks` are removed, and logs of tasks that ended before `logs`.

    None removes none.
    """

    tasks: str | None
    logs: str | None

    @classmethod
    def of_settings(cls, now: str) -> "Bounds":
        """The bounds that the settings give at the moment `now`."""
        return cls(_before(now, current_app.config["RETENTION_DAYS"]),
                   _before(now, current_app.config["LOG_RETENTION_DAYS"]))  # fmt: skip


@dataclass
class Removed:
    """The number of removed tasks, of logs of other tasks, and about how many bytes they had."""

    tasks: int = 0
    logs: int = 0
    bytes: int = 0


_BEFORE = bindparam("before", type_=Timestamp())
# A task with a pending webhook stays, with all that the webhook will contain.
_ENDED = and_(
    Task.finished_at < _BEFORE,
    ~exists().where(Delivery.task_id == Task.id, Delivery.state == PENDING),
)
# User by user, as the index of finished tasks is sorted.
_OLD_TASKS = and_(Task.user_id.in_(select(User.id)), _ENDED)
_OLD_LOGS = and_(WITH_OLD_LOG, _ENDED)
_STILL_OLD = select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier), _ENDED)
_LOCK = (
    select(Task.id)
    .where(Task.id == bindparam("task_id", type_=Identifier))
    .with_for_update(skip_locked=True)
)
_EMPTY_LOG = (
    update(Task)
    .where(Task.id == bindparam("of_task_id", type_=Identifier))
    .values(
        first_log=Task.log_count + 1,
        version=Task.version + 1,
        updated_at=bindparam("now", type_=Timestamp()),
    )
)


def count_prunable(bounds: Bounds) -> Removed:
    """What `prune_now` would remove, without removing it."""
    found = Removed()
    others = _OLD_LOGS
    if bounds.tasks is not None:
        found.tasks, found.bytes = _total(sizes.OF_TASK, _OLD_TASKS, bounds.tasks)
        others = and_(others, Task.finished_at >= bounds.tasks)
    if bounds.logs is not None:
        found.logs, size = _total(sizes.OF_LOG, others, bounds.logs)
        found.bytes += size
    return found


def prune(now: str) -> None:
    """Remove what is too old at `now` by the settings, for a few seconds at most.

    A reader of a removed log can read on until its lines are swept.
    """
    _Pruning(Bounds.of_settings(now)).run(CHORE_SECONDS)


def prune_now(bounds: Bounds) -> Removed:
    """Remove all that is too old, however long that takes; returns what was removed.

    The lines of its logs may be swept immediately, even while they are being read.
    """
    pruning = _Pruning(bounds, dropped_ago=sweep.SWEEP_AFTER_SECONDS, measures=True)
    pruning.run(inf)
    return pruning.removed


class _Pruning:
    """One pass over all that is too old."""

    def __init__(self, bounds: Bounds, dropped_ago: float = 0.0, measures: bool = False) -> None:
        self._bounds, self._dropped_ago, self._measures = bounds, dropped_ago, measures
        self.removed = Removed()

    def run(self, seconds: float) -> None:
        if self._bounds.tasks is not None:
            of_tasks = self._candidates(sizes.OF_TASK, _OLD_TASKS), self._bounds.tasks
            in_batches(partial(self._batch, *of_tasks, self._remove_task), seconds)
        if self._bounds.logs is not None:
            of_logs = self._candidates(sizes.OF_LOG, _OLD_LOGS), self._bounds.logs
            in_batches(partial(self._batch, *of_logs, self._drop_log), seconds)

    def _candidates(self, size: Any, old: ColumnElement[bool]) -> AnySelect:
        bytes_ = size if self._measures else literal(0)
        return select(Task.id, bytes_.label("bytes")).where(old).limit(BATCH)

    def _batch(
        self, candidates: AnySelect, before: str, remove_row: Callable[[Connection, AnyRow], bool]
    ) -> bool:
        """Call `remove_row` with some old tasks; returns whether there may be more.

        `remove_row` returns whether it is done with the task.
        """
        with reading() as connection:
            # Outside the write transaction, since measuring large tasks takes long.
            tasks = connection.execute(candidates, {"before": before}).all()
        until, done, is_complete = time.monotonic() + BATCH_SECONDS, 0, True
        with transaction() as connection:
            for task in tasks:
                if _is_still_old(connection, task.id, before):
                    is_complete &= remove_row(connection, task)
                    done += 1
                if time.monotonic() > until:
                    return True
        return not is_complete or (done > 0 and len(tasks) == BATCH)

    def _remove_task(self, connection: Connection, task: AnyRow) -> bool:
        if not remove(connection, task.id, self._dropped_ago):
            return False
        self.removed.tasks += 1
        self.removed.bytes += task.bytes
        return True

    def _drop_log(self, connection: Connection, task: AnyRow) -> bool:
        detach_log(connection, task.id, self._dropped_ago)
        connection.execute(_EMPTY_LOG, {"of_task_id": task.id, "now": timestamps.now()})
        self.removed.logs += 1
        self.removed.bytes += task.bytes
        return True


def _is_still_old(connection: Connection, task_id: str, before: str) -> bool:
    """Whether a task may be removed; it is then locked."""
    # On PostgreSQL the lock is a statement of its own: a statement that locks a row has read the
    # other tables before, and would miss a delivery that was just redelivered.
    if not has_writer_queue() and connection.scalar(_LOCK, {"task_id": task_id}) is None:
        return False
    return connection.scalar(_STILL_OLD, {"task_id": task_id, "before": before}) is not None


def _before(now: str, days: float) -> str | None:
    return timestamps.moved(now, -days * DAY_SECONDS) if days else None


def _total(size: Any, old: ColumnElement[bool], before: str) -> tuple[int, int]:
    """The number of old tasks, and about how many bytes they have."""
    with reading() as connection:
        total = select(func.count(), func.coalesce(func.sum(size), 0)).where(old)
        count, bytes_ = connection.execute(total, {"before": before}).one()
    return count, int(bytes_)
