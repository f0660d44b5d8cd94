"""`taskservice serve`: migrate the database, then serve."""

import os

import click

from taskservice.app import create_app
from taskservice.cli.options import examples
from taskservice.cli.quick_import import quick_import
from taskservice.cli.service_app import load_config, one_line_errors
from taskservice.terminal import exit_with_error, remark

# gunicorn reads these as it is imported, and fails there if it can't use one.
GUNICORN_VARIABLES = ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT", "SENDFILE")


@click.command(
    "serve",
    epilog=examples(
        "taskservice serve",
        "TASKSERVICE_BIND=0.0.0.0:8000 TASKSERVICE_DATA=/var/lib/taskservice taskservice serve",
    ),
)
def command() -> None:
    """Serve the API and the dashboard until a signal ends it."""
    config = load_config(may_create=True)
    with one_line_errors():
        # It has no connection open, so that the workers can inherit it.
        app = create_app(config)
    _prepare_for_gunicorn()
    remark(f"data in {config.DATA}, listening on {config.BIND}")
    quick_import("taskservice.serving.settings").serve(lambda: app, config)


def _prepare_for_gunicorn() -> None:
    """Leave gunicorn no settings but ours, and a current folder, which it asks for."""
    for name in GUNICORN_VARIABLES:
        os.environ.pop(name, None)
    try:
        os.getcwd()
    except FileNotFoundError:
        exit_with_error("The current folder is gone", 2)
