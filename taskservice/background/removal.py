"""Removes users, old tasks and old logs in short transactions, which block writers only briefly."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import Connection, and_, bindparam, delete, exists, func, select, update

from taskservice import resources
from taskservice.database import clock, name_index
from taskservice.database.models import (
    WITH_OLD_LOG,
    Agent,
    CallbackSecret,
    Delivery,
    Log,
    LogChunk,
    Task,
    User,
)
from taskservice.database.transactions import reading, transaction, write_lock
from taskservice.database.types import db, time_from_now
from taskservice.services import tasks, users
from taskservice.terms import PENDING

# The maximum numbers of rows that one transaction removes, since other writers wait for its end. A
# task with more than DELIVERIES_PER_BATCH deliveries is nevertheless removed in one transaction.
TASKS_PER_BATCH = 100
DELIVERIES_PER_BATCH = 1_000
CHUNKS_PER_BATCH = 1_000
JOB_SECONDS = 1.9  # the time limit of a job, so that it does not delay the other jobs


def in_batches(batch: Callable[[], bool], seconds: float = JOB_SECONDS) -> bool:
    """Call `batch` until it returns false, `seconds` have passed or the process stops.

    Returns whether work may remain.
    """
    until = time.monotonic() + seconds
    began = time.monotonic()
    while batch():
        # Pause for as long as the batch took, so that other writers wait for at most one batch.
        took = time.monotonic() - began
        if time.monotonic() > until or resources.stopping.wait(took):
            return True
        began = time.monotonic()
    return False


def index_names(seconds: float = JOB_SECONDS) -> bool:
    """Update the index of task names; returns whether unindexed names may remain."""
    return in_batches(_index_batch, seconds)


def _index_batch() -> bool:
    with reading() as connection:
        is_behind = name_index.is_behind(connection)
    if is_behind:
        with transaction() as connection:
            name_index.update(connection)
    return is_behind


# A response may still be streaming a log that was dropped, so its lines are removed later.
SWEEP_AFTER_SECONDS = 60

_DROPPED = (
    select(Log.id)
    .where(Log.dropped_at < time_from_now(-SWEEP_AFTER_SECONDS))
    .order_by(Log.dropped_at)
    .limit(TASKS_PER_BATCH)
)
_OF_LOG = LogChunk.log_id == bindparam("log_id")
_FIRST_CHUNKS = (
    select(LogChunk.last).where(_OF_LOG).order_by(LogChunk.last).limit(bindparam("limit"))
)
# The range has two bounds, since PostgreSQL would read the whole table for a subquery, or for a
# range with only an upper bound.
_DELETE_CHUNKS = delete(LogChunk).where(
    _OF_LOG, LogChunk.last.between(bindparam("first"), bindparam("last"))
)
_DELETE_LOG = delete(Log).where(Log.id == bindparam("log_id"))


def sweep(seconds: float = JOB_SECONDS) -> bool:
    """Remove the lines of logs that were dropped over a minute ago; returns whether more remain."""
    return in_batches(_sweep_batch, seconds)


def _sweep_batch() -> bool:
    with reading() as connection:
        log_ids = connection.scalars(_DROPPED).all()
    if not log_ids:
        return False
    with transaction() as connection:
        limit = CHUNKS_PER_BATCH
        for log_id in log_ids:
            of_log = {"log_id": log_id}
            chunks = connection.scalars(_FIRST_CHUNKS, {**of_log, "limit": limit}).all()
            if chunks:
                first_last = {"first": chunks[0], "last": chunks[-1]}
                connection.execute(_DELETE_CHUNKS, of_log | first_last)
            limit -= len(chunks)
            if not limit:
                break
            connection.execute(_DELETE_LOG, of_log)
    return True


SPARE_BYTES = 1024 * 1024  # free space that remains in the file for the next writes
STEP_PAGES = 250  # the number of pages that a step releases
# A longer write-ahead log is truncated, since SQLite reuses the log file but does not shorten it.
LARGE_LOG_BYTES = 8 * 1024 * 1024
CHECKPOINT_MILLISECONDS = 50  # how long a checkpoint waits for readers of the log


def shrink(seconds: float = JOB_SECONDS) -> bool:
    """Return unused space of SQLite's files to the file system; returns whether more may remain."""
    if db.engine.dialect.name != "sqlite":
        return False
    pooled = db.engine.raw_connection()
    connection: Any = pooled.driver_connection
    spare_pages = STEP_PAGES + SPARE_BYTES // _pragma(connection, "page_size")
    is_shorter = False

    def shorten() -> bool:
        """Release a batch of free pages; returns whether there are more."""
        nonlocal is_shorter
        if _pragma(connection, "freelist_count") <= spare_pages:
            return False
        with write_lock():
            # `execute` would run only the first step, which releases a single page.
            connection.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")
        is_shorter = True
        return True

    try:
        has_more = in_batches(shorten, seconds)
        log = Path(f"{db.engine.url.database}-wal")
        if is_shorter or (log.exists() and log.stat().st_size > LARGE_LOG_BYTES):
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MILLISECONDS}")
            # Move the log into the database, and truncate the log if no reader uses it. Hold the
            # write lock, since SQLite before 3.51.3 can corrupt the database if another connection
            # writes at the end of a checkpoint.
            with write_lock():
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        # The busy timeout was changed, so the connection must not return to the pool.
        pooled.invalidate()
    return has_more


