"""Connections that stay checked out of their pool between two uses, which is faster."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine


class KeptConnections:
    """Connections of an engine, of which up to `max_kept` are kept for the next uses.

    The engine's pool takes 40 us to check a connection out and in, more than a read of a task.
    `is_usable` is called before a kept one is used again; `acquire` raises what it raises.
    """

    def __init__(
        self, engine: Engine, is_usable: Callable[[Connection], bool], max_kept: int
    ) -> None:
        self.engine = engine
        self._is_usable = is_usable
        self._max_kept = max_kept
        # The connection that was used last is used next.
        self._kept: deque[Connection] = deque()

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """A connection for a block; after an error it is not kept."""
        connection = self.acquire()
        try:
            yield connection
        except BaseException:
            self.discard(connection)
            raise
        self.release(connection)

    def acquire(self) -> Connection:
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

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next use, or close it if it is broken or not needed."""
        if connection.in_transaction():
            connection.rollback()
        if connection.invalidated or len(self._kept) >= self._max_kept:
            self.discard(connection)
        else:
            self._kept.append(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection; if it was lost, so were probably all that are kept."""
        if connection.invalidated:
            self.forget()
        connection.close()

    def forget(self) -> None:
        """Close all that are kept, since their server is probably lost."""
        for kept in self._all_kept():
            kept.invalidate()
            kept.close()

    def close(self) -> None:
        """Close all; none may be in use."""
        for kept in self._all_kept():
            kept.close()
        self.engine.dispose()

    def _all_kept(self) -> Iterator[Connection]:
        with suppress(IndexError):
            while True:
                yield self._kept.pop()
