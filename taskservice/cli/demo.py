"""`taskservice demo`: the service with made-up data, in a directory that is removed at the end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from taskservice.app import create_app
from taskservice.cli import options
from taskservice.cli.serve import one_line_errors, page_url, prepare_files
from taskservice.client import Client
from taskservice.config import PREFIX, Config
from taskservice.database.engine import dispose
from taskservice.demo.history import USER, History
from taskservice.demo.live import LiveAgents
from taskservice.services import sign_in_links, users
from taskservice.terminal import print_line

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@options.command(
    "taskservice demo",
    "--port 8080",
    "--no-browser",
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
    """Serve made-up data: eight agents with two months of tasks.

    Three of the agents start new tasks while the demo runs. The data is stored in a temporary
    directory, which is removed when the command ends. Settings in the environment are ignored.
    """
    prepare_files()
    _handle_signals(_exit)
    with tempfile.TemporaryDirectory(prefix="taskservice-demo-") as path, one_line_errors():
        key, link = _fill(Config(DATA=Path(path), BIND=f"127.0.0.1:{port}").completed())
        raise SystemExit(_serve(path, port, key, link, opens_browser=not no_browser))


def _handle_signals(handler: Any) -> None:
    for number in SIGNALS:
        # `nohup` ignores SIGHUP.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    """End the program with an exception, so that the directory is removed."""
    _handle_signals(signal.SIG_IGN)
    sys.exit(128 + number)


def _fill(config: Config) -> tuple[str, str]:
    """Create the user and the history; returns the API key and a sign-in link."""
    app = create_app(config)
    with app.app_context():
        key = users.add(USER)
        History(key.user_id).store()
        link = page_url(f"sign-in/{sign_in_links.create_for(USER).token}")
    dispose(app)
    return key.text, link


def _serve(path: str, port: int, key: str, link: str, *, opens_browser: bool) -> int:
    """Run the service and the live agents until a signal; returns the service's exit status."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    settings = {"DATA": path, "BIND": f"127.0.0.1:{port}", "LOG_LEVEL": "warning"}
    environment |= {PREFIX + name: text for name, text in settings.items()}
    arguments = [sys.executable, "-m", "taskservice", "serve"]
    # An exception before `Popen` returns would leave the service running.
    signals: list[int] = []
    _handle_signals(lambda number, _frame: signals.append(number))
    service = subprocess.Popen(arguments, env=environment, start_new_session=True)  # noqa: S603
    agents = LiveAgents(Client(f"http://127.0.0.1:{port}", key))

    def stop(*_: object) -> None:
        agents.stop()
        service.terminate()

    _handle_signals(stop)
    if signals:
        stop()
    if _is_ready(service, port):
        agents.start()
        print_line(f"Open {link}")
        print_line(f"API key of this demo: {key}")
        if opens_browser:
            webbrowser.open(link)
    return service.wait()


def _is_ready(service: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the service can be reached; returns false if it has ended."""
    while service.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False
