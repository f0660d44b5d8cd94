"""`taskservice serve`: migrate the database, then serve."""

import os
import signal

import click

from taskservice import resources
from taskservice.app import create_app
from taskservice.background.maintenance import join_loops, start_loops
from taskservice.cli import quick_import
from taskservice.cli.options import examples
from taskservice.cli.service_app import load_config, one_line_errors
from taskservice.config import documented
from taskservice.database.engine import dispose
from taskservice.operations.request_log import configure_logging
from taskservice.terminal import notice

# gunicorn reads these when it is imported, and fails if one is invalid; we have our own settings.
GUNICORN_VARIABLES = ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT", "SENDFILE")
SETTINGS = "".join(f"\n  {name}={default}\n      {text}" for name, default, text in documented())


@click.command(
    "serve",
    short_help="Run the service.",
    epilog=f"\b\nSettings, with their defaults:{SETTINGS}\n\n"
    + examples(
        "taskservice serve",
        "TASKSERVICE_BIND=0.0.0.0:8000 TASKSERVICE_DATA=/var/lib/taskservice taskservice serve",
    ),
)
def command() -> None:
    """Run the service: the API, the dashboard and the background work."""
    config = load_config(may_create=True)
    with one_line_errors():
        # It has no open connection, so the server processes can inherit it.
        app = create_app(config)
    for name in GUNICORN_VARIABLES:
        os.environ.pop(name, None)
    notice(f"data in {config.DATA}, listening on {config.BIND}")
    quick_import("taskservice.serving.settings").serve(lambda: app, config)


# `taskservice background`: the background work in a separate process.

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command(
    "background",
    short_help="Run only the background work.",
    epilog=examples("taskservice background"),
)
def background_command() -> None:
    """Run only the background work: webhooks, timeouts, retention.

    Each process of `serve` does this too, and any number of processes can share a database.
    Tasks time out only while `serve` runs, because otherwise their agents could not report.
    """
    config = load_config()
    configure_logging(config.LOG_LEVEL, config.LOG_FORMAT)
    with one_line_errors():
        app = create_app(config, may_create=False)
    # Threads inherit this mask, so a signal waits for `sigwait` below.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    loops = start_loops(app, serves=False)
    notice(f"background work started, data in {config.DATA}")
    signal.sigwait(SIGNALS)
    resources.begin_stop()
    join_loops(loops)
    dispose(app)
