"""`taskservice db`: upgrade, check and back up the database."""

import signal
import sys
from pathlib import Path

import click
from sqlalchemy.engine import make_url

from taskservice.cli.options import examples, json_lines
from taskservice.cli.service_app import load_config, service_app
from taskservice.config import Config
from taskservice.contract.terminal import exit_with_error, print_json, print_line, remark
from taskservice.database import migrations
from taskservice.operations import database_check
from taskservice.operations.backup import BackupError, backup


@click.group("db")
def command() -> None:
    """The database: upgrade, check and back it up."""


@command.command("upgrade", epilog=examples("taskservice db upgrade"))
def upgrade() -> None:
    """Migrate the database to the newest revision, and print that."""
    with service_app(may_create=True):
        print_line(migrations.head())


@command.command("check", epilog=examples("taskservice db check"))
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


@command.command("backup", epilog=examples("taskservice db backup /backup/taskservice.db"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def back_up(file: Path, force: bool) -> None:
    """Copy the SQLite database to FILE, also while the service runs, and verify the copy."""
    config = load_config()
    address = make_url(config.DATABASE_URL)
    # Like Ctrl-C: an unfinished copy is removed.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    if address.get_backend_name() != "sqlite":
        exit_with_error("this is for SQLite; back up PostgreSQL with pg_dump", 2)
    try:
        database = Path(address.database or "")
        revision = backup(database, config.secret_key_file, file, force)
    except BackupError as error:
        exit_with_error(str(error))
    print_line(f"{file}: {file.stat().st_size} bytes, revision {revision}, verified")
    _remark_on_secret_key(config)


def _remark_on_secret_key(config: Config) -> None:
    key = config.secret_key_file
    if key.is_file() and key.read_bytes().strip() == config.SECRET_KEY.encode():
        remark(f"keep {key} with it")
