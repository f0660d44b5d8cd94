"""Removes what is too old, or of a deleted user, in short transactions between other writes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from flask import current_app
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    select,
    update,
)

from taskservice import resources
from taskservice.database import clock, name_index
from taskservice.database.models import (
    WITH_OLD_LOG,
    Agent,
    Attempt,
    Delivery,
    Log,
    LogChunk,
    LogWriter,
    Task,
    User,
)
from taskservice.database.transactions import has_writer_queue, reading, transaction, writer_turn
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    Timestamp,
    byte_length,
    db,
    moment_from_now,
)
from taskservice.services import users
from taskservice.services.tasks import detach_logs, remove
from taskservice.terms import PENDING

# Long work in short transactions, with pauses for other writers.

# The length of a transaction that removes many rows. Other writers wait for it.
BATCH_SECONDS = 0.03
# The time of one call in a round. A round of 20 s has eight calls.
CHORE_SECONDS = 1.9
# The pause after a batch, as a part of its time, where writers do not take turns.
POSTGRESQL_PAUSE = 0.25


class BatchSize:
    """How many rows or pages a batch takes to last about BATCH_SECONDS, learnt from the last one.

    A row of a large database on a slow disk takes a hundred times as long as of a small one.
    """

    def __init__(self, most: int) -> None:
        self.rows = 20
        self._most = most

    def adapt(self, rows: int, seconds: float) -> None:
        """Learn from the last batch: its number of rows, and its time including the commit."""
        if seconds > BATCH_SECONDS:
            self.rows = max(1, int(rows * BATCH_SECONDS / seconds))
        elif 2 * rows > self.rows and seconds < BATCH_SECONDS / 2:
            self.rows = min(2 * rows, self._most)


def in_batches(batch: Callable[[], bool], seconds: float = CHORE_SECONDS) -> bool:
    """Call `batch`, a short transaction, until it returns False because nothing is left.

    After each batch it pauses for as long as the batch took, so that writers wait for one batch
    at most; on PostgreSQL, where they do not wait for it, for a part of that. It ends early after
    `seconds`, or when the process begins to stop; returns whether it did, so that more may be left.
    """
    until = time.monotonic() + seconds
    pause = 1.0 if has_writer_queue() else POSTGRESQL_PAUSE
    began = time.monotonic()
    while batch():
        took = time.monotonic() - began
        if time.monotonic() > until or resources.stopping.wait(pause * took):
            return True
        began = time.monotonic()
    return False


# Brings the index for parts of names up to date.


def index_names(seconds: float = CHORE_SECONDS) -> bool:
    """Add the names of new tasks, and remove those of deleted ones, for at most `seconds`.

    Returns whether more may be left.
    """
    return in_batches(_index_batch, seconds)


def _index_batch() -> bool:
    with reading() as connection:
        is_behind = name_index.is_behind(connection)
    if is_behind:
        with transaction() as connection:
            name_index.update(connection)
    return is_behind


# Removes the lines of dropped logs, in small batches.

# How many dropped logs are found at once.
LOGS = 500
# How many chunks one transaction removes at most.
MAX_CHUNKS = 2_000
# The answer to a deletion may still be streaming the log that it dropped.
SWEEP_AFTER_SECONDS = 60

_SOME_CHUNKS = (
    select(LogChunk.last).where(LogChunk.log_id == Log.id).limit(MAX_CHUNKS + 1).correlate(Log)
)
_DROPPED = (
    select(Log.id, select(func.count()).select_from(_SOME_CHUNKS.subquery()).label("chunks"))
    .where(Log.dropped_at < moment_from_now(-SWEEP_AFTER_SECONDS))
    .order_by(Log.dropped_at)
    .limit(LOGS)
)
_LOG_IDS: BindParameter[Any] = bindparam("log_ids", expanding=True)
_DELETE_LOGS = delete(Log).where(Log.id.in_(_LOG_IDS))
_DELETE_CHUNKS = delete(LogChunk).where(LogChunk.log_id.in_(_LOG_IDS))
# Both statements on a long log start after what was removed before: the databases keep deleted
# entries for a while, and PostgreSQL reads the whole table if it expects to find many rows.
_AFTER = (LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
_NEXT_CHUNKS = (
    select(LogChunk.last).where(*_AFTER).order_by(LogChunk.last).limit(bindparam("limit"))
)
_LAST_OF_NEXT = select(func.max(_NEXT_CHUNKS.subquery().c.last))
_DELETE_NEXT = delete(LogChunk).where(*_AFTER, LogChunk.last <= bindparam("last"))


def sweep(seconds: float = CHORE_SECONDS) -> bool:
    """Remove the lines of logs that were dropped a minute ago, for at most `seconds`.

    Returns whether there may be more.
    """
    return in_batches(_Sweep().next_batch, seconds)


class _Sweep:
    """One pass over the dropped logs, the oldest first."""

    def __init__(self) -> None:
        self._size = BatchSize(most=MAX_CHUNKS)
        self._logs: Sequence[AnyRow] = ()
        # The last chunk that was removed of the first of these logs.
        self._after = 0

    def next_batch(self) -> bool:
        """Remove some logs, or some chunks of a long one; returns whether there may be more."""
        if not self._logs:
            with reading() as connection:
                self._logs = connection.execute(_DROPPED).all()
        if not self._logs:
            return False
        with transaction() as connection:
            began = time.monotonic()
            is_long = self._after or self._logs[0].chunks > self._size.rows
            rows = self._shorten_first(connection) if is_long else self._remove_some(connection)
        self._size.adapt(rows, time.monotonic() - began)
        return True

    def _remove_some(self, connection: Connection) -> int:
        """Remove the first logs that have few chunks together; returns how many rows those were."""
        totals = accumulate(log.chunks + 1 for log in self._logs)
        count = max(1, sum(total <= self._size.rows for total in totals))
        log_ids = {"log_ids": [log.id for log in self._logs[:count]]}
        self._logs = self._logs[count:]
        chunks = connection.execute(_DELETE_CHUNKS, log_ids).rowcount
        return chunks + connection.execute(_DELETE_LOGS, log_ids).rowcount

    def _shorten_first(self, connection: Connection) -> int:
        """Remove chunks of the first log, and at last the log itself; returns how many rows."""
        log_id, limit = self._logs[0].id, self._size.rows
        here = {"log_id": log_id, "after": self._after}
        last = connection.scalar(_LAST_OF_NEXT, {**here, "limit": limit})
        if last is None:
            connection.execute(_DELETE_LOGS, {"log_ids": [log_id]})
            self._logs, self._after = self._logs[1:], 0
            return 1
        self._after = last
        return connection.execute(_DELETE_NEXT, {**here, "last": last}).rowcount


# Gives the free space of an SQLite file back to the disk, a little at a time.

# Free space that stays in the file for the next writes.
SPARE_BYTES = 1024 * 1024
# Pages that one step gives back at most.
STEP_PAGES = 250
# SQLite empties its write-ahead log by itself, but does not shorten the file.
LARGE_LOG_BYTES = 8 * 1024 * 1024
# How long writers wait for the last reader of the write-ahead log.
CHECKPOINT_MILLISECONDS = 50


def shrink(seconds: float = CHORE_SECONDS) -> bool:
    """Shorten SQLite's files by their free space, for at most `seconds`; none on PostgreSQL.

    Returns whether more may be left.
    """
    if not has_writer_queue():
        return False
    pooled = db.engine.raw_connection()
    connection: Any = pooled.driver_connection
    spare_pages = STEP_PAGES + SPARE_BYTES // _pragma(connection, "page_size")
    step = BatchSize(most=STEP_PAGES)
    is_shorter = False

    def shorten() -> bool:
        """Give back some free pages; returns whether there are more."""
        nonlocal is_shorter
        if _pragma(connection, "freelist_count") <= spare_pages:
            return False
        pages = step.rows
        with writer_turn():
            began = time.monotonic()
            # `execute` would run only the first step, and give back a single page.
            connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        step.adapt(pages, time.monotonic() - began)
        is_shorter = True
        return True

    try:
        has_more = in_batches(shorten, seconds)
        log = Path(f"{db.engine.url.database}-wal")
        if is_shorter or (log.exists() and log.stat().st_size > LARGE_LOG_BYTES):
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MILLISECONDS}")
            # Moves the log into the database, and truncates it if no reader uses it. With the
            # writer turn: SQLite before 3.51.3 can corrupt a database when another connection
            # writes at the very end of a checkpoint.
            with writer_turn():
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        # Its busy timeout was changed, so it must not return to the pool.
        pooled.invalidate()
    return has_more


def _pragma(connection: Any, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


# Estimates the bytes on disk of a task, with its log, deliveries and index entries.

# Bytes of a row without its longer texts, in its table and all indexes; measured on SQLite, and
# about the same on PostgreSQL.
TASK = 760
DELIVERY = 260
ATTEMPT = 120
LOG = 80
CHUNK = 30
WRITER = 100


def _sum(size: Any, *of_task: ColumnElement[bool]) -> ColumnElement[int]:
    total = select(func.coalesce(func.sum(size), 0)).where(*of_task)
    return total.correlate(Task).scalar_subquery()


_TEXTS = (Task.name, Task.name_folded, Task.input, Task.output)
_DELIVERIES = _sum(
    DELIVERY + byte_length(Delivery.callback_url) + byte_length(Delivery.host),
    Delivery.task_id == Task.id,
)
_ATTEMPTS = _sum(
    ATTEMPT + byte_length(Attempt.message),
    Attempt.delivery_id == Delivery.id,
    Delivery.task_id == Task.id,
)
_WRITERS = _sum(WRITER + byte_length(LogWriter.writer), LogWriter.task_id == Task.id)
_CHUNKS = _sum(CHUNK, LogChunk.log_id == Log.id, Log.task_id == Task.id)

OF_LOG = LOG + Task.log_bytes + _CHUNKS
OF_TASK = (
    TASK
    + sum(byte_length(text) for text in _TEXTS)
    + _WRITERS
    + _DELIVERIES
    + _ATTEMPTS
    + case((Task.first_log <= Task.log_count, OF_LOG), else_=0)
)


# Retention: removes old finished tasks, and logs before that, in small transactions.

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
        found.tasks, found.bytes = _total(OF_TASK, _OLD_TASKS, bounds.tasks)
        others = and_(others, Task.finished_at >= bounds.tasks)
    if bounds.logs is not None:
        found.logs, size = _total(OF_LOG, others, bounds.logs)
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
    pruning = _Pruning(bounds, dropped_ago=SWEEP_AFTER_SECONDS, measures=True)
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
            of_tasks = self._old(OF_TASK, _OLD_TASKS, self._bounds.tasks, self._remove_tasks)
            has_more |= in_batches(of_tasks.next, seconds)
        if self._bounds.logs is not None:
            of_logs = self._old(OF_LOG, _OLD_LOGS, self._bounds.logs, self._drop_logs)
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


# Removes a user with all that belongs to the user.

# How many tasks the last transaction removes at most.
LAST_TASKS = 100
PAUSE_SECONDS = 0.1

_USER_ID = bindparam("user_id", type_=Identifier)
_of_user = Task.user_id == _USER_ID
# Those that are started meanwhile would keep it from ever coming to an end.
_until_now = and_(_of_user, Task.id <= bindparam("newest", type_=Identifier))
_TASKS = select(Task.id, literal(0).label("bytes")).where(_until_now)
_LOCK_AGENTS = select(Agent.id).where(Agent.user_id == _USER_ID).with_for_update()
_LAST = select(Task.id).where(_of_user).limit(LAST_TASKS + 1)
_LOCK_LAST = _LAST.with_for_update(skip_locked=True)
# The agents, keys and callback secrets follow.
_DELETE_USER = delete(User).where(User.id == bindparam("of_user_id", type_=Identifier))


def remove_user(name: str) -> int:
    """Remove a user with all that belongs to the user; returns the number of tasks.

    The tasks come first, since an agent stops when its task is gone. Keys work until no task is
    left, or until all are gone that were there at first and too many have been started meanwhile.
    Interrupted and repeated, it continues. Raises 404.
    """
    with reading() as connection:
        user_id = users.get_id(connection, name)
    count = 0

    def remove_tasks(connection: Connection, tasks: Sequence[AnyRow]) -> bool:
        nonlocal count
        is_done = remove(connection, [task.id for task in tasks], SWEEP_AFTER_SECONDS)
        count += len(tasks) * is_done
        return is_done

    is_removed = False
    while not is_removed:
        values = {"user_id": user_id, "newest": clock.new_id()}
        in_batches(TaskBatches(_TASKS, _until_now, values, remove_tasks).next, inf)
        # While the user exists: a command that is killed meanwhile can be repeated.
        _sweep_all()
        with transaction() as connection:
            is_removed = _remove_last(connection, user_id, remove_tasks)
        if not is_removed:
            # Until other requests have released the tasks that they change.
            resources.stopping.wait(PAUSE_SECONDS)
    _sweep_all()
    shrink(inf)
    return count


def _sweep_all() -> None:
    """Remove the lines of the removed tasks, and their names in the index."""
    index_names(inf)
    sweep(inf)


def _remove_last(connection: Connection, user_id: str, remove_tasks: RemoveRows) -> bool:
    """Remove the user, with the tasks that were started meanwhile if they are few."""
    values = {"user_id": user_id}
    # From here on no task, agent or key is added. The order is that of the foreign keys of
    # tasks, which lock both when a task is started.
    connection.execute(_LOCK_AGENTS, values)
    users.lock(connection, user_id)
    tasks = connection.execute(_LAST, values).all()
    # To wait for a task with the user locked could be a deadlock.
    locked = connection.execute(_LOCK_LAST, values).all()
    if len(tasks) > LAST_TASKS:
        # They are started faster than they are removed.
        users.revoke_keys_of(connection, user_id)
        return False
    if len(locked) < len(tasks) or (tasks and not remove_tasks(connection, tasks)):
        return False
    connection.execute(_DELETE_USER, {"of_user_id": user_id})
    return True
