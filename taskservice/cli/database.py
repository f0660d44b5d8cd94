"""`taskservice db` and `prune`: upgrade, check, back up, restore, copy and prune the database."""

import signal
import sys
from math import inf
from pathlib import Path

import click
from sqlalchemy.engine import URL, make_url

from taskservice.background import removal
from taskservice.background.removal import Bounds, Removed
from taskservice.cli.options import examples, json_lines, json_object
from taskservice.cli.service_app import load_config, one_line_errors, service_app
from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.address import parse, shown
from taskservice.database.files import keep_owner_permissions
from taskservice.database.transactions import database_moment
from taskservice.operations import database_check
from taskservice.operations.backup import BackupError, backup, restore
from taskservice.operations.database_copy import CopyError, copy
from taskservice.terminal import (
    exit_with_error,
    notice,
    open_standard_files,
    print_json,
    print_line,
)


class DatabaseAddress(click.ParamType[URL]):
    """A database's URL, or the path of an SQLite file."""

    name = "database"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> URL:
        if "://" not in value:
            return URL.create("sqlite", database=str(Path(value).absolute()))
        try:
            return parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group("db")
def db_command() -> None:
    """The database: upgrade, check, back up, restore and copy it."""


@db_command.command("upgrade", epilog=examples("taskservice db upgrade"))
def upgrade() -> None:
    """Migrate the database to the newest revision, and print that."""
    with service_app(may_create=True):
        print_line(migrations.head())


@db_command.command("check", epilog=examples("taskservice db check"))
@json_lines
def check(as_json: bool) -> None:
    """Check the database without changing it.

    The exit code is 1 if there is an error; a warning does not change it.
    """
    states = set()
    for finding in database_check.findings(load_config()):
        states.add(finding.state)
        if as_json:
            print_json(vars(finding))
        else:
            print_line(f"{finding.state:8} {finding.check:11} {finding.message}")
    sys.exit(1 if database_check.ERROR in states else 0)


@db_command.command("backup", epilog=examples("taskservice db backup /backup/taskservice.db"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def back_up(file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE, also while the service runs, and verify the copy."""
    config = load_config()
    database = _sqlite_file(config, "back up PostgreSQL with pg_dump")
    try:
        revision = backup(database, config.secret_key_file, file, force)
    except BackupError as error:
        exit_with_error(str(error))
    print_line(f"{file}: {file.stat().st_size} bytes, revision {revision}, verified")
    _remark_on_secret_key(config)


@db_command.command("restore", epilog=examples("taskservice db restore /backup/taskservice.db"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the database, and keep the old one aside.")
def restore_(file: Path, force: bool) -> None:
    """Put the backup FILE in the place of the SQLite database, while nothing uses it.

    FILE is verified first, and migrated to the newest revision afterwards.
    """
    config = load_config()
    database = _sqlite_file(config, "restore PostgreSQL with pg_restore")
    try:
        replaced = restore(make_url(config.DATABASE_URL), file, force)
    except BackupError as error:
        exit_with_error(str(error))
    print_line(f"{database}: {database.stat().st_size} bytes, revision {migrations.head()}")
    if replaced:
        notice(f"the database before is {replaced}")
    if not config.SECRET_KEY:
        notice(
            f"put the secret_key that was kept with the backup at {config.secret_key_file}; "
            "with a new key, everyone signs in to the dashboard again"
        )


@db_command.command(
    "copy",
    epilog=examples(
        "taskservice db copy instance/taskservice.db postgresql://tasks@db.example.org/tasks",
        "taskservice db copy postgresql://tasks@db.example.org/tasks instance/taskservice.db",
    ),
)
@click.argument("source", metavar="FROM", type=DatabaseAddress())
@click.argument("target", metavar="TO", type=DatabaseAddress())
@json_lines
def copy_(source: URL, target: URL, as_json: bool) -> None:
    """Copy all of the database FROM into the empty database TO, and compare both.

    Each is an SQLite file or a postgresql:// URL. Nothing may use either meanwhile. If the copy
    is broken off, the same command goes on.
    """
    open_standard_files()
    keep_owner_permissions()
    with one_line_errors():
        try:
            copied = copy(source, target)
        except CopyError as error:
            exit_with_error(str(error))
    for each in copied:
        if as_json:
            print_json(vars(each))
        else:
            print_line(f"{each.table} {each.rows:,} rows, sha256 {each.sha256}")
    _remark_on_next_steps(target)


def _remark_on_next_steps(target: URL) -> None:
    is_file = target.get_backend_name() == "sqlite"
    url = f"sqlite:///{Path(target.database or '').resolve()}" if is_file else shown(target)
    unseen = "" if is_file else " with the password and parameters of TO"
    # A remark would be without the user.
    print_line(
        f"taskservice: to serve it, set TASKSERVICE_DATABASE_URL={url}{unseen}, and "
        "TASKSERVICE_SECRET_KEY to the same key as before, or everyone signs in to the dashboard "
        "again",
        err=True,
    )


def _sqlite_file(config: Config, instead: str) -> Path:
    """The file of the database; exits where it is another one, with what to do instead.

    From now on SIGTERM stops the command as Ctrl-C does: an unfinished copy is removed.
    """
    address = make_url(config.DATABASE_URL)
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    if address.get_backend_name() != "sqlite":
        exit_with_error(f"this is for SQLite; {instead}", 2)
    return Path(address.database or "")


def _remark_on_secret_key(config: Config) -> None:
    key = config.secret_key_file
    if key.is_file() and key.read_bytes().strip() == config.SECRET_KEY.encode():
        notice(f"keep {key} with it")


# `taskservice prune`: apply retention now.


@click.command(
    "prune",
    short_help="Remove what is past its retention.",
    epilog=examples(
        "TASKSERVICE_RETENTION_DAYS=30 taskservice prune --dry-run",
        "TASKSERVICE_RETENTION_DAYS=30 taskservice prune",
    ),
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would be removed.")
@json_object
def prune_command(dry_run: bool, as_json: bool) -> None:
    """Remove finished tasks and logs that are past their retention, and free disk space.

    TASKSERVICE_RETENTION_DAYS and TASKSERVICE_LOG_RETENTION_DAYS set the number of days.
    The service may run meanwhile. Unlike the service, this command does not require the
    clock to have been steady for five minutes.
    """
    with service_app():
        bounds = Bounds.of_settings(database_moment())
        if bounds == Bounds(None, None):
            notice(
                "Retention is off: set TASKSERVICE_RETENTION_DAYS or TASKSERVICE_LOG_RETENTION_DAYS"
            )
        if dry_run:
            removed = removal.count_prunable(bounds)
        else:
            removed = removal.prune_now(bounds)
            removal.sweep(inf)
            removal.shrink(inf)
    if as_json:
        print_json(vars(removed))
    else:
        print_line(_sentence(removed, "would be removed" if dry_run else "removed"))


def _sentence(removed: Removed, verb: str) -> str:
    if not removed.tasks and not removed.logs:
        return f"Nothing {verb}"
    text = f"{removed.tasks} task{'' if removed.tasks == 1 else 's'}"
    if removed.logs:
        text += f" and the log{'' if removed.logs == 1 else 's'} of {removed.logs} more"
    return f"{text} {verb}"