def _pragma(connection: Any, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


# Retention: finished tasks are removed after RETENTION_DAYS, and their logs after
# LOG_RETENTION_DAYS.

DAY_SECONDS = 86_400.0


def bounds(now: str) -> tuple[str | None, str | None]:
    """Return two cutoff times: for the removal of old tasks, and for the removal of old logs.

    A cutoff time is None if its setting is 0.
    """
    days = (current_app.config[name] for name in ("RETENTION_DAYS", "LOG_RETENTION_DAYS"))
    of_tasks, of_logs = (
        clock.moved(now, -count * DAY_SECONDS) if count else None for count in days
    )
    return of_tasks, of_logs


# A task with a pending webhook is retained with its log, since the webhook contains both.
_ENDED = and_(
    Task.finished_at < bindparam("before"),
    ~exists().where(Delivery.task_id == Task.id, Delivery.state == PENDING),
)
# The condition on the user lets the database use an index whose first column is the user.
_OLD_TASKS = and_(Task.user_id.in_(select(User.id)), _ENDED)
_OLD_LOGS = and_(WITH_OLD_LOG, _ENDED)
_AMONG = Task.id.in_(bindparam("task_ids", expanding=True))
_LOCK = select(Task.id).where(_AMONG).with_for_update(skip_locked=True)
_DELIVERIES = (
    select(Delivery.task_id, func.count().label("deliveries"))
    .where(Delivery.task_id.in_(bindparam("task_ids", expanding=True)))
    .group_by(Delivery.task_id)
)
_EMPTY_LOG = (
    update(Task)
    .where(_AMONG)
    .values(first_log=Task.log_count + 1, version=Task.version + 1, updated_at=bindparam("now"))
)


def count_prunable(tasks_before: str | None, logs_before: str | None) -> list[int]:
    """The numbers of tasks and logs that `prune` would remove."""
    others = and_(_OLD_LOGS, Task.finished_at >= tasks_before) if tasks_before else _OLD_LOGS
    return [_count(_OLD_TASKS, tasks_before), _count(others, logs_before)]


def _count(old: Any, before: str | None) -> int:
    if before is None:
        return 0
    with reading() as connection:
        count = select(func.count()).select_from(Task).where(old)
        return connection.scalar(count, {"before": before}) or 0


def prune(
    tasks_before: str | None,
    logs_before: str | None,
    seconds: float = JOB_SECONDS,
    dropped_ago: float = 0.0,
) -> tuple[list[int], bool]:
    """Remove old tasks, and then the logs of other tasks, each for at most `seconds`.

    Returns the numbers of tasks and logs that were removed, and whether more may remain. With a
    `dropped_ago` of SWEEP_AFTER_SECONDS, the next `sweep` removes the lines of the logs.
    """

    def drop_logs(connection: Connection, task_ids: Sequence[str]) -> None:
        tasks.detach_logs(connection, task_ids, dropped_ago)
        connection.execute(_EMPTY_LOG, {"task_ids": task_ids, "now": clock.now()})

    remove = partial(tasks.remove, logs_dropped_ago=dropped_ago)
    steps = (_OLD_TASKS, tasks_before, remove), (_OLD_LOGS, logs_before, drop_logs)
    done = [
        _in_task_batches(condition, {"before": before}, remove, seconds) if before else (0, False)
        for condition, before, remove in steps
    ]
    return [count for count, _ in done], any(is_left for _, is_left in done)


def _in_task_batches(
    condition: Any,
    values: Mapping[str, Any],
    remove: Callable[[Connection, Sequence[str]], None],
    seconds: float = inf,
) -> tuple[int, bool]:
    """Call `remove` with batches of tasks that meet `condition`.

    Returns the number of these tasks, and whether more may remain.
    """
    fitting = select(Task.id).where(condition)
    count = 0

    def batch() -> bool:
        nonlocal count
        with reading() as connection:
            old = connection.scalars(fitting.limit(TASKS_PER_BATCH), values).all()
            rows = connection.execute(_DELIVERIES, {"task_ids": old}).all()
        if not old:
            return False
        # Limit the number of deliveries too, since each event of a task has a delivery for each
        # notified hook.
        counts = {row.task_id: row.deliveries for row in rows}
        totals = accumulate(counts.get(task_id, 0) for task_id in old)
        old = old[: max(1, sum(total <= DELIVERIES_PER_BATCH for total in totals))]
        with transaction() as connection:
            # Lock the tasks in a separate statement before testing the condition again: on
            # PostgreSQL, one statement that does both could miss a delivery that becomes pending
            # before the task is locked.
            locked = connection.scalars(_LOCK, {"task_ids": old}).all()
            among = {**values, "task_ids": locked}
            task_ids = connection.scalars(fitting.where(_AMONG), among).all()
            remove(connection, task_ids)
        count += len(task_ids)
        return bool(task_ids)

    has_more = in_batches(batch, seconds)
    return count, has_more


PAUSE_SECONDS = 0.1  # the pause if other requests have locked the remaining tasks


def remove_user(name: str, countdown: Iterable[object] = ()) -> int:
    """Remove a user with all of the user's data; returns the number of removed tasks.

    The keys remain valid until `countdown` ends, so that clients notice that their tasks are
    deleted, and stop the programs. No webhook is sent, not even for tasks that clients start in
    this time. Another call continues an interrupted removal. Raises 404.
    """
    with transaction() as connection:
        user_id = users.get_id(connection, name)
        users.lock(connection, user_id)
        # Without a secret, `require_lease` lets no delivery of the user be sent.
        connection.execute(delete(CallbackSecret).where(CallbackSecret.user_id == user_id))
    is_of_user = Task.user_id == user_id
    # Programs run for unfinished tasks only, and the other tasks may be very many.
    count = _remove_tasks(and_(is_of_user, Task.finished_at.is_(None)))
    count += _remove_tasks(is_of_user)
    for _ in countdown:
        count += _remove_tasks(is_of_user)
    batch = select(Task.id).where(is_of_user).limit(TASKS_PER_BATCH)
    while True:
        # Remove the log lines before the user: if the process is killed here, the user still
        # exists, so the removal can be repeated.
        _sweep_all()
        with transaction() as connection:
            # These locks prevent new tasks, agents and keys. Lock the agents before the user, in
            # the same order as the foreign keys of a new task.
            agents = select(Agent.id).where(Agent.user_id == user_id)
            connection.execute(agents.with_for_update())
            users.lock(connection, user_id)
            # Skip locked tasks: waiting for a task while the user is locked could cause a deadlock.
            unlocked = connection.scalars(batch.with_for_update(skip_locked=True)).all()
            tasks.remove(connection, unlocked, SWEEP_AFTER_SECONDS)
            count += len(unlocked)
            if connection.scalar(batch) is None:
                # The foreign keys also delete the agents, keys and callback secrets.
                connection.execute(delete(User).where(User.id == user_id))
                break
        resources.stopping.wait(PAUSE_SECONDS)
        count += _remove_tasks(is_of_user)
    _sweep_all()
    shrink(inf)
    return count


def _remove_tasks(condition: Any) -> int:
    """Remove the tasks of a user that were started before this call; returns their number."""
    # Without this limit, the removal might never end while agents create tasks.
    until_now = and_(condition, Task.id <= clock.new_id())
    remove = partial(tasks.remove, logs_dropped_ago=SWEEP_AFTER_SECONDS)
    return _in_task_batches(until_now, {}, remove)[0]


def _sweep_all() -> None:
    """Remove the log lines of removed tasks, and the names of removed tasks from the index."""
    index_names(inf)
    sweep(inf)
