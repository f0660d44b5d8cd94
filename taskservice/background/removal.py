"""Removes old tasks and logs, and users, in short transactions, so that other writers can write."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import Connection, and_, bindparam, delete, exists, func, select, update

from taskservice import resources
from taskservice.database import clock, name_index
from taskservice.database.models import WITH_OLD_LOG, Agent, Delivery, Log, LogChunk, Task, User
from taskservice.database.transactions import reading, transaction, write_lock
from taskservice.database.types import db, time_from_now
from taskservice.services import tasks, users
from taskservice.terms import PENDING

# The maximum number of rows that a transaction removes, while other writers wait. Only a single
# task with more deliveries than DELIVERIES_PER_BATCH exceeds this limit.
TASKS_PER_BATCH = 100
DELIVERIES_PER_BATCH = 1_000
CHUNKS_PER_BATCH = 1_000
JOB_SECONDS = 1.9  # the maximum time of a job in a round, so that it does not delay other jobs


def in_batches(batch: Callable[[], bool], seconds: float = JOB_SECONDS) -> bool:
    """Call `batch` until it returns false.

    Returns true if work may remain, since `seconds` have passed or the process stops.
    """
    until = time.monotonic() + seconds
    began = time.monotonic()
    while batch():
        # A pause for as long as the batch took, so that other writers wait for at most one batch.
        took = time.monotonic() - began
        if time.monotonic() > until or resources.stopping.wait(took):
            return True
        began = time.monotonic()
    return False


def index_names(seconds: float = JOB_SECONDS) -> bool:
    """Bring the index of names up to date; returns whether more names may remain."""
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
# A range with both bounds, since PostgreSQL would read the whole table for a subquery, or for a
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
# SQLite reuses its write-ahead log, but does not shorten the file.
LARGE_LOG_BYTES = 8 * 1024 * 1024
CHECKPOINT_MILLISECONDS = 50  # how long writers wait for the last reader of the log


def shrink(seconds: float = JOB_SECONDS) -> bool:
    """Shorten SQLite's files by their free space; returns whether free space may remain."""
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
            # Moves the log into the database, and truncates the log if no reader uses it. The write
            # lock is held, since SQLite before 3.51.3 can corrupt a database that is written when a
            # checkpoint ends.
            with write_lock():
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        # The busy timeout was changed, so the connection must not return to the pool.
        pooled.invalidate()
    return has_more


def _pragma(connection: Any, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


# Retention: removes old finished tasks, and the logs of finished tasks earlier.

DAY_SECONDS = 86_400.0


def bounds(now: str) -> tuple[str | None, str | None]:
    """The times before which finished tasks, and the logs of finished tasks, are removed."""
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
# The condition on the user lets the database read the index of finished tasks, user by user.
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
    """Remove tasks that meet `condition`; returns their number, and whether more may remain."""
    fitting = select(Task.id).where(condition)
    count = 0

    def batch() -> bool:
        nonlocal count
        with reading() as connection:
            old = connection.scalars(fitting.limit(TASKS_PER_BATCH), values).all()
            rows = connection.execute(_DELIVERIES, {"task_ids": old}).all()
        if not old:
            return False
        # A task has a delivery for each of its events and each hook that it notifies.
        counts = {row.task_id: row.deliveries for row in rows}
        totals = accumulate(counts.get(task_id, 0) for task_id in old)
        old = old[: max(1, sum(total <= DELIVERIES_PER_BATCH for total in totals))]
        with transaction() as connection:
            # On PostgreSQL, the lock needs a separate statement: a statement that waits for the
            # lock of a row has already read other tables, and would miss a delivery that was just
            # redelivered.
            locked = connection.scalars(_LOCK, {"task_ids": old}).all()
            among = {**values, "task_ids": locked}
            task_ids = connection.scalars(fitting.where(_AMONG), among).all()
            remove(connection, task_ids)
        count += len(task_ids)
        return bool(task_ids)

    has_more = in_batches(batch, seconds)
    return count, has_more


PAUSE_SECONDS = 0.1  # the pause if other requests have locked the remaining tasks


def remove_user(name: str) -> int:
    """Remove a user with all of the user's data; returns the number of removed tasks.

    The tasks are removed first, so that agents can notice that their tasks are deleted, and stop.
    Keys remain valid until no task is left. After an interruption, another call continues. Raises
    404.
    """
    with reading() as connection:
        user_id = users.get_id(connection, name)
    is_of_user = Task.user_id == user_id
    batch = select(Task.id).where(is_of_user).limit(TASKS_PER_BATCH)
    remove = partial(tasks.remove, logs_dropped_ago=SWEEP_AFTER_SECONDS)
    count = 0
    while True:
        # Without this limit, the removal would never end while new tasks are being started.
        until_now = and_(is_of_user, Task.id <= clock.new_id())
        count += _in_task_batches(until_now, {}, remove)[0]
        # The lines are removed before the user, so that the command can be repeated if it is killed
        # here.
        _sweep_all()
        with transaction() as connection:
            # From here on, no task, agent or key is added. The agents are locked before the user,
            # as the foreign keys of a new task lock them.
            agents = select(Agent.id).where(Agent.user_id == user_id)
            connection.execute(agents.with_for_update())
            users.lock(connection, user_id)
            # Waiting for the lock of a task while the user is locked could cause a deadlock.
            unlocked = connection.scalars(batch.with_for_update(skip_locked=True)).all()
            remove(connection, unlocked)
            count += len(unlocked)
            if connection.scalar(batch) is None:
                # The database also deletes the agents, keys and callback secrets.
                connection.execute(delete(User).where(User.id == user_id))
                break
        resources.stopping.wait(PAUSE_SECONDS)
    _sweep_all()
    shrink(inf)
    return count


def _sweep_all() -> None:
    """Remove the lines of the removed tasks, and their names in the index."""
    index_names(inf)
    sweep(inf)
