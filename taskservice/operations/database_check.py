"""Checks a database: its software, its structure, its contents and its disk."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, func, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from taskservice.config import Config
from taskservice.database import clock, migrations
from taskservice.database.engine import command_engine, prepare_sqlite_connection, sqlite3
from taskservice.database.files import is_frozen, is_on_read_only_disk, readable_uri
from taskservice.database.migrations import DatabaseError
from taskservice.database.models import Delivery
from taskservice.database.name_index import include_name
from taskservice.database.transactions import moment_by
from taskservice.database.types import db
from taskservice.operations.health import OLDEST_DUE
from taskservice.services.deliveries import is_too_far

OK, WARNING, ERROR = "ok", "warning", "error"

MEGABYTE = 1024 * 1024
# With less free space than the first there is a warning; below the second, writes may fail.
LOW_DISK_BYTES = 1024 * MEGABYTE
FULL_DISK_BYTES = 16 * MEGABYTE
# Normally a process posts a due delivery within moments: after the first time there is a warning,
# after the second an error.
LATE_SECONDS = 300.0
TOO_LATE_SECONDS = 3_600.0
# Clocks that differ by more seconds than this are reported.
CLOCK_SECONDS = 60.0
# The releases of SQLite without its rare corruption of databases with several writers.
FIXED_VERSIONS = ((3, 51, 3), (3, 50, 7), (3, 44, 6))

# The settings of each connection to SQLite that durability needs.
PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "auto_vacuum": 2}
# The settings of PostgreSQL that durability needs. The service itself makes a commit wait for the
# disk.
DURABILITY_SETTINGS = ("fsync", "full_page_writes")

_TOO_FAR = select(func.count()).select_from(Delivery).where(is_too_far)

Verdict: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """The result of one check; `state` is `ok`, `warning` or `error`."""

    check: str
    state: str
    message: str


def findings(config: Config) -> Iterator[Finding]:
    """Check the database of these settings without migrating or creating it."""
    address = make_url(config.DATABASE_URL)
    yield Finding("python", OK, f"Python {platform.python_version()}")
    is_sqlite = address.get_backend_name() == "sqlite"
    if config.secret_key_file.exists():
        yield Finding("secret_key", *_private(config.secret_key_file))
    if not is_sqlite:
        yield from _run_checks(address, _POSTGRESQL_CHECKS)
        return
    path = Path(address.database or "")
    yield Finding("sqlite", *sqlite_version(sqlite3.sqlite_version_info[:3]))
    for folder in sorted({file.parent for file in (config.secret_key_file, path) if file.exists()}):
        yield Finding("folder", *_private(folder))
    if not path.exists():
        yield Finding("file", ERROR, f"There is no database at {path}")
        return
    if not path.is_file():
        yield Finding("file", ERROR, f"{path} is not a regular file")
        return
    yield Finding("file", *_file(path))
    yield Finding("disk", *_disk(path))
    # Nothing can be written there, and SQLite reports other pragmas than usual.
    skipped = {"pragmas"} if is_frozen(path) else set()
    yield from _run_checks(
        address, {name: check for name, check in _SQLITE_CHECKS.items() if name not in skipped}
    )


def sqlite_version(version: tuple[int, int, int]) -> Verdict:
    """Whether this version of SQLite has the rare bug with several connections."""
    shown = f"SQLite {'.'.join(map(str, version))}"
    is_fixed = version >= FIXED_VERSIONS[0] or any(
        version[:2] == release[:2] and version >= release for release in FIXED_VERSIONS
    )
    if is_fixed:
        return OK, shown
    return WARNING, (
        f"{shown} has a rare bug that the writers of taskservice avoid: let no other program write "
        "to the file; pip install 'taskservice[sqlite]' installs a newer one"
    )


def integrity_problems(connection: Connection) -> list[str]:
    """What is wrong with the pages and references of an SQLite database; empty when sound."""
    pages = connection.exec_driver_sql("PRAGMA integrity_check(10)").scalars().all()
    problems = [] if list(pages) == ["ok"] else [str(line) for line in pages]
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return problems + [
        f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in broken
    ]


def schema_differences(connection: Connection) -> list[str]:
    """What the models have and the database lacks; anything else in it is harmless."""
    opts = {"compare_type": True, "include_name": include_name}
    context = MigrationContext.configure(connection, opts=opts)
    found = []
    for difference in compare_metadata(context, db.metadata):
        # Those of a column are in a list of their own.
        found += difference if isinstance(difference, list) else [difference]
    return [*filter(None, map(_described, found)), *_missing_constraints(connection)]


def _run_checks(
    address: URL, checks: Mapping[str, Callable[[Connection], Verdict]]
) -> Iterator[Finding]:
    try:
        with _engine(address).connect() as connection:
            for name, check in checks.items():
                yield Finding(name, *_verdict(check, connection))
    except (DBAPIError, sqlite3.Error, OSError) as error:
        yield Finding("connection", ERROR, reason(error))


def _verdict(check: Callable[[Connection], Verdict], connection: Connection) -> Verdict:
    try:
        return check(connection)
    except (DBAPIError, sqlite3.Error, DatabaseError) as error:
        # After an error PostgreSQL refuses every statement of the same transaction.
        connection.rollback()
        return ERROR, reason(error)


def reason(error: Exception) -> str:
    """The error of the database in one line."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(cause).strip().partition("\n")[0]


