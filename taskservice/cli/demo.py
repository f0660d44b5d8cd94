"""`taskservice demo`: the service with made-up data, in a directory that is removed at the end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from flask import Flask

from taskservice.app import create_app
from taskservice.cli import options
from taskservice.cli.serve import (
    one_line_errors,
    page_url,
    prepare_files,
    require_free_address,
)
from taskservice.client import Client
from taskservice.config import PREFIX, Config
from taskservice.database.engine import dispose
from taskservice.database.transactions import reading
from taskservice.demo.history import USER, History
from taskservice.demo.live import LiveAgents
from taskservice.operations import health
from taskservice.services import sign_in_links, users
from taskservice.terminal import print_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@options.command(
    "taskservice demo",
    "--port 8080",
    short_help="Try the service with made-up data.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    default=8000,
    show_default=True,
    help="Port to listen on.",
)
@click.option("--no-browser", is_flag=True, help="Print the link without opening a browser.")
def command(port: int, no_browser: bool) -> None:
    """Run the service with made-up data: eight agents with two months of tasks.

    Three of the agents start new tasks while the demo runs. The data is stored in a temporary
    directory, which is removed when the command ends. Settings in the environment are ignored.
    """
    prepare_files()
    bind = f"127.0.0.1:{port}"
    require_free_address(bind, "--port (`make demo`: TASKSERVICE_BIND)")
    signals: list[int] = []
    is_ready = False

    def note_signal(number: int, _frame: Any) -> None:
        signals.append(number)
        # `make` sends a second signal, which must not interrupt the removal of the directory.
        if len(signals) == 1 and not is_ready:
            sys.exit(128 + number)

    _handle_signals(note_signal)
    with tempfile.TemporaryDirectory(prefix="taskservice-demo-") as path, one_line_errors():
        app = create_app(Config(DATA=Path(path), BIND=bind).completed())
        key, link = _fill(app)
        is_ready = True
        if signals:
            sys.exit(128 + signals[0])
        sys.exit(_serve(app, key, link, signals, opens_browser=not no_browser))


def _handle_signals(handler: Any) -> None:
    for number in SIGNALS:
        # `nohup` ignores SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _fill(app: Flask) -> tuple[str, str]:
    """Create the user and the history; returns the API key and a sign-in link."""
    with app.app_context():
        key = users.add(USER)
        History(key.user_id).store()
        return key.text, page_url(f"sign-in/{sign_in_links.create_for(USER).token}")


def _serve(app: Flask, key: str, link: str, signals: list[int], *, opens_browser: bool) -> int:
    """Run the service and the live agents until a signal; returns the service's exit status."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    settings = {name: str(app.config[name]) for name in ("DATA", "BIND")}
    settings["LOG_LEVEL"] = "warning"
    environment |= {PREFIX + name: text for name, text in settings.items()}
    arguments = [sys.executable, "-m", "taskservice", "serve"]
    service = subprocess.Popen(arguments, env=environment, start_new_session=True)  # noqa: S603
    agents = LiveAgents(Client(f"http://{settings['BIND']}", key))

    try:
        is_ready = _is_ready(service, app, signals)
        dispose(app)
        if is_ready:
            agents.start()
            print_line(f"Open {link}")
            print_line(f"API key of this demo: {key}")
            print_line("Ctrl+C ends the demo and removes its data.")
            if opens_browser:
                webbrowser.open(link)
        while service.poll() is None and not signals:
            time.sleep(0.1)
        agents.stop()
    finally:
        # End the service even after an error, such as a closed stdout.
        service.terminate()
        status = service.wait()
    return status


def _is_ready(service: subprocess.Popen[bytes], app: Flask, signals: Sequence[int]) -> bool:
    """Wait until the service uses this database; returns false if it has ended or must end.

    An open port is not enough, since another program may listen on it.
    """
    while service.poll() is None and not signals:
        with app.app_context(), reading() as connection:
            if health.is_served(connection):
                return True
        time.sleep(0.05)
    return False
