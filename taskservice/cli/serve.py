"""`taskservice serve`: bring the database up to date, then serve."""

import click

from taskservice.app import create_app
from taskservice.cli.server_command import load_config, one_line_failures
from taskservice.database.migrations import upgrade
from taskservice.serving.application import serve
from taskservice.terminal import remark


@click.command("serve")
def command() -> None:
    """Serve the API until a signal ends it."""
    config = load_config(may_create=True)
    with one_line_failures():
        upgrade(config.DATABASE_URL)
    remark(f"data in {config.DATA}, listening on {config.BIND}")
    serve(lambda: create_app(config), config)
