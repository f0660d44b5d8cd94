"""Connections for reads, which stay open between requests."""

from collections import deque
from collections.abc import Callable

from sqlalchemy import Connection, Engine


class ReadConnections:
    """Connections in autocommit mode; some are kept for the next reads.

    The engine's pool takes 40 us to check a connection out and in, more than a read of a task.
    `is_usable` is asked before a kept one is used again; `take` raises what it raises.
    """

    def __init__(
        self, engine: Engine, is_usable: Callable[[Connection], bool], max_kept: int
    ) -> None:
        self.engine = engine
        self._is_usable = is_usable
        self._max_kept = max_kept
        # The connection that was used last is used next.
        self._kept: deque[Connection] = deque()

    def take(self) -> Connection:
        """A connection for one thread; raises OperationalError and TimeoutError."""
        while True:
            try:
                connection = self._kept.pop()
            except IndexError:
                return self.engine.connect()
            is_usable = False
            try:
                is_usable = self._is_usable(connection)
            finally:
                if not is_usable:
                    connection.invalidate()
                    connection.close()
            if is_usable:
                return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next read, or close it if it is broken or not needed."""
        if connection.in_transaction():
            # SQLAlchemy's own, which tells the database nothing.
            connection.rollback()
        if connection.invalidated or len(self._kept) >= self._max_kept:
            connection.close()
        else:
            self._kept.append(connection)

    def close(self) -> None:
        """Close all; none may be in use."""
        while self._kept:
            self._kept.pop().close()
        self.engine.dispose()
