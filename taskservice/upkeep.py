"""The loop of a worker process: what has to be done and belongs to no request."""

import logging
import threading
from collections.abc import Callable

from flask import Flask

from taskservice import auth, stopping
from taskservice.services import logs, users

logger = logging.getLogger(__name__)

ROUND_SECONDS = 20.0


def record_key_uses() -> None:
    """Write down which keys were used in this process, and in which minute last."""
    users.record_uses(auth.take_uses())


CHORES: tuple[Callable[[], None], ...] = (record_key_uses, logs.sweep)


class Upkeep(threading.Thread):
    """Does all chores every few seconds until the process stops, and once more then."""

    def __init__(self, app: Flask) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._app = app

    def run(self) -> None:
        while not stopping.event.wait(ROUND_SECONDS):
            self.do_round()
        self.do_round()

    def do_round(self) -> None:
        """Do each chore; one that fails is logged and waits for the next round."""
        with self._app.app_context():
            for chore in CHORES:
                try:
                    chore()
                except Exception:
                    logger.exception("Upkeep failed at %s", chore.__name__)
