"""Remarks on how far a long command is."""

import time
from collections.abc import Callable

REMARK_SECONDS = 10.0


class Remarks:
    """Calls `remark` at most every REMARK_SECONDS."""

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._next = time.monotonic() + REMARK_SECONDS

    def reached(self, done: str, table: str, rows: int) -> None:
        """Say how many rows of a table are done; `done` is a word such as `copied`."""
        if time.monotonic() >= self._next:
            self._remark(f"{table}: {rows:,} {done}")
            self._next = time.monotonic() + REMARK_SECONDS
