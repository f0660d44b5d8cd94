"""The loop that posts what is due: one thread leases it, a few others send."""

import logging
import threading
import time
from dataclasses import dataclass, field

from flask import Flask

from taskservice import resources
from taskservice.database.watcher import Watcher
from taskservice.services import attempts
from taskservice.services import deliveries as delivery_service
from taskservice.services.deliveries import Leased
from taskservice.services.turns import Room
from taskservice.webhooks.circuit_breaker import CircuitBreaker
from taskservice.webhooks.interrupt import Interrupt

logger = logging.getLogger(__name__)

# Most of the time of an attempt is the receiver's: one that has taken so long leaves its
# place to another, until very many are under way.
SENDERS = 16
SLOW_SECONDS = 1.0
MAX_SENDING = 64
# Whatever happens, it looks after so many seconds at the latest.
ROUND_SECONDS = 20.0
# All that is due waits for hosts without room, or another process was faster.
BREATH_SECONDS = 1.0
# The database gave no answer.
FAILURE_SECONDS = 5.0
# At the end, attempts under way have so long to come to theirs, and when they are then
# interrupted so long to give themselves back.
STOP_SECONDS = 1.0
INTERRUPT_SECONDS = 0.3


@dataclass(frozen=True, eq=False)
class _Sending:
    """An attempt under way."""

    leased: Leased
    interrupt: Interrupt = field(default_factory=Interrupt)
    since: float = field(default_factory=time.monotonic)


class DeliveryLoop(threading.Thread):
    """Posts webhooks that are due until it is stopped, and then gives back what it holds.

    Nothing is leased that could not be sent at once. Any number of these, in any number of
    processes, may share a database.
    """

    def __init__(self, app: Flask) -> None:
        super().__init__(name="deliveries", daemon=True)
        self._app = app
        self._watcher = resources.find(Watcher, app)
        self._stopping = threading.Event()
        self._landed = threading.Condition()
        self._in_flight: set[_Sending] = set()

    def stop(self) -> None:
        """Have it end soon; does not wait for that."""
        self._stopping.set()
        self._watcher.wake()

    def run(self) -> None:
        with self._app.app_context():
            with self._watcher.watching(patient=True):
                while not self._stopping.is_set():
                    since = self._watcher.changes
                    self._watcher.wait(since, self._round())
            self._end()

    def _round(self) -> float:
        """Send off all that is due and finds a sender; returns how long to sleep then."""
        try:
            while free := self._free():
                seconds = delivery_service.seconds_until_due()
                if seconds is None or seconds > 0:
                    return min(seconds or ROUND_SECONDS, ROUND_SECONDS)
                claimed = delivery_service.lease_due(free, self._room())
                if not claimed:
                    return BREATH_SECONDS
                for leased in claimed:
                    self._send_off(leased)
        except Exception:
            logger.exception("Could not look for what is due")
            self._stopping.wait(FAILURE_SECONDS)
            return 0.0
        # Whoever comes back wakes us.
        return self._seconds_until_slow()

    def _free(self) -> int:
        """How many more may be sent off now."""
        with self._landed:
            quick = len(self._quick())
            return max(0, min(SENDERS - quick, MAX_SENDING - len(self._in_flight)))

    def _quick(self) -> list[float]:
        """Since when those are under way that have not been so for long."""
        now = time.monotonic()
        return [each.since for each in self._in_flight if now - each.since < SLOW_SECONDS]

    def _seconds_until_slow(self) -> float:
        """When the next one leaves its place to another, where there is more than the place."""
        with self._landed:
            quick = self._quick()
            if not quick or len(self._in_flight) >= MAX_SENDING:
                return ROUND_SECONDS
            return min(quick) + SLOW_SECONDS - time.monotonic()

    def _room(self) -> Room:
        with self._landed:
            hosts = [flight.leased.host for flight in self._in_flight]
        return Room(hosts, resources.find(CircuitBreaker).all())

    def _send_off(self, leased: Leased) -> None:
        flight = _Sending(leased)
        with self._landed:
            self._in_flight.add(flight)
        try:
            # A daemon: no receiver keeps the process from ending.
            threading.Thread(target=self._send, args=(flight,), name="sender", daemon=True).start()
        except RuntimeError:
            # No more threads on this machine. The lease runs out, and it is due again.
            self._land(flight)
            raise

    def _send(self, flight: _Sending) -> None:
        try:
            with self._app.app_context():
                attempts.attempt(flight.leased, flight.interrupt)
        finally:
            self._land(flight)

    def _land(self, flight: _Sending) -> None:
        with self._landed:
            self._in_flight.remove(flight)
            self._landed.notify_all()
        self._watcher.wake()

    def _end(self) -> None:
        for flight in self._left_after(STOP_SECONDS):
            # Before somebody else may post it: never do two.
            flight.interrupt.set()
        left = [flight.leased for flight in self._left_after(INTERRUPT_SECONDS)]
        try:
            delivery_service.release(left)
        except Exception:
            logger.exception("%d deliveries wait for their leases to run out", len(left))

    def _left_after(self, seconds: float) -> list[_Sending]:
        """What is still under way when it had so long to come to its end."""
        with self._landed:
            self._landed.wait_for(lambda: not self._in_flight, seconds)
            return list(self._in_flight)
