"""Checks within a short time whether the database can be used, and counts its contents."""

import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Generic, NamedTuple, TypeVar

import sqlalchemy as sa
from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

from taskservice import resources
from taskservice.database import migrations
from taskservice.database.address import sqlite_file
from taskservice.database.clock import seconds_between
from taskservice.database.files import last_backup
from taskservice.database.models import Agent, Delivery, Hook, ServiceHeartbeat
from taskservice.database.transactions import reading, retry_on_conflict, transaction
from taskservice.database.types import database_now, db
from taskservice.errors import database_unavailable
from taskservice.operations.metrics import gauge
from taskservice.services.deliveries import is_due, is_message_due
from taskservice.terms import BROKEN, LATE, OK

# The heartbeat of the serving processes, which shows that a database is in use.

# The interval at which one of the serving processes writes the heartbeat.
HEARTBEAT_SECONDS = 10.0
# While a process serves the database, the heartbeat is younger than this.
MAX_AGE_SECONDS = 25.0
# A longer gap between two heartbeats counts as an outage of the service.
MAX_GAP_SECONDS = 60.0


def seconds_ago(parameter: str) -> database_now:
    """SQL for the time a number of seconds ago; `parameter` is the bind parameter's name."""
    return database_now(-sa.bindparam(parameter, type_=sa.Float()))


# A heartbeat in the future is ignored: the clock has been set back since it was written.
IS_CURRENT = ServiceHeartbeat.until.between(seconds_ago("max_gap"), database_now())
_RENEW = sa.update(ServiceHeartbeat).values(
    since=sa.case((IS_CURRENT, ServiceHeartbeat.since), else_=database_now()), until=database_now()
)
_INSERT = sa.insert(ServiceHeartbeat).values(id=1, since=database_now(), until=database_now())


@retry_on_conflict
def record() -> None:
    """Write the heartbeat, unless a process has written it within HEARTBEAT_SECONDS."""
    with reading() as connection:
        if is_served(connection, HEARTBEAT_SECONDS):
            return
    with transaction() as connection:
        if connection.execute(_RENEW, {"max_gap": MAX_GAP_SECONDS}).rowcount == 0:
            connection.execute(_INSERT)


def is_served(connection: sa.Connection, max_age: float = MAX_AGE_SECONDS) -> bool:
    """Whether a process has written the heartbeat within the last `max_age` seconds."""
    current = sa.select(ServiceHeartbeat.id).where(IS_CURRENT)
    return connection.scalar(current, {"max_gap": max_age}) is not None


T = TypeVar("T")

logger = logging.getLogger(__name__)

NO_BACKGROUND_WORK = (
    "This server does no background work: webhooks are not retried, silent tasks do not time out "
    "and old tasks are not removed. Run `taskservice background` too, or use `taskservice serve`."
)

# Files in the directory `DATA`: the first is locked while `taskservice background` runs, and the
# second while a WSGI server other than `taskservice serve` runs.
BACKGROUND_LOCK = "background.lock"
SERVER_LOCK = "server.lock"

READY_SECONDS = 1.0
METRICS_SECONDS = 2.0
# A disk with less free space counts as full, since the next writes would fail.
MIN_FREE_BYTES = 64 * 1024

# A RuntimeError is also raised if no thread can be started to run the query.
FAILURES = (SQLAlchemyError, OSError, RuntimeError, MemoryError)

_READ_ONLY = sa.text("SELECT current_setting('transaction_read_only') = 'on'")
_REVISION = sa.text("SELECT version_num FROM alembic_version")
# Each statement fails if its table is locked, or if the table or a column is missing or can't be
# read.
_ALL_COLUMNS = [sa.select(*table.columns).where(sa.false()) for table in db.metadata.sorted_tables]
# Each count reads an index, and only two counts read a whole index. With a million tasks and a
# million deliveries, this statement takes 50 ms; with GROUP BY, it would take a second.
_COUNTS = sa.text("""
    SELECT (SELECT count(*) FROM tasks) AS tasks,
        (SELECT coalesce(sum((
            SELECT count(*) FROM tasks WHERE user_id = users.id AND status = 'running'
        )), 0) FROM users) AS running,
        (SELECT coalesce(sum((
            SELECT count(*) FROM tasks WHERE user_id = users.id AND status = 'error'
        )), 0) FROM users) AS error,
        (SELECT count(*) FROM tasks WHERE hanging_since IS NOT NULL) AS hanging,
        (SELECT count(*) FROM deliveries) AS deliveries,
        (SELECT count(*) FROM deliveries WHERE state = 'pending') AS pending,
        (SELECT count(*) FROM deliveries
            WHERE state IN ('failed', 'cancelled') AND state = 'failed') AS failed,
        (SELECT count(*) FROM deliveries
            WHERE state IN ('failed', 'cancelled') AND state = 'cancelled') AS cancelled
""")
# Reads the whole table of agents, which is small compared to the table of tasks.
_AGENTS = sa.select(
    sa.func.count().filter(Agent.state == OK).label(OK),
    sa.func.count().filter(Agent.state == BROKEN).label(BROKEN),
    sa.func.count(Agent.late_since).label(LATE),
)
_DUE = sa.select(Delivery.next_attempt_at).where(is_due).order_by(Delivery.next_attempt_at)
_OLDEST_DUE = sa.select(
    _DUE.limit(1).scalar_subquery(),
    sa.select(sa.func.min(Hook.next_attempt_at)).where(is_message_due).scalar_subquery(),
    database_now(),
)
_SIZE = sa.select(sa.func.pg_database_size(sa.func.current_database()))


