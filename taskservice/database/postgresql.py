"""Connections to PostgreSQL: how long they wait for the server, and how they read values."""

import time
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from typing import Any

# The time that a server has to confirm that it cancelled a statement.
LAST_SECONDS = 1.0


def limit(connection: Any, seconds: float, driver: Any) -> None:
    """Cancel each statement on this psycopg connection that takes longer than `seconds`.

    It then fails with the `driver`'s QueryCanceled. If the server does not answer the cancel
    either (its process is stopped, or its machine gone), the connection is closed, and the
    statement fails with OperationalError. So does one whose connection the server ends.

    A commit is not cancelled, but its connection closed. While a commit waits for a standby, a
    cancel would make it succeed without the standby, and others would see what it wrote. A server
    process whose client is gone waits on.

    The client measures the time: behind a pooler in transaction mode, `SET statement_timeout`
    would apply to other clients' transactions, and a transaction for each read would make it
    half as slow again.
    """
    connection.wait = partial(_wait, connection, seconds, driver, connection.wait)


def _wait(
    connection: Any, seconds: float, driver: Any, wait: Any, steps: Any, *options: Any, **more: Any
) -> Any:
    try:
        return wait(_bounded(connection, seconds, driver, steps), *options, **more)
    except driver.InternalError as error:
        # psycopg counts the results of a BEGIN or COMMIT: the server's last words are one more.
        if not connection.broken:
            raise
        raise driver.OperationalError("the server has ended the connection") from error


def _bounded(connection: Any, seconds: float, driver: Any, steps: Any) -> Generator[Any, Any, Any]:
    """Pass on psycopg's steps, which come at least every tenth of a second."""
    until = time.monotonic() + seconds
    is_cancelled = False
    try:
        step = next(steps)
        while True:
            ready = yield step
            if time.monotonic() >= until:
                if is_cancelled or getattr(connection, "is_committing", False):
                    connection.close()
                    raise driver.OperationalError("the server does not answer")
                _cancel(connection, driver)
                is_cancelled, until = True, time.monotonic() + LAST_SECONDS
            step = steps.send(ready)
    except StopIteration as end:
        return end.value


def _cancel(connection: Any, driver: Any) -> None:
    # If this fails, the connection is closed LAST_SECONDS later.
    with suppress(driver.Error):
        connection.cancel_safe(timeout=LAST_SECONDS)


def read_as_text(connection: Any) -> None:
    """Let this psycopg connection read times and ids as the API writes them, as texts.

    It is in UTC and ISO dates. An object of Python for each value would take longer.
    """
    # psycopg is an extra.
    from psycopg.adapt import Loader
    from psycopg.types.string import TextLoader

    class MomentLoader(Loader):
        def load(self, data: Any) -> str:
            """`2026-11-24 13:36:00.12+00` -> `2026-11-24T13:36:00.120Z`."""
            seconds, _, fraction = bytes(data).decode().removesuffix("+00").partition(".")
            return f"{seconds.replace(' ', 'T')}.{fraction:0<3.3}Z"

    connection.adapters.register_loader("timestamptz", MomentLoader)
    connection.adapters.register_loader("uuid", TextLoader)
