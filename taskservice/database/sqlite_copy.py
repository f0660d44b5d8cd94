"""Copies an SQLite database while other connections use it."""

from contextlib import closing
from pathlib import Path

from taskservice.database import files
from taskservice.database.engine import sqlite3

# The number of pages in a step. A signal, such as Ctrl+C, is handled after the current step.
STEP_PAGES = 1_000


def copy_sqlite(database: Path, target: Path) -> None:
    """Copy one snapshot of the database to the file `target`, which must be empty."""
    with (
        closing(sqlite3.connect(files.sqlite_uri(database), uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.isolation_level = None
        # Read one snapshot: otherwise each write to the database would restart the copy.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # The copy needs no protection against a crash, since an incomplete copy is never used.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        # Python handles signals when SQLite calls this function after each step.
        source.backup(copy, pages=STEP_PAGES, progress=lambda *_: None)