def show_running(lock: Path) -> None:
    """Lock the file, so that `is_running` is true until this process and its forks have ended."""
    with suppress(OSError):
        descriptor = os.open(lock, os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def is_running(lock: Path) -> bool:
    """Whether a process that called `show_running` is still running on this machine."""
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def oldest_due_seconds(connection: sa.Connection) -> float | None:
    """How long the oldest due delivery has been due, in seconds; None if no delivery is due."""
    *oldest, now = connection.execute(_OLDEST_DUE).one()
    return max((seconds_between(time, now) for time in oldest if time), default=None)


class DatabaseProbe(Generic[T]):
    """Runs `query` in a thread that all callers share; each caller waits for a limited time."""

    def __init__(self, app: Flask, query: Callable[[], T]) -> None:
        self._app, self._query = app, query
        self._lock = Lock()
        self._result: Future[T] | None = None

    def result(self, seconds: float) -> T:
        """The result of the query. Raises the query's errors, and TimeoutError after `seconds`."""
        with self._lock:
            result = self._result
            if result is None or result.done():
                result = Future()
                resources.start_thread("health", partial(self._run, result))
                self._result = result
        try:
            return result.result(seconds)
        except TimeoutError:
            raise TimeoutError(f"no response in {seconds:g} s") from None

    def _run(self, result: Future[T]) -> None:
        try:
            with self._app.app_context():
                result.set_result(self._query())
        except Exception as error:
            result.set_exception(error)


class Probes(NamedTuple):
    """One probe finds out whether the database can be used, the other counts its contents."""

    readiness: DatabaseProbe[None]
    metrics: DatabaseProbe[list[str]]


def init_app(app: Flask) -> None:
    resources.provide(app, Probes(DatabaseProbe(app, _check_usable), DatabaseProbe(app, _metrics)))


def require_usable() -> None:
    """Raises a Problem with status 503 unless the database can be read and written."""
    if not _is_usable():
        raise database_unavailable("The database cannot be read or written now")


def database_metrics() -> list[str]:
    """Metrics of the database: whether it can be used, and its contents if they can be read."""
    contents: list[str] = []
    try:
        contents = resources.find(Probes).metrics.result(METRICS_SECONDS)
    except FAILURES as error:
        logger.error("The database metrics can't be read: %s", getattr(error, "orig", error))
    return [gauge("database_up", int(_is_usable())), *contents]


def backup_metrics() -> list[str]:
    """A metric with the time of the last backup; an empty list if no backup was ever started."""
    backup = last_backup(current_app.config["DATA"])
    return [gauge("last_backup_timestamp_seconds", backup.st_mtime)] if backup else []


def _is_usable() -> bool:
    try:
        resources.find(Probes).readiness.result(READY_SECONDS)
    except FAILURES as error:
        logger.error("The database can't be used: %s", getattr(error, "orig", error))
        return False
    return True


def _check_usable() -> None:
    """Raises an error if the service cannot read and write the database."""
    file = sqlite_file(db.engine.url)
    if file is not None:
        # An open connection does not notice that its file was removed.
        if not os.access(file, os.R_OK | os.W_OK):
            raise PermissionError(f"{file} is missing or read-only")
        with TemporaryFile(dir=file.parent) as file_of_zeros:
            file_of_zeros.write(bytes(MIN_FREE_BYTES))
    with transaction() as connection:
        if file is None and connection.execute(_READ_ONLY).scalar_one():
            raise PermissionError("it is read-only")
        revision = connection.execute(_REVISION).scalar_one()
        if revision != migrations.head():
            raise RuntimeError(
                f"it is at revision {revision}, but this process works with {migrations.head()}: "
                "restart it, with the newest version"
            )
        for columns in _ALL_COLUMNS:
            connection.execute(columns)
    # The transaction above changes nothing, so it succeeds even if all writes to the disk fail.
    record()


def _metrics() -> list[str]:
    with reading() as connection:
        counts = connection.execute(_COUNTS).one()
        agents = connection.execute(_AGENTS).one()._asdict()
        age = oldest_due_seconds(connection) or 0.0
        file = sqlite_file(db.engine.url)
        sizes = _sizes(file) if file else {"database": connection.execute(_SIZE).scalar_one()}
    tasks = {"running": counts.running, "error": counts.error}
    deliveries = {state: getattr(counts, state) for state in ("pending", "failed", "cancelled")}
    tasks["complete"] = counts.tasks - sum(tasks.values())
    deliveries["delivered"] = counts.deliveries - sum(deliveries.values())
    return [
        gauge("tasks", tasks, "status"),
        gauge("tasks_hanging", counts.hanging),
        gauge("agents", agents, "state"),
        gauge("deliveries", deliveries, "state"),
        gauge("oldest_due_delivery_age_seconds", age),
        gauge("database_size_bytes", sizes, "part"),
    ]


def _sizes(file: Path) -> dict[str, int]:
    log = Path(f"{file}-wal")
    return {"database": file.stat().st_size, "wal": log.stat().st_size if log.exists() else 0}
