"""The delivery loop: one thread leases due deliveries, and starts a thread for each delivery."""

import logging
import threading
import time
from concurrent.futures import Future, wait
from functools import partial
from typing import NamedTuple

from flask import Flask

from taskservice import resources
from taskservice.services import attempts
from taskservice.services import deliveries as delivery_service
from taskservice.services.deliveries import DueDeliveries, Leased, ReceiverSlots
from taskservice.webhooks.circuit_breaker import CircuitBreaker
from taskservice.webhooks.interrupt import Interrupt

logger = logging.getLogger(__name__)

# Limits on the number of concurrent attempts. An attempt that has waited for its receiver longer
# than SLOW_SECONDS does not count towards MAX_RECENT, so that slow receivers do not delay
# deliveries to other receivers.
MAX_RECENT = 16
MAX_RUNNING = 64
SLOW_SECONDS = 1.0
# The loop polls for due deliveries at least this often, since other processes can add deliveries.
ROUND_SECONDS = 1.0
FAILURE_SECONDS = 5.0  # the pause after an unexpected error
# When the loop stops, running attempts have STOP_SECONDS to finish. Attempts that are still running
# are then interrupted, and have INTERRUPT_SECONDS to end before their leases are released.
STOP_SECONDS = 1.0
INTERRUPT_SECONDS = 0.3


class _RunningAttempt(NamedTuple):
    leased: Leased
    interrupt: Interrupt
    started: float
    result: Future[str]


class DeliveryLoop(threading.Thread):
    """Posts due deliveries until it is stopped, and then releases its leases.

    Several processes, on any number of machines, can each run a loop.
    """

    def __init__(self, app: Flask) -> None:
        super().__init__(name="deliveries", daemon=True)
        self._app = app
        self._due = resources.find(DueDeliveries, app)
        self._stopping = threading.Event()
        self._running: list[_RunningAttempt] = []  # used only by this thread

    def stop(self) -> None:
        """Ask the loop to end, without waiting for it."""
        self._stopping.set()
        self._due.set()

    def run(self) -> None:
        with self._app.app_context():
            while not self._stopping.is_set():
                self._due.clear()
                self._due.wait(self._round())
            self._end()

    def _round(self) -> float:
        """Start attempts of the due deliveries; returns the seconds until the next round."""
        try:
            while True:
                self._running = [attempt for attempt in self._running if not attempt.result.done()]
                since = time.monotonic() - SLOW_SECONDS
                recent = [attempt.started for attempt in self._running if attempt.started > since]
                count = min(MAX_RECENT - len(recent), MAX_RUNNING - len(self._running))
                if count <= 0:
                    # Wait until the oldest recent attempt counts as slow. An attempt that finishes
                    # also wakes the loop.
                    is_full = len(self._running) >= MAX_RUNNING
                    return ROUND_SECONDS if is_full else min(recent) - since
                seconds = delivery_service.seconds_until_due()
                if seconds is None or seconds > 0:
                    return min(seconds or ROUND_SECONDS, ROUND_SECONDS)
                running = [attempt.leased.receiver for attempt in self._running]
                failing = resources.find(CircuitBreaker).open_receivers()
                leases = delivery_service.lease_due(count, ReceiverSlots(running, failing))
                if not leases:
                    # The receivers of the due deliveries have no free slot, or another process has
                    # leased the deliveries.
                    return ROUND_SECONDS
                for leased in leases:
                    self._start_attempt(leased)
        except Exception:
            logger.exception("Could not look for due deliveries")
            self._stopping.wait(FAILURE_SECONDS)
            return 0.0

    def _start_attempt(self, leased: Leased) -> None:
        """Start a thread for an attempt. Raises RuntimeError if no thread can be started.

        In this case, the delivery is due again when its lease expires.
        """
        interrupt, started = Interrupt(), time.monotonic()
        result = resources.start_future("attempt", partial(self._send, leased, interrupt))
        self._running.append(_RunningAttempt(leased, interrupt, started, result))
        result.add_done_callback(lambda _: self._due.set())

    def _send(self, leased: Leased, interrupt: Interrupt) -> str:
        with self._app.app_context():
            return attempts.attempt_delivery(leased, interrupt)

    def _end(self) -> None:
        for attempt in self._unfinished_after(STOP_SECONDS):
            # Interrupt the attempt before its lease is released; otherwise, two processes could
            # post the delivery concurrently.
            attempt.interrupt.set()
        leases = [attempt.leased for attempt in self._unfinished_after(INTERRUPT_SECONDS)]
        try:
            delivery_service.release(leases)
        except Exception:
            logger.exception("Could not release %d leases; they will expire", len(leases))

    def _unfinished_after(self, seconds: float) -> list[_RunningAttempt]:
        wait([attempt.result for attempt in self._running], seconds)
        return [attempt for attempt in self._running if not attempt.result.done()]
