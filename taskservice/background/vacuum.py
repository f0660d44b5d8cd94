"""Space on the disk: what was removed from an SQLite file is given back, a little at a time."""

from pathlib import Path
from typing import Any

from taskservice.background.batches import CHORE_SECONDS, in_batches
from taskservice.database.transactions import has_writer_queue, writer_turn
from taskservice.database.types import db

# Room for the next writes that is left in the file.
SPARE_BYTES = 1024 * 1024
# What is given back at once, so that no writer notices.
STEP_PAGES = 250
# SQLite itself empties its write-ahead log now and then, but leaves the file at its size.
LARGE_LOG_BYTES = 8 * 1024 * 1024
# For how long writers are kept waiting to see the last reader off.
CHECKPOINT_MILLISECONDS = 50


def shrink(seconds: float = CHORE_SECONDS) -> None:
    """Shorten SQLite's files by what they no longer hold; PostgreSQL sees to its own.

    For so many seconds at most.
    """
    if not has_writer_queue():
        return
    connection = db.engine.raw_connection()
    try:
        file = _File(connection.driver_connection)
        in_batches(file.shorten, seconds)
        if file.is_shorter or file.log_bytes() > LARGE_LOG_BYTES:
            file.empty_log()
    finally:
        # A connection with another busy timeout is for nobody else.
        connection.invalidate()


class _File:
    """SQLite's file, over a connection that is in no transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._spare_pages = SPARE_BYTES // self._number("page_size")
        self.is_shorter = False

    def shorten(self) -> bool:
        """Give back some free pages; returns whether there are more."""
        if self._number("freelist_count") <= self._spare_pages + STEP_PAGES:
            return False
        with writer_turn():
            # Only a script is run to its end; `execute` would give back a single page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({STEP_PAGES})")
        self.is_shorter = True
        return True

    def log_bytes(self) -> int:
        log = Path(f"{db.engine.url.database}-wal")
        return log.stat().st_size if log.exists() else 0

    def empty_log(self) -> None:
        """Move the write-ahead log into the database, and cut it off if nobody reads from it."""
        self._connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MILLISECONDS}")
        # In turn, although it need not be: SQLite before 3.51.3 can corrupt a database
        # when somebody writes at the very end of a checkpoint.
        with writer_turn():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _number(self, pragma: str) -> int:
        return int(self._connection.execute(f"PRAGMA {pragma}").fetchone()[0])
