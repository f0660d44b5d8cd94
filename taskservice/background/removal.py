"""Retention: removes old finished tasks, and logs before that, in small transactions."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from flask import current_app
from sqlalchemy import (
    BindParameter,
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
from taskservice.background.batches import CHORE_SECONDS, BatchSize, in_batches
from taskservice.database import clock
from taskservice.database.models import WITH_OLD_LOG, Delivery, Task, User
from taskservice.database.transactions import has_writer_queue, reading, transaction
from taskservice.database.types import AnyRow, AnySelect, Timestamp
from taskservice.services.tasks import detach_logs, remove
from taskservice.terms import PENDING

# How many old tasks are found at once, for several batches.
CANDIDATES = 2_000
DAY_SECONDS = 86_400.0


class Bounds(NamedTuple):
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


RemoveRows = Callable[[Connection, Sequence[AnyRow]], bool]

_BEFORE = bindparam("before", type_=Timestamp())
# A task with a pending webhook stays, with all that the webhook will contain.
_ENDED = and_(
    Task.finished_at < _BEFORE,
    ~exists().where(Delivery.task_id == Task.id, Delivery.state == PENDING),
)
# User by user, as the index of finished tasks is sorted.
_OLD_TASKS = and_(Task.user_id.in_(select(User.id)), _ENDED)
_OLD_LOGS = and_(WITH_OLD_LOG, _ENDED)
_IDS: BindParameter[Any] = bindparam("task_ids", expanding=True)
_LOCK = select(Task.id).where(Task.id.in_(_IDS)).with_for_update(skip_locked=True)
_EMPTY_LOG = (
    update(Task)
    .where(Task.id.in_(_IDS))
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


def prune(now: str) -> bool:
    """Remove what is too old at `now` by the settings, for a few seconds at most.

    Returns whether more may be left. A reader of a removed log can read on until its lines are
    swept.
    """
    return _Pruning(Bounds.of_settings(now)).run(CHORE_SECONDS)


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

    def run(self, seconds: float) -> bool:
        """Remove tasks, then logs, for at most `seconds` each; returns whether more may be left."""
        has_more = False
        if self._bounds.tasks is not None:
            of_tasks = self._old(sizes.OF_TASK, _OLD_TASKS, self._bounds.tasks, self._remove_tasks)
            has_more |= in_batches(of_tasks.next, seconds)
        if self._bounds.logs is not None:
            of_logs = self._old(sizes.OF_LOG, _OLD_LOGS, self._bounds.logs, self._drop_logs)
            has_more |= in_batches(of_logs.next, seconds)
        return has_more

    def _old(
        self, size: Any, old: ColumnElement[bool], before: str, remove_rows: RemoveRows
    ) -> "TaskBatches":
        bytes_ = size if self._measures else literal(0)
        candidates = select(Task.id, bytes_.label("bytes")).where(old)
        return TaskBatches(candidates, _ENDED, {"before": before}, remove_rows)

    def _remove_tasks(self, connection: Connection, tasks: Sequence[AnyRow]) -> bool:
        if not remove(connection, [task.id for task in tasks], self._dropped_ago):
            return False
        self.removed.tasks += len(tasks)
        self.removed.bytes += sum(task.bytes for task in tasks)
        return True

    def _drop_logs(self, connection: Connection, tasks: Sequence[AnyRow]) -> bool:
        ids = [task.id for task in tasks]
        detach_logs(connection, ids, self._dropped_ago)
        connection.execute(_EMPTY_LOG, {"task_ids": ids, "now": clock.now()})
        self.removed.logs += len(tasks)
        self.removed.bytes += sum(task.bytes for task in tasks)
        return True


class TaskBatches:
    """Calls `remove_rows` with some tasks of `candidates` at a time, in one transaction each.

    Each must still meet `condition`; `values` are the parameters of both. `remove_rows` returns
    whether it is done with these.
    """

    def __init__(
        self,
        candidates: AnySelect,
        condition: ColumnElement[bool],
        values: Mapping[str, Any],
        remove_rows: RemoveRows,
    ) -> None:
        self._candidates = candidates.limit(CANDIDATES)
        self._still = select(Task.id).where(Task.id.in_(_IDS), condition)
        self._values, self._remove_rows = values, remove_rows
        self._tasks: Sequence[AnyRow] = ()
        self._size = BatchSize(most=CANDIDATES)
        self._has_done = True

    def next(self) -> bool:
        """Do a batch; returns whether there may be more."""
        if not self._tasks:
            # Tasks that are locked now are left for another call.
            self._tasks = self._read() if self._has_done else ()
            self._has_done = False
        if not self._tasks:
            return False
        batch = self._tasks[: self._size.rows]
        with transaction() as connection:
            began = time.monotonic()
            locked = self._lock(connection, batch)
            is_done = not locked or self._remove_rows(connection, locked)
        self._size.adapt(len(batch), time.monotonic() - began)
        self._has_done |= bool(locked)
        if is_done:
            self._tasks = self._tasks[len(batch) :]
        return True

    def _read(self) -> Sequence[AnyRow]:
        # Outside the write transaction, since measuring large tasks takes long.
        with reading() as connection:
            return connection.execute(self._candidates, self._values).all()

    def _lock(self, connection: Connection, tasks: Sequence[AnyRow]) -> list[AnyRow]:
        """Those of the tasks that may be removed; they are then locked."""
        ids: Sequence[str] = [task.id for task in tasks]
        # On PostgreSQL the lock is a statement of its own: a statement that locks a row has read
        # the other tables before, and would miss a delivery that was just redelivered.
        if not has_writer_queue():
            ids = connection.scalars(_LOCK, {"task_ids": ids}).all()
        found = set(connection.scalars(self._still, {**self._values, "task_ids": ids}))
        return [task for task in tasks if task.id in found]


def _before(now: str, days: float) -> str | None:
    return clock.moved(now, -days * DAY_SECONDS) if days else None


def _total(size: Any, old: ColumnElement[bool], before: str) -> tuple[int, int]:
    """The number of old tasks, and about how many bytes they have."""
    with reading() as connection:
        total = select(func.count(), func.coalesce(func.sum(size), 0)).where(old)
        count, bytes_ = connection.execute(total, {"before": before}).one()
    return count, int(bytes_)
