"""`taskservice db`: upgrade, roll back, check, back up, restore and copy the database."""

import signal
import sys
from datetime import datetime
from pathlib import Path

import click
from sqlalchemy.engine import URL, make_url

from taskservice.cli import options
from taskservice.cli.serve import load_config, name_database, one_line_errors, prepare_files
from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.address import parse, shown, sqlite_file
from taskservice.database.files import LAST_BACKUP
from taskservice.operations import database_check
from taskservice.operations.backup import backup, copy_before_upgrade, restore
from taskservice.operations.database_copy import copy
from taskservice.terminal import exit_with_error, notice, print_json, print_line


def _address(value: str) -> URL:
    """The URL of a database, from its URL or from the path of an SQLite file."""
    if "://" not in value:
        return URL.create("sqlite", database=str(Path(value).absolute()))
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group("db", cls=options.Group)
def command() -> None:
    """Upgrade, roll back, check, back up, restore and copy the database."""


# `serve` upgrades without a question, so that it can start unattended.
_DUMP = (
    'pg_dump --format=custom --file=before-upgrade.dump "$TASKSERVICE_DATABASE_URL" makes the '
    "backup that leads back to the old version"
)


@command.command("upgrade", "--yes")
@options.flag("--yes", help="On PostgreSQL, upgrade without asking for confirmation.")
def upgrade(yes: bool) -> None:
    """Migrate the database to the newest revision, and print that revision.

    On SQLite, the old database is first copied to `before-VERSION.sqlite3` next to it, for
    `taskservice db rollback`. On PostgreSQL, make a backup yourself.
    """
    config = load_config(may_create=True)
    name_database(config)
    url = make_url(config.DATABASE_URL)
    with one_line_errors():
        if sqlite_file(url) is None and not yes and migrations.is_older(url):
            notice(_DUMP)
            _confirm("Is there a backup? Upgrade the database")
        migrations.upgrade(url)
    print_line(migrations.head())


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question}: --yes is needed without a terminal.")
    click.confirm(f"{question}?", abort=True, err=True)


@command.command("rollback", "", "--yes")
@options.flag("--yes", help="Roll back without asking for confirmation.")
def rollback(yes: bool) -> None:
    """Undo the last upgrade of the SQLite database. Stop the service first.

    The copy that this upgrade made, `before-VERSION.sqlite3`, replaces the database; today's
    database is renamed, not deleted. All data written after the upgrade is only in the renamed
    file. Then install the old version: any other command of this version upgrades the database
    again.
    """
    config, database = _sqlite_file(
        "for PostgreSQL, stop every node, drop all tables, and run "
        'pg_restore --dbname="$TASKSERVICE_DATABASE_URL" before-upgrade.dump'
    )
    with one_line_errors():
        copy = copy_before_upgrade(database)
        made_at = f"{datetime.fromtimestamp(copy.stat().st_mtime):%Y-%m-%d %H:%M}"
        if not yes:
            _confirm(f"Replace the database with {copy}, made at {made_at}")
        replaced = restore(make_url(config.DATABASE_URL), copy, replace=True, migrates=False)
        # Otherwise, another rollback would put back the same copy.
        copy.unlink()
    print_line(f"{database}: the database from before the upgrade at {made_at}")
    notice(f"the previous database was saved as {replaced}")
    version = copy.stem.partition("-")[2]
    if version.startswith(migrations.REVISION_NAME):
        version = f"the version that was installed before, with database {version}"
    notice(f"install taskservice {version} before you run another command")


@command.command("check")
@options.json_lines
def check(as_json: bool) -> None:
    """Check the database without changing it.

    The exit status is 1 if there is an error, otherwise 0, even if there are warnings.
    """
    config, states = load_config(), set()
    name_database(config)
    for finding in database_check.findings(config):
        states.add(finding.state)
        line = f"{finding.state:8} {finding.check:11} {finding.message}"
        print_json(vars(finding)) if as_json else print_line(line)
    sys.exit(1 if database_check.ERROR in states else 0)


@command.command("backup", "/backup/taskservice.db")
@click.argument("file", type=click.Path(path_type=Path))
@options.flag("--force", help="Replace FILE if it exists.")
def back_up(file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE, and verify the copy. You need not stop the service."""
    config, database = _sqlite_file("use pg_dump for PostgreSQL")
    with one_line_errors():
        revision = backup(database, config.secret_key_file, file, force)
    print_line(f"{file}: {file.stat().st_size} bytes, revision {revision}, verified")
    marker = config.DATA / LAST_BACKUP
    try:
        marker.touch(0o600)
    except OSError as error:
        notice(
            f"{marker} can't be written: {error.strerror}; the time of this backup is not recorded"
        )
    key = config.secret_key_file
    if key.is_file() and key.read_bytes().strip() == config.SECRET_KEY.encode():
        notice(f"also back up {key}")


@command.command("restore", "/backup/taskservice.db")
@click.argument("file", type=click.Path(path_type=Path))
@options.flag("--force", help="Replace an existing database; the old file is renamed, not deleted.")
def restore_(file: Path, force: bool) -> None:
    """Replace the SQLite database with the backup FILE. Stop the service first.

    FILE is verified before it replaces the database. The restored database is migrated to the
    newest revision.
    """
    config, database = _sqlite_file("use pg_restore for PostgreSQL")
    with one_line_errors():
        replaced = restore(make_url(config.DATABASE_URL), file, force)
    print_line(f"{database}: {database.stat().st_size} bytes, revision {migrations.head()}")
    if replaced:
        notice(f"the previous database was saved as {replaced}")
    if not config.SECRET_KEY:
        notice(
            f"copy the secret_key of the backup to {config.secret_key_file}; "
            "with a new key, everyone must sign in to the dashboard again"
        )


@command.command(
    "copy",
    "instance/taskservice.db postgresql://tasks@db.example.org/tasks",
    "postgresql://tasks@db.example.org/tasks instance/taskservice.db",
)
@click.argument("source", metavar="FROM", type=_address)
@click.argument("target", metavar="TO", type=_address)
@options.json_lines
def copy_(source: URL, target: URL, as_json: bool) -> None:
    """Copy a database into an empty database, and compare the two.

    FROM and TO are each an SQLite file or a postgresql:// URL. Neither database may be in use. If
    the copy is interrupted, run the same command again to resume it.
    """
    prepare_files()
    with one_line_errors():
        copied = copy(source, target)
    for table in copied:
        line = f"{table['table']} {table['rows']:,} rows, sha256 {table['sha256']}"
        print_json(table) if as_json else print_line(line)
    file = sqlite_file(target)
    url = f"sqlite:///{file.resolve()}" if file else shown(target)
    unseen = "" if file else " with the password and parameters of TO"
    # `notice` would remove the user name from the URL.
    print_line(
        f"taskservice: to serve it, set TASKSERVICE_DATABASE_URL={url}{unseen}, and "
        "TASKSERVICE_SECRET_KEY to the same key as before, or everyone must sign in to the "
        "dashboard again",
        err=True,
    )


def _sqlite_file(instead: str) -> tuple[Config, Path]:
    """The settings and the database file; for PostgreSQL, exits and prints what to do `instead`."""
    config = load_config()
    file = sqlite_file(make_url(config.DATABASE_URL))
    # Like Ctrl-C, SIGTERM raises an exception, so that an unfinished copy is removed.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    if file is None:
        exit_with_error(f"this command works only with SQLite; {instead}", 2)
    return config, file
