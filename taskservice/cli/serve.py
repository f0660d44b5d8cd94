"""`taskservice serve`: migrate the database, then serve."""

import click

from taskservice.app import create_app
from taskservice.cli.service_app import load_config, one_line_errors
from taskservice.database.migrations import upgrade
from taskservice.serving.application import serve
from taskservice.terminal import remark


@click.command("serve")
def command() -> None:
    """Serve the API and the dashboard until a signal ends it."""
    config = load_config(may_create=True)
    with one_line_errors():
        upgrade(config.DATABASE_URL)
    remark(f"data in {config.DATA}, listening on {config.BIND}")
    serve(lambda: create_app(config), config)
