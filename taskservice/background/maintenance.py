"""The loop that runs the maintenance jobs of a process, such as timeouts and retention."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

from flask import Flask

from taskservice import resources
from taskservice.background import removal, timeouts
from taskservice.background.delivery_loop import STOP_SECONDS, DeliveryLoop
from taskservice.background.removal import in_batches
from taskservice.database import clock, files
from taskservice.database.address import sqlite_file
from taskservice.database.types import db
from taskservice.operations import health
from taskservice.services import (
    deliveries,
    events,
    expected_runs,
    hanging,
    hooks,
    mutes,
    questions,
    users,
)

logger = logging.getLogger(__name__)

# The time from the start of a round to the start of the next round. If a job has more work, the
# next round starts immediately.
ROUND_SECONDS = 20.0
WRITE_SECONDS = 3.0  # how long the loops may take to finish their writes when the process stops


def expire_questions() -> None:
    in_batches(questions.expire)


def expire_deliveries() -> bool:
    return in_batches(deliveries.expire)


def make_reserve() -> None:
    if database := sqlite_file(db.engine.url):
        files.make_reserve(database)


def remove_deleted_hooks() -> bool:
    return in_batches(hooks.remove_deleted)


# Each job returns whether it has more work.
JOBS: tuple[Callable[[], bool | None], ...] = (
    deliveries.make_far_due,
    users.record_last_uses,
    expire_deliveries,
    remove_deleted_hooks,
    removal.index_names,
    removal.sweep,
    removal.shrink,
    make_reserve,
)


class Maintenance(threading.Thread):
    """Runs all jobs every ROUND_SECONDS, and once more when the process stops."""

    def __init__(self, app: Flask, *, serves: bool = True) -> None:
        super().__init__(name="maintenance", daemon=True)
        self._app, self._serves = app, serves
        self._clock = timeouts.ClockMonitor()
        # Questions expire before tasks time out, since an open question prevents a timeout.
        self._first_jobs = (
            self._record_heartbeat,
            expire_questions,
            self._clock.read_clocks,
            self._end_silent,
            self._find_hanging,
            self._end_mutes,
            self._find_late,
            self._prune,
        )

    def run(self) -> None:
        # Record a heartbeat before the first round: tasks that are claimed after this heartbeat are
        # checked for hanging without a grace period.
        self._do([self._record_heartbeat, self._clock.read_clocks])
        pause = ROUND_SECONDS
        while not resources.stopping.wait(pause):
            began = time.monotonic()
            has_more = self.do_round()
            pause = 0.0 if has_more else ROUND_SECONDS - (time.monotonic() - began)
        self.do_round()

    def do_round(self) -> bool:
        """Run each job; a failed job runs again next time. Returns whether a job has more work."""
        return self._do([*self._first_jobs, *JOBS])

    def _do(self, jobs: Iterable[Callable[[], bool | None]]) -> bool:
        has_more = False
        with self._app.app_context():
            for job in jobs:
                try:
                    has_more |= bool(job())
                except Exception:
                    logger.exception("Maintenance failed: %s", job.__name__)
        return has_more

    def _record_heartbeat(self) -> None:
        if self._serves or health.is_running(self._app.config["DATA"] / health.SERVER_LOCK):
            health.record()

    def _end_silent(self) -> None:
        if self._clock.now is not None:
            if self._clock.is_first:
                timeouts.correct_future_times(self._clock.now)
            if timeouts.was_serving(self._clock.now):
                timeouts.time_out_tasks(self._clock.now)

    def _find_late(self) -> None:
        if self._clock.now is not None and timeouts.was_serving(self._clock.now):
            in_batches(partial(expected_runs.find_late, self._clock.now))

    def _find_hanging(self) -> None:
        serving_since = timeouts.serving_since()
        if serving_since is None:
            return
        now, since = self._clock.time, max(serving_since, self._clock.steady_since)
        # After an outage, only tasks that were claimed after `since` are checked. When
        # GRACE_SECONDS have passed, all agents have had time to report again, so all tasks are
        # checked.
        if clock.seconds_between(since, now) >= timeouts.GRACE_SECONDS:
            since = clock.EARLIEST
        in_batches(partial(hanging.check, now, since))

    def _end_mutes(self) -> None:
        if self._clock.now is not None:
            in_batches(partial(mutes.end_due, self._clock.now))

    def _prune(self) -> bool:
        now = self._clock.now
        if now is None:
            return False
        has_more = in_batches(lambda: events.prune(now))
        _, is_left = removal.prune(*removal.bounds(now))
        return is_left or has_more


def start_loops(app: Flask, *, serves: bool) -> list[threading.Thread]:
    """Start the background threads of a process, which end when the process begins to stop."""
    delivery_loop = DeliveryLoop(app)
    resources.on_stop(delivery_loop.stop)
    loops = [Maintenance(app, serves=serves), delivery_loop]
    for loop in loops:
        loop.start()
    return loops


def join_loops(loops: Iterable[threading.Thread]) -> None:
    """Wait a few seconds for the loops to finish their current work."""
    until = time.monotonic() + STOP_SECONDS + WRITE_SECONDS
    for loop in loops:
        loop.join(max(0.0, until - time.monotonic()))
