"""Sends several statements to PostgreSQL at once, since each round trip takes time."""

from typing import Any

from psycopg import ClientCursor, Connection

# From this number of characters on, what waits is sent at once: more would only take memory.
MAX_WAITING = 64 * 1024


class BatchingConnection(Connection[Any]):
    """A connection with `execute_later`, for statements whose rows nobody reads.

    They are sent in front of the next statement, or of the commit, which fails as they would.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting: list[str] = []
        self._length = 0
        # A commit that waits for a standby must not be cancelled: see `postgresql.limit`.
        self.is_committing = False

    def execute_later(self, query: str, values: Any = None) -> None:
        self._waiting.append(self._text(query, values))
        self._length += len(self._waiting[-1])
        if self._length > MAX_WAITING:
            self._send()

    def execute(self, query: Any, values: Any = None, **options: Any) -> Any:  # type: ignore[override]
        if not self._waiting:
            return super().execute(query, values, **options)
        return self._send(self._text(query, values))

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        # What is executed on it comes after what waits.
        if self._waiting:
            self._send()
        return super().cursor(*arguments, **options)

    def commit(self) -> None:
        self.is_committing = True
        try:
            if self._waiting:
                self._send("COMMIT")
            else:
                super().commit()
        finally:
            self.is_committing = False

    def rollback(self) -> None:
        self._forget()
        super().rollback()

    def _text(self, query: str, values: Any) -> str:
        """The statement with its values in it: PostgreSQL takes several only as one text."""
        return ClientCursor(self).mogrify(query, values) if values is not None else query

    def _send(self, *last: str) -> ClientCursor[Any]:
        """Send what waits and `last`; the cursor has the rows of the last one."""
        together = "; ".join([*self._waiting, *last])
        self._forget()
        cursor = ClientCursor(self)
        cursor.execute(together)
        while cursor.nextset():
            pass
        return cursor

    def _forget(self) -> None:
        self._waiting.clear()
        self._length = 0
