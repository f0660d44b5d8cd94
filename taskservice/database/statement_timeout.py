"""Bounds how long a connection to PostgreSQL waits for its server, whatever holds that up."""

import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import Any

# How long a server that was asked to give a statement up may take to say so.
LAST_SECONDS = 1.0


def limit(connection: Any, seconds: float, driver: Any) -> None:
    """Let no statement on this connection of psycopg's take longer than so many seconds.

    What takes longer is cancelled, and fails with the `driver`'s QueryCanceled. Where even
    that is not answered (the server's process is stopped, or its machine gone) the connection
    is closed, and it fails with OperationalError.

    It is this side that counts: behind a pooler in transaction mode `SET statement_timeout`
    holds for somebody else's transactions, and to begin one for each read takes half as long
    again as the read.
    """
    connection.wait = partial(_wait, connection, seconds, driver, connection.wait)


def _wait(
    connection: Any, seconds: float, driver: Any, wait: Any, steps: Any, *options: Any, **more: Any
) -> Any:
    return wait(_bounded(connection, seconds, driver, steps), *options, **more)


def _bounded(connection: Any, seconds: float, driver: Any, steps: Any) -> Generator[Any, Any, Any]:
    """The same steps; psycopg takes one at least every tenth of a second."""
    until = time.monotonic() + seconds
    is_cancelled = False
    try:
        step = next(steps)
        while True:
            ready = yield step
            if time.monotonic() >= until:
                if is_cancelled:
                    connection.close()
                    raise driver.OperationalError("the server gives no answer")
                _cancel(connection, driver)
                is_cancelled, until = True, time.monotonic() + LAST_SECONDS
            step = steps.send(ready)
    except StopIteration as end:
        return end.value


def _cancel(connection: Any, driver: Any) -> None:
    # What can't be cancelled is closed a little later.
    with suppress(driver.Error):
        connection.cancel_safe(timeout=LAST_SECONDS)
