"""Notices when SQLite's files are removed or replaced while a process has them open."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import OperationalError

# A folder's time of change is at least as exact as this on every file system, in nanoseconds.
EXACT_NS = 3_000_000_000
# How long reads rely on a check, which takes twice as long as the read of a key.
RECENT_SECONDS = 0.02


class FileReplacedError(Exception):
    """A file of the database was removed or replaced while this process has it open."""


class DatabaseFiles:
    """The database, its write-ahead log and the log's index, as this process has them open.

    A connection keeps writing to the files that it has open, even when their names now belong to
    others: its writes are then lost at the next start. SQLite removes the log when the last
    connection closes, so one is kept open from the first use on; while it is, the kernel gives
    the inode numbers to no other file.
    """

    def __init__(self, path: str, connect: Callable[[], Any]) -> None:
        self._paths = (path, f"{path}-wal", f"{path}-shm")
        # The names of a database behind a symbolic link are those of several folders.
        self._folder = None if os.path.islink(path) else os.path.dirname(os.path.abspath(path))
        self._checked_folder: tuple[int, ...] | None = None
        self._connect = connect
        self._lock = threading.Lock()
        self._kept: Any = None
        self._opened: list[tuple[int, int] | None] = []
        self._is_saved = False
        self._recent_until = 0.0

    def keep_open(self) -> None:
        """To be called before anything else opens the database; raises as `check` does."""
        with self._lock:
            if self._kept is None:
                self._kept = self._connect()
                # The first query opens, or makes, the two other files.
                self._kept.execute("SELECT count(*) FROM sqlite_master").fetchone()
                self._opened = self._named()
        self.check()

    def check(self) -> None:
        """Raises OperationalError when a name no longer belongs to the open file."""
        if self._kept is None:
            return
        # A name that is given to another file changes its folder, so one look at this is enough.
        folder = self._state_of_folder()
        if folder is not None and folder == self._checked_folder:
            return
        is_settled = folder is not None and time.time_ns() - folder[-1] > EXACT_NS
        named = self._named()
        if named == self._opened:
            # A change right after another one may leave the folder's time as it was.
            self._checked_folder = folder if is_settled else None
        else:
            self._recent_until = 0.0
            self._save(named)
            wrong = [
                f"{path} was {'replaced' if now else 'removed'}"
                for path, now, opened in zip(self._paths, named, self._opened, strict=True)
                if now != opened
            ]
            error = FileReplacedError(f"{', '.join(wrong)}; restart the service")
            raise OperationalError("stat", None, error)

    def passes_check(self, _connection: object) -> bool:
        """True; raises as `check` does."""
        self.check()
        return True

    def passes_recent_check(self, _connection: object) -> bool:
        """The same for reads, which lose nothing if the last check was up to 20 ms ago."""
        now = time.monotonic()
        if now >= self._recent_until:
            self.check()
            self._recent_until = now + RECENT_SECONDS
        return True

    def data_version(self) -> int:
        """A number that changes with each commit, of any connection and process."""
        with self._lock:
            try:
                version: int = self._kept.execute("PRAGMA data_version").fetchone()[0]
            except self._kept.Error as error:
                raise OperationalError("PRAGMA data_version", None, error) from error
            return version

    def close(self) -> None:
        """To be called when all other connections of this process are closed."""
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    def _state_of_folder(self) -> tuple[int, ...] | None:
        """What changes with the names in the folder; None if that can't be told."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def _named(self) -> list[tuple[int, int] | None]:
        return [_identity(path) for path in self._paths]

    def _save(self, named: list[tuple[int, int] | None]) -> None:
        """Save answered writes that are only in a removed log, by moving them into the database.

        Only if both log files are gone: otherwise another program may have begun a new log.
        """
        with self._lock:
            if self._is_saved or named != [self._opened[0], None, None] or self._kept is None:
                return
            self._is_saved = True
            with suppress(Exception):
                self._kept.execute("PRAGMA wal_checkpoint(FULL)").fetchone()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
