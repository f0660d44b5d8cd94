"""Connections to PostgreSQL with a time limit for statements, and the conversion of timestamps."""

import time
from collections.abc import Generator
from contextlib import suppress
from math import inf
from typing import Any

from psycopg import Connection, Error, InternalError, OperationalError
from psycopg.adapt import Loader

# The timeout for the server's confirmation that it has cancelled a statement.
CANCEL_SECONDS = 1.0


class TimedConnection(Connection[Any]):
    """A connection that is closed if a statement or commit takes longer than `statement_seconds`.

    The statement or commit then fails with OperationalError. A statement is also cancelled, so that
    the server releases its locks; a commit is not.
    """

    # A commit is not cancelled: if it waits for a synchronous standby, a cancellation would
    # complete it without the standby, and other clients would see its writes. PostgreSQL continues
    # to wait for the standby after the client has disconnected.
    #
    # The client, not the server, enforces the time limit. Behind a pooler in transaction mode, `SET
    # statement_timeout` would affect the transactions of other clients. `SET LOCAL` would require a
    # transaction for each read, which would make reads 50% slower. A server that hangs could not
    # enforce a limit.
    statement_seconds = inf
    _is_committing = False

    def commit(self) -> None:
        self._is_committing = True
        try:
            super().commit()
        finally:
            self._is_committing = False

    def wait(self, steps: Any, *options: Any, **keywords: Any) -> Any:  # type: ignore[override]
        try:
            return super().wait(self._within_limit(steps), *options, **keywords)
        except InternalError as error:
            # During a BEGIN or COMMIT, psycopg raises InternalError for an unexpected result, such
            # as the message with which the server ends the connection.
            if not self.broken:
                raise
            raise OperationalError("the server has ended the connection") from error

    def _within_limit(self, steps: Any) -> Generator[Any, Any, Any]:
        """Run psycopg's generator until the time limit, which is checked at least every 0.1 s."""
        until = time.monotonic() + self.statement_seconds
        try:
            step = next(steps)
            while time.monotonic() < until:
                step = steps.send((yield step))
        except StopIteration as end:
            return end.value
        if not self._is_committing:
            with suppress(Error):
                self.cancel_safe(timeout=CANCEL_SECONDS)
        self.close()
        raise OperationalError("the server took too long")


class TimestampLoader(Loader):
    def load(self, data: Any) -> str:
        """`2026-11-24 13:36:00.12+00` becomes `2026-11-24T13:36:00.120Z`."""
        seconds, _, fraction = bytes(data).decode().removesuffix("+00").partition(".")
        return f"{seconds.replace(' ', 'T')}.{fraction:0<3.3}Z"
