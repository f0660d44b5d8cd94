"""`taskservice db`: the database."""

import click

from taskservice import migrations
from taskservice.cli.service import service


@click.group("db")
def command() -> None:
    """The database; every command brings it up to date first."""


@command.command("upgrade")
def upgrade() -> None:
    """Bring the database up to date and say at which revision it is."""
    with service():
        click.echo(migrations.head())
