"""Reads an SQLite database on a read-only disk, where SQLite can't create its log file."""

import os
from pathlib import Path

from taskservice.database.files import sqlite_uri

IMMUTABLE = "mode=ro&immutable=1"


def is_on_read_only_disk(path: Path) -> bool:
    return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)


def is_frozen(path: Path) -> bool:
    """Whether the file can't change, so that SQLite must open it as immutable."""
    return is_on_read_only_disk(path) and not any(map(os.path.exists, _log_files(path)))


def check_readable(path: Path) -> None:
    """Raises OSError if the last writes can't be read: their log needs an index file."""
    log, index = _log_files(path)
    if is_on_read_only_disk(path) and os.path.exists(log) and not os.path.exists(index):
        raise OSError(
            f"the disk is read-only, and {log} can be read only where it can be written; "
            "copy both files to such a disk"
        )


def uri(path: Path, options: str = "mode=rw") -> str:
    """SQLite's URI of an existing database, to read it without changing it."""
    return sqlite_uri(path, IMMUTABLE if is_frozen(path) else options)


def _log_files(path: Path) -> tuple[str, str]:
    return f"{path}-wal", f"{path}-shm"
