"""Connections to PostgreSQL: their time limits, batches of statements, and types of values."""

import time
from collections.abc import Generator
from contextlib import suppress
from math import inf
from typing import Any

from psycopg import ClientCursor, Connection, Error, InternalError, OperationalError
from psycopg.adapt import Loader

# The seconds that a server has to confirm that it cancelled a statement.
LAST_SECONDS = 1.0
# From this number of characters on, waiting statements are sent: more would only take memory.
MAX_WAITING = 64 * 1024


class BatchingConnection(Connection[Any]):
    """A connection with a time limit, and with `execute_later` for statements without rows.

    These are sent together with the next statement, or the commit, which raises their errors.
    A statement that takes longer than `statement_seconds` is cancelled, and fails with
    QueryCanceled. If the server does not respond to the cancel request either, the connection is
    closed, and the statement fails with OperationalError. So does one whose connection the server
    ends. A commit is not cancelled; its connection is closed instead.
    """

    # While a commit waits for a standby, a cancel would make it succeed without the standby, and
    # others would see its writes. PostgreSQL keeps waiting after the client has disconnected.
    #
    # The client measures the time: behind a pooler in transaction mode, `SET statement_timeout`
    # would apply to other clients' transactions, and a transaction for each read would take half as
    # long again.
    statement_seconds = inf
    _is_committing = False
    _waiting = ""

    def execute_later(self, query: str, values: Any = None) -> None:
        self._waiting += f"{self._text(query, values)}; "
        if len(self._waiting) > MAX_WAITING:
            self._send()

    def execute(self, query: Any, values: Any = None, **options: Any) -> Any:  # type: ignore[override]
        if not self._waiting:
            return super().execute(query, values, **options)
        return self._send(self._text(query, values))

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        # The waiting statements come first.
        if self._waiting:
            self._send()
        return super().cursor(*arguments, **options)

    def commit(self) -> None:
        self._is_committing = True
        try:
            if self._waiting:
                self._send("COMMIT")
            else:
                super().commit()
        finally:
            self._is_committing = False

    def rollback(self) -> None:
        self._waiting = ""
        super().rollback()

    def _text(self, query: str, values: Any) -> str:
        """The statement with its values: PostgreSQL accepts several statements only as one text."""
        return ClientCursor(self).mogrify(query, values) if values is not None else query

    def _send(self, last: str = "") -> ClientCursor[Any]:
        """Send the waiting statements and `last`; the cursor has the rows of the last one."""
        together, self._waiting = self._waiting + last, ""
        cursor = ClientCursor(self)
        cursor.execute(together)
        while cursor.nextset():
            pass
        return cursor

    def wait(self, steps: Any, *options: Any, **more: Any) -> Any:  # type: ignore[override]
        try:
            return super().wait(self._within_limit(steps), *options, **more)
        except InternalError as error:
            # psycopg counts the results of a BEGIN or COMMIT: the last message is one more.
            if not self.broken:
                raise
            raise OperationalError("the server has ended the connection") from error

    def _within_limit(self, steps: Any) -> Generator[Any, Any, Any]:
        """Pass on psycopg's steps, which come at least every tenth of a second."""
        until = time.monotonic() + self.statement_seconds
        is_cancelled = False
        try:
            step = next(steps)
            while True:
                ready = yield step
                if time.monotonic() >= until:
                    if is_cancelled or self._is_committing:
                        self.close()
                        raise OperationalError("the server does not respond")
                    # If this fails, the connection is closed LAST_SECONDS later.
                    with suppress(Error):
                        self.cancel_safe(timeout=LAST_SECONDS)
                    is_cancelled, until = True, time.monotonic() + LAST_SECONDS
                step = steps.send(ready)
        except StopIteration as end:
            return end.value


class TimestampLoader(Loader):
    def load(self, data: Any) -> str:
        """`2026-11-24 13:36:00.12+00` -> `2026-11-24T13:36:00.120Z`."""
        seconds, _, fraction = bytes(data).decode().removesuffix("+00").partition(".")
        return f"{seconds.replace(' ', 'T')}.{fraction:0<3.3}Z"
