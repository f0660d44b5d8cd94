"""The loop of a worker process: what has to be done and belongs to no request."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from flask import Flask

from taskservice import resources
from taskservice.auth import authentication
from taskservice.background import reschedule, retention, sweep, timeouts, vacuum
from taskservice.background.delivery_loop import STOP_SECONDS, DeliveryLoop
from taskservice.services import keys as key_service

logger = logging.getLogger(__name__)

# From the start of a round to the next, however long its chores take: silent tasks are
# looked for so often.
ROUND_SECONDS = 20.0
# At the end, for what a loop then writes down.
WRITE_SECONDS = 3.0


def record_key_uses() -> None:
    """Write down which keys were used in this process, and in which minute last."""
    key_service.record_uses(authentication.take_last_uses())


CHORES: tuple[Callable[[], None], ...] = (
    reschedule.reschedule_far_deliveries,
    record_key_uses,
    sweep.sweep,
    vacuum.shrink,
)


class Upkeep(threading.Thread):
    """Does all chores every few seconds until the process stops, and once more then.

    `serves`: whether agents can be heard by this process.
    """

    def __init__(self, app: Flask, *, serves: bool = True) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._app = app
        heartbeat = [timeouts.record_heartbeat] if serves else []
        self._watch = timeouts.ClockMonitor()
        self._first_chores = (*heartbeat, self._watch.look, self._end_silent, self._prune)

    def run(self) -> None:
        took = 0.0
        while not resources.stopping.wait(ROUND_SECONDS - took):
            began = time.monotonic()
            self.do_round()
            took = time.monotonic() - began
        self.do_round()

    def do_round(self) -> None:
        """Do each chore; one that fails is logged and waits for the next round."""
        with self._app.app_context():
            for chore in (*self._first_chores, *CHORES):
                try:
                    chore()
                except Exception:
                    logger.exception("Upkeep failed at %s", chore.__name__)

    def _end_silent(self) -> None:
        if self._watch.now is not None:
            if self._watch.is_first:
                timeouts.correct_future_moments(self._watch.now)
            timeouts.end_silent_tasks(self._watch.now)

    def _prune(self) -> None:
        if self._watch.now is not None:
            retention.prune(self._watch.now)


def start_loops(app: Flask, *, serves: bool) -> list[threading.Thread]:
    """Start what works in the background of a process, until `stopping` tells it to end."""
    delivery_loop = DeliveryLoop(app)
    resources.on_stop(delivery_loop.stop)
    loops = [Upkeep(app, serves=serves), delivery_loop]
    for loop in loops:
        loop.start()
    return loops


def join_loops(loops: Iterable[threading.Thread]) -> None:
    """Let the loops finish what they are at, for a few seconds at most."""
    until = time.monotonic() + STOP_SECONDS + WRITE_SECONDS
    for loop in loops:
        loop.join(max(0.0, until - time.monotonic()))
