"""`taskservice worker`: the background work in a process of its own."""

import signal

import click

from taskservice import resources
from taskservice.app import create_app
from taskservice.background.upkeep import join_loops, start_loops
from taskservice.cli.service_app import load_config, one_line_errors
from taskservice.database.engine import dispose
from taskservice.operations.request_log import configure_logging
from taskservice.terminal import remark

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@click.command("worker")
def command() -> None:
    """Post due webhooks and do the upkeep, without serving, until a signal ends it.

    Every process of `serve` does this too; any number of both may share a database.
    Timeouts end tasks only while a `serve` runs, which their agents can reach.
    """
    config = load_config()
    configure_logging(config.LOG_LEVEL, config.LOG_FORMAT)
    with one_line_errors():
        app = create_app(config, may_create=False)
    # Threads inherit this mask, so a signal waits for `sigwait` below.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    loops = start_loops(app, serves=False)
    remark(f"data in {config.DATA}, working")
    signal.sigwait(SIGNALS)
    resources.begin_stop()
    join_loops(loops)
    dispose(app)
