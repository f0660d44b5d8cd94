"""`taskservice db`: the database."""

import signal
import sys
from pathlib import Path

import click
from sqlalchemy.engine import make_url

from taskservice.cli.server_command import load_config, service
from taskservice.config import Config
from taskservice.database import migrations
from taskservice.operations import database_check
from taskservice.operations.backup import BackupError, backup
from taskservice.terminal import give_up, print_json, print_line, remark


@click.group("db")
def command() -> None:
    """The database; every command but check and backup brings it up to date first."""


@command.command("upgrade")
def upgrade() -> None:
    """Bring the database up to date and say at which revision it is."""
    with service(may_create=True):
        print_line(migrations.head())


@command.command("check")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check(as_json: bool) -> None:
    """Look the database over as it is; exits 1 when something is wrong.

    A warning is something to know about, and no reason to exit with 1.
    """
    states = set()
    for finding in database_check.findings(load_config()):
        states.add(finding.state)
        if as_json:
            print_json(vars(finding))
        else:
            print_line(f"{finding.state:8} {finding.check:11} {finding.message}")
    sys.exit(1 if database_check.ERROR in states else 0)


@command.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def back_up(file: Path, force: bool) -> None:
    """Copy the database to FILE while the service runs, and verify the copy."""
    config = load_config()
    address = make_url(config.DATABASE_URL)
    # As Ctrl-C does: nothing half-made stays.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    if address.get_backend_name() != "sqlite":
        give_up("this is for SQLite; of PostgreSQL, pg_dump makes the backup", 2)
    try:
        revision = backup(Path(address.database or ""), file, force)
    except BackupError as error:
        give_up(str(error))
    print_line(f"{file}: {file.stat().st_size} bytes, revision {revision}, verified")
    _remind(config)


def _remind(config: Config) -> None:
    key = config.secret_key_file
    if key.exists() and key.read_text().strip() == config.SECRET_KEY:
        remark(f"keep {key} with it")
