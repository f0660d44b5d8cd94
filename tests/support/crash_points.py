"""Runs a command of the service, which is killed at its n-th critical point.

    CRASH_ARMED=file CRASH_AT=n CRASH_LEASE=seconds python -m tests.support.crash_points serve

Such points are before and after each commit and each send, of any process; they are counted
while the file is there. At the n-th all processes of the group get SIGKILL, as if the power
were cut. Leases are short, and so are the waits for the second attempt and for maintenance.
"""

import functools
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine.default import DefaultDialect

from taskservice.background import maintenance, timeouts
from taskservice.cli import main
from taskservice.services import deliveries as delivery_service
from taskservice.webhooks import smtp, transport
from taskservice.webhooks.retry_schedule import SCHEDULE

ARMED = Path(os.environ["CRASH_ARMED"])
AT = int(os.environ["CRASH_AT"])

points = itertools.count(1)

T = TypeVar("T")


def point() -> None:
    if ARMED.exists() and next(points) == AT:
        os.killpg(0, signal.SIGKILL)


def between_points(function: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> T:
        point()
        result = function(*args, **kwargs)
        point()
        return result

    return call


for place, name, value in (
    (delivery_service, "LEASE_SECONDS", float(os.environ["CRASH_LEASE"])),
    (delivery_service, "PAUSE_SECONDS", 0.3),
    (delivery_service, "SCHEDULE", (0.3,) * len(SCHEDULE)),
    (timeouts, "GRACE_SECONDS", 0.0),
    (maintenance, "ROUND_SECONDS", 0.3),
    (DefaultDialect, "do_commit", between_points(DefaultDialect.do_commit)),
    (transport, "post_once", between_points(transport.post_once)),
    (smtp, "send_mail", between_points(smtp.send_mail)),
):
    setattr(place, name, value)

if __name__ == "__main__":
    main()
