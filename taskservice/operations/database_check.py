"""Checks a database: its software, its contents, its disk, and whether webhooks are sent."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.address import sqlite_file
from taskservice.database.engine import command_engine, sqlite3
from taskservice.database.migrations import DatabaseError, reason
from taskservice.installation import install_command
from taskservice.operations.health import MIN_FREE_BYTES, oldest_due_seconds

OK, WARNING, ERROR = "ok", "warning", "error"

MEGABYTE = 1024 * 1024
# Less free space than this causes a warning.
LOW_DISK_BYTES = 1024 * MEGABYTE
# A delivery that has been due for longer than this causes a warning.
LATE_SECONDS = 300.0
# For three release series of SQLite, the first version without a rare bug that corrupts databases
# with several writers.
FIXED_VERSIONS = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
# Selects the PostgreSQL settings that are off although durability depends on them. The service
# itself sets `synchronous_commit`.
_OFF = (
    "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
)

Verdict: TypeAlias = tuple[str, str]
Check: TypeAlias = Callable[[Connection], Verdict]


@dataclass(frozen=True)
class Finding:
    """The result of one check; `state` is `ok`, `warning` or `error`."""

    check: str
    state: str
    message: str


def findings(config: Config) -> Iterator[Finding]:
    """Check the configured database without creating or migrating it."""
    address = make_url(config.DATABASE_URL)
    path = sqlite_file(address)
    if path is None:
        yield from _run_checks(address, _POSTGRESQL_CHECKS)
        return
    yield Finding("sqlite", *sqlite_version(sqlite3.sqlite_version_info[:3]))
    if not path.is_file():
        yield Finding("file", ERROR, f"There is no database at {path}")
        return
    yield Finding("file", *_file(path))
    yield Finding("disk", *_disk(path))
    yield from _run_checks(address, _SQLITE_CHECKS)


def sqlite_version(version: tuple[int, int, int]) -> Verdict:
    """The verdict on a version of SQLite: a warning if it has the bug that FIXED_VERSIONS fix."""
    shown = f"SQLite {'.'.join(map(str, version))}"
    fixed = {release[:2]: release for release in FIXED_VERSIONS}
    if version >= fixed.get(version[:2], FIXED_VERSIONS[0]):
        return OK, shown
    return WARNING, (
        f"{shown} has a rare bug that taskservice avoids: do not let other programs write to the "
        f"file; {install_command('sqlite')} installs a newer version"
    )


def integrity_problems(connection: Connection) -> list[str]:
    """A message for each damaged page and each broken reference of an SQLite database."""
    pages = connection.exec_driver_sql("PRAGMA integrity_check(10)").scalars()
    problems = [str(line) for line in pages if line != "ok"]
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    problems += [f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in broken]
    return problems


def _run_checks(address: URL, checks: Mapping[str, Check]) -> Iterator[Finding]:
    try:
        with command_engine(address).connect() as connection:
            for name, check in checks.items():
                try:
                    verdict = check(connection)
                except (DBAPIError, sqlite3.Error, DatabaseError) as error:
                    # After an error, PostgreSQL refuses all further statements of a transaction.
                    connection.rollback()
                    verdict = ERROR, reason(error)
                yield Finding(name, *verdict)
    except (DBAPIError, sqlite3.Error, OSError) as error:
        yield Finding("connection", ERROR, reason(error))


def _revision(connection: Connection) -> Verdict:
    current, head = migrations.revision(connection), migrations.head()
    if current is None:
        return ERROR, "The database is empty"
    if current != head:
        return WARNING, f"Revision {current}; any other command upgrades it to {head}"
    return OK, f"Revision {current}"


def _deliveries(connection: Connection) -> Verdict:
    if migrations.revision(connection) != migrations.head():
        return OK, "Webhooks can be checked only after the upgrade"
    seconds = oldest_due_seconds(connection)
    if seconds is None:
        return OK, "No webhooks are due"
    text = f"The oldest webhook has been due for {seconds:.0f} s"
    if seconds < LATE_SECONDS:
        return OK, text
    return WARNING, f"{text}; is `taskservice serve` or `taskservice background` running?"


def _file(path: Path) -> Verdict:
    status = path.stat()
    text, mode = f"{path}, {status.st_size / MEGABYTE:.1f} MB", status.st_mode & 0o777
    if not os.access(path, os.W_OK):
        return ERROR, f"{text}, cannot be written"
    if mode & 0o077:
        return WARNING, f"{text}, contains secrets and is open to other users (mode {mode:o})"
    return OK, text


def _disk(path: Path) -> Verdict:
    free = shutil.disk_usage(path.parent).free
    if free < MIN_FREE_BYTES:
        return ERROR, "The disk is full: writes fail"
    return WARNING if free < LOW_DISK_BYTES else OK, f"{free / MEGABYTE:,.1f} MB are free"


def _integrity(connection: Connection) -> Verdict:
    if problems := integrity_problems(connection):
        return ERROR, "; ".join(problems[:3])
    return OK, "All pages and references are intact"


_SQLITE_CHECKS = {"integrity": _integrity, "revision": _revision, "deliveries": _deliveries}


def _server(connection: Connection) -> Verdict:
    version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    text = f"PostgreSQL {version}"
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
        return ERROR, f"{text}; it is read-only, like a standby"
    return OK, text


def _durability(connection: Connection) -> Verdict:
    if off := connection.exec_driver_sql(_OFF).scalars().all():
        return WARNING, f"{', '.join(off)} is off: a power failure can lose acknowledged writes"
    return OK, "Acknowledged writes are on the disk"


_POSTGRESQL_CHECKS = {
    "server": _server,
    "durability": _durability,
    "revision": _revision,
    "deliveries": _deliveries,
}
