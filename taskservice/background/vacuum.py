"""Gives the free space of an SQLite file back to the disk, a little at a time."""

import time
from pathlib import Path
from typing import Any

from taskservice.background.batches import CHORE_SECONDS, BatchSize, in_batches
from taskservice.database.transactions import has_writer_queue, writer_turn
from taskservice.database.types import db

# Free space that stays in the file for the next writes.
SPARE_BYTES = 1024 * 1024
# Pages that one step gives back at most.
STEP_PAGES = 250
# SQLite empties its write-ahead log by itself, but does not shorten the file.
LARGE_LOG_BYTES = 8 * 1024 * 1024
# How long writers wait for the last reader of the write-ahead log.
CHECKPOINT_MILLISECONDS = 50


def shrink(seconds: float = CHORE_SECONDS) -> bool:
    """Shorten SQLite's files by their free space, for at most `seconds`; none on PostgreSQL.

    Returns whether more may be left.
    """
    if not has_writer_queue():
        return False
    connection = db.engine.raw_connection()
    try:
        file = _File(connection.driver_connection)
        has_more = in_batches(file.shorten, seconds)
        if file.is_shorter or file.log_bytes() > LARGE_LOG_BYTES:
            file.empty_log()
    finally:
        # Its busy timeout was changed, so it must not return to the pool.
        connection.invalidate()
    return has_more


class _File:
    """The file of SQLite, through a connection that is in no transaction."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._spare_pages = SPARE_BYTES // self._number("page_size")
        self._step = BatchSize(most=STEP_PAGES)
        self.is_shorter = False

    def shorten(self) -> bool:
        """Give back some free pages; returns whether there are more."""
        if self._number("freelist_count") <= self._spare_pages + STEP_PAGES:
            return False
        pages = self._step.rows
        with writer_turn():
            began = time.monotonic()
            # `execute` would run only the first step, and give back a single page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        self._step.adapt(pages, time.monotonic() - began)
        self.is_shorter = True
        return True

    def log_bytes(self) -> int:
        log = Path(f"{db.engine.url.database}-wal")
        return log.stat().st_size if log.exists() else 0

    def empty_log(self) -> None:
        """Move the write-ahead log into the database, and truncate it if no reader uses it."""
        self._connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MILLISECONDS}")
        # With the writer turn: SQLite before 3.51.3 can corrupt a database when another
        # connection writes at the very end of a checkpoint.
        with writer_turn():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _number(self, pragma: str) -> int:
        return int(self._connection.execute(f"PRAGMA {pragma}").fetchone()[0])
