"""Whether the database can be used, and how much is in it, asked without long waits."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from flask import Flask
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from taskservice import resources
from taskservice.database.models import Delivery
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import database_now, db
from taskservice.operations.metrics import Metric, Sample
from taskservice.problems import database_unavailable
from taskservice.queries.deliveries import is_due

T = TypeVar("T")

logger = logging.getLogger(__name__)

READY_SECONDS = 1.0
METRICS_SECONDS = 2.0
# What took a second to find out is not looked up again for so many.
CACHE_FACTOR = 20.0
# A disk with less room than this is full: the next writes would fail.
MIN_FREE_BYTES = 64 * 1024

FAILURES = (SQLAlchemyError, OSError)

_READ_ONLY = text("SELECT current_setting('transaction_read_only') = 'on' FROM alembic_version")
_REVISION = text("SELECT version_num FROM alembic_version")
# Each count is of an index, and all but the two of whole tables of a small part of it: with
# a million tasks and as many deliveries this takes 50 ms, where GROUP BY takes a second.
_COUNTS = text("""
    SELECT (SELECT count(*) FROM tasks) AS tasks,
        (SELECT coalesce(sum((
            SELECT count(*) FROM tasks WHERE user_id = users.id AND status = 'running'
        )), 0) FROM users) AS running,
        (SELECT coalesce(sum((
            SELECT count(*) FROM tasks WHERE user_id = users.id AND status = 'error'
        )), 0) FROM users) AS error,
        (SELECT count(*) FROM deliveries) AS deliveries,
        (SELECT count(*) FROM deliveries WHERE state = 'pending') AS pending,
        (SELECT count(*) FROM deliveries
            WHERE state IN ('failed', 'cancelled') AND state = 'failed') AS failed,
        (SELECT count(*) FROM deliveries
            WHERE state IN ('failed', 'cancelled') AND state = 'cancelled') AS cancelled
""")
OLDEST_DUE = (
    select(Delivery.next_attempt_at, database_now().label("now"))
    .where(is_due)
    .order_by(Delivery.next_attempt_at)
    .limit(1)
)
_SIZE = select(func.pg_database_size(func.current_database()))


class DatabaseProbe(Generic[T]):
    """What the database is asked by one thread of its own at a time, for all who want to know.

    They wait only as long as they like, also where the database itself would never answer.
    An answer is given again until `rest` times as long has passed as it took.
    """

    def __init__(self, app: Flask, ask: Callable[[], T], rest: float = 0.0) -> None:
        self._app, self._ask, self._rest = app, ask, rest
        self._lock = Lock()
        self._answer: Future[T] | None = None
        self._good_until = 0.0

    def answer(self, seconds: float) -> T:
        """Raises TimeoutError when there is none in time, and whatever the asking raised."""
        with self._lock:
            answer = self._answer
            if answer is None or (answer.done() and time.monotonic() >= self._good_until):
                answer = Future()
                Thread(target=self._run, args=(answer,), name="health", daemon=True).start()
                self._answer = answer
        try:
            return answer.result(seconds)
        except TimeoutError:
            raise TimeoutError(f"no answer in {seconds:g} s") from None

    def _run(self, answer: Future[T]) -> None:
        began = time.monotonic()
        try:
            with self._app.app_context():
                found = self._ask()
        except Exception as error:
            answer.set_exception(error)
        else:
            ended = time.monotonic()
            self._good_until = ended + self._rest * (ended - began)
            answer.set_result(found)


class ReadinessProbe(DatabaseProbe[None]):
    """Whether the database can be read and written."""


class MetricsProbe(DatabaseProbe[list[Metric]]):
    """What is in the database, as metrics."""


def init_app(app: Flask) -> None:
    resources.provide(app, ReadinessProbe(app, _check_usable))
    resources.provide(app, MetricsProbe(app, _count_rows, CACHE_FACTOR))


def require_usable() -> None:
    """Raises a Problem, 503, unless the database lets itself be read and written."""
    try:
        resources.find(ReadinessProbe).answer(READY_SECONDS)
    except FAILURES as error:
        logger.error("The database can't be used: %s", getattr(error, "orig", error))
        raise database_unavailable() from None


def database_metrics() -> list[Metric]:
    """What is in the database, as metrics; of one that gives no answer only that it is down."""
    try:
        found = resources.find(MetricsProbe).answer(METRICS_SECONDS)
    except FAILURES as error:
        logger.error("The database can't be measured: %s", getattr(error, "orig", error))
        return [_is_up(False)]
    return [_is_up(True), *found]


def _is_up(up: bool) -> Metric:
    return _gauge("database_up", "Whether the database answered.", Sample({}, int(up)))


def _check_usable() -> None:
    """Do what a write does, but change nothing; raises what is in the way of it."""
    file = _file()
    if file is not None:
        _check_file(file)
    with transaction() as connection:
        if file is not None:
            connection.execute(_REVISION).one()
        elif connection.execute(_READ_ONLY).scalar_one():
            raise PermissionError("it is read-only")


def _file() -> Path | None:
    """SQLite's file; None where the database is another."""
    url = db.engine.url
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _check_file(file: Path) -> None:
    # A connection that is open already would not notice that its file has gone.
    if not os.access(file, os.R_OK | os.W_OK):
        raise PermissionError(f"{file} is missing or read-only")
    with TemporaryFile(dir=file.parent) as room:
        room.write(bytes(MIN_FREE_BYTES))


def _count_rows() -> list[Metric]:
    with reading() as connection:
        counts = connection.execute(_COUNTS).one()
        oldest = connection.execute(OLDEST_DUE).one_or_none()
        file = _file()
        sizes = _sizes(file) if file else {"database": connection.execute(_SIZE).scalar_one()}
    complete = counts.tasks - counts.running - counts.error
    delivered = counts.deliveries - counts.pending - counts.failed - counts.cancelled
    return [
        _gauge(
            "tasks",
            "Tasks by status.",
            Sample({"status": "running"}, counts.running),
            Sample({"status": "complete"}, complete),
            Sample({"status": "error"}, counts.error),
        ),
        _gauge(
            "deliveries",
            "Deliveries by state.",
            Sample({"state": "pending"}, counts.pending),
            Sample({"state": "delivered"}, delivered),
            Sample({"state": "failed"}, counts.failed),
            Sample({"state": "cancelled"}, counts.cancelled),
        ),
        _gauge(
            "oldest_due_delivery_age_seconds",
            "For how long the delivery that waits longest has been due; 0 when none is.",
            Sample({}, age(oldest.next_attempt_at, oldest.now) if oldest else 0.0),
        ),
        _gauge(
            "database_size_bytes",
            "Size of the database, and of SQLite's write-ahead log.",
            *[Sample({"part": part}, size) for part, size in sizes.items()],
        ),
    ]


def _gauge(name: str, help: str, *samples: Sample) -> Metric:
    return Metric(f"taskservice_{name}", "gauge", help, samples)


def _sizes(file: Path) -> dict[str, Any]:
    log = Path(f"{file}-wal")
    return {"database": file.stat().st_size, "wal": log.stat().st_size if log.exists() else 0}


def age(since: str, now: str) -> float:
    """The seconds between two moments."""
    return (datetime.fromisoformat(now) - datetime.fromisoformat(since)).total_seconds()