def _engine(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return command_engine(address)
    uri = readable_uri(Path(address.database or ""))
    engine = command_engine(address, creator=partial(sqlite3.connect, uri, uri=True))
    event.listen(engine, "connect", prepare_sqlite_connection)
    return engine


# --- both databases ----------------------------------------------------------------------


def _private(path: Path) -> Verdict:
    """Whether only the owner and root's group may access a file or folder."""
    status = path.stat()
    mode = status.st_mode & 0o777
    if mode & (0o007 if status.st_gid == 0 else 0o077):
        return WARNING, f"{path} contains secrets and is open to other users (mode {mode:o})"
    return OK, str(path)


def _revision(connection: Connection) -> Verdict:
    found, head = migrations.revision(connection), migrations.head()
    if found is None:
        return ERROR, "The database is empty"
    if found != head:
        return WARNING, f"Revision {found}; any other command upgrades it to {head}"
    return OK, f"Revision {found}"


def _schema(connection: Connection) -> Verdict:
    if migrations.revision(connection) != migrations.head():
        return WARNING, "Not compared, since the revision is not the latest"
    problems = schema_differences(connection)
    return (ERROR, "; ".join(problems)) if problems else (OK, "It matches the models")


def _deliveries(connection: Connection) -> Verdict:
    too_far = connection.execute(_TOO_FAR).scalar_one()
    if too_far:
        return WARNING, (
            f"{too_far} scheduled further ahead than any retry can be: the clock was set back; "
            "`taskservice serve` or `taskservice worker` makes them due"
        )
    oldest = connection.execute(OLDEST_DUE).one_or_none()
    if oldest is None:
        return OK, "None is due"
    seconds = clock.seconds_between(oldest.next_attempt_at, oldest.now)
    text = f"The oldest has been due for {seconds:.0f} s"
    if seconds < LATE_SECONDS:
        return OK, text
    state = ERROR if seconds >= TOO_LATE_SECONDS else WARNING
    return state, f"{text}; is `taskservice serve` or `taskservice worker` running?"


def _described(difference: tuple[Any, ...]) -> str:
    """A difference of Alembic's in words; empty for what the models do not have."""
    kind = str(difference[0])
    if kind.startswith("modify_"):
        return f"column {difference[2]}.{difference[3]} differs in its {kind[len('modify_') :]}"
    if not kind.startswith("add_"):
        return ""
    thing = kind[len("add_") :]
    name = f"{difference[2]}.{difference[3].name}" if thing == "column" else difference[1].name
    return f"{thing} {name} is missing"


def _missing_constraints(connection: Connection) -> list[str]:
    # Alembic does not compare check constraints.
    query = "SELECT conname FROM pg_constraint"
    if connection.dialect.name == "sqlite":
        query = "SELECT sql FROM sqlite_master WHERE type = 'table'"
    there = " ".join(connection.exec_driver_sql(query).scalars().all())
    tables = set(inspect(connection).get_table_names())
    names = [
        str(constraint.name)
        for table in db.metadata.sorted_tables
        for constraint in sorted(table.constraints, key=lambda each: str(each.name))
        if table.name in tables
    ]
    return [f"constraint {name} is missing" for name in names if name not in there]


# --- SQLite ------------------------------------------------------------------------------


def _file(path: Path) -> Verdict:
    log = Path(f"{path}-wal")
    size = path.stat().st_size + (log.stat().st_size if log.exists() else 0)
    state, text = _private(path)
    text = f"{text}, {size / MEGABYTE:.1f} MB"
    if is_on_read_only_disk(path):
        return ERROR, f"{text}, cannot be written: its disk is read-only"
    return (state, text) if os.access(path, os.W_OK) else (ERROR, f"{text}, cannot be written")


def _disk(path: Path) -> Verdict:
    free = shutil.disk_usage(path.parent).free
    text = f"{free / MEGABYTE:,.0f} MB are free"
    if free < FULL_DISK_BYTES:
        return ERROR, text
    return (WARNING if free < LOW_DISK_BYTES else OK), text


def _pragmas(connection: Connection) -> Verdict:
    found = {
        name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        for name in (*PRAGMAS, "busy_timeout")
    }
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    wrong = [name for name, value in PRAGMAS.items() if found[name] != value]
    if wrong == ["auto_vacuum"]:
        return WARNING, f"{text}: free space is not returned to the disk"
    return (ERROR, f"{text}: should be {PRAGMAS}") if wrong else (OK, text)


def _integrity(connection: Connection) -> Verdict:
    problems = integrity_problems(connection)
    if problems:
        return ERROR, "; ".join(problems[:3])
    return OK, "All pages and references are intact"


_SQLITE_CHECKS = {
    "pragmas": _pragmas,
    "integrity": _integrity,
    "revision": _revision,
    "schema": _schema,
    "deliveries": _deliveries,
}


# --- PostgreSQL --------------------------------------------------------------------------


def _server(connection: Connection) -> Verdict:
    version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    size = connection.exec_driver_sql(
        "SELECT pg_database_size(current_database())"
    ).scalar_one()  # fmt: skip
    text = f"PostgreSQL {version}, {size / MEGABYTE:.1f} MB"
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
        return ERROR, f"{text}; it is read-only: a standby?"
    return OK, text


def _durability(connection: Connection) -> Verdict:
    found = {
        name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
        for name in DURABILITY_SETTINGS
    }
    off = [name for name, value in found.items() if value == "off"]
    if off:
        return WARNING, f"{', '.join(off)} is off: answered writes may be lost in a power failure"
    return OK, "An answered write is on the disk"


def _indexes(connection: Connection) -> Verdict:
    invalid = connection.exec_driver_sql(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    ).scalars().all()  # fmt: skip
    return (ERROR, f"Invalid: {', '.join(invalid)}") if invalid else (OK, "All are valid")


def _clocks(connection: Connection) -> Verdict:
    ahead = clock.seconds_between(clock.now(), moment_by(connection))
    if abs(ahead) < CLOCK_SECONDS:
        return OK, "The database's clock and this machine's agree"
    where = "ahead of" if ahead > 0 else "behind"
    return WARNING, (
        f"The database's clock is {abs(ahead):.0f} s {where} this machine's: keys expire by this "
        "machine's clock, tasks end, time out and are pruned by the database's"
    )


_POSTGRESQL_CHECKS = {
    "server": _server,
    "clocks": _clocks,
    "durability": _durability,
    "indexes": _indexes,
    "revision": _revision,
    "schema": _schema,
    "deliveries": _deliveries,
}
