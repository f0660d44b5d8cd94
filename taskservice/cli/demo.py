"""`taskservice demo`: the service with made-up data, in a directory that is removed at the end."""

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from taskservice.app import create_app
from taskservice.cli import options
from taskservice.cli.serve import one_line_errors, page_url, prepare_files
from taskservice.client import Client
from taskservice.config import PREFIX, Config
from taskservice.database.engine import dispose
from taskservice.demo.history import History
from taskservice.demo.live import LiveAgents
from taskservice.services import imports, sign_in_links, users
from taskservice.terminal import print_line

USER = "demo"


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
@click.option("--no-browser", is_flag=True, help="Print the link, and open no browser.")
def command(port: int, no_browser: bool) -> None:
    """Serve made-up data: eight agents with tasks of two months, three of them running now.

    The data are in a temporary directory, which is removed at the end. Settings in the environment
    are ignored.
    """
    prepare_files()
    with tempfile.TemporaryDirectory(prefix="taskservice-demo-") as path, one_line_errors():
        key, link = _fill(Config(DATA=Path(path), BIND=f"127.0.0.1:{port}").completed())
        raise SystemExit(_serve(path, port, key, link, opens_browser=not no_browser))


def _fill(config: Config) -> tuple[str, str]:
    """Make the user and the history; returns the API key and a sign-in link."""
    app = create_app(config)
    with app.app_context():
        key = users.add(USER)
        past = History(key.user_id, datetime.now(UTC))
        imports.import_from(io.BytesIO(b"".join(past.lines())))
        past.set_states()
        link = page_url(f"sign-in/{sign_in_links.create_for(USER).token}")
    dispose(app)
    return key.text, link


def _serve(path: str, port: int, key: str, link: str, *, opens_browser: bool) -> int:
    """Run the service and the live agents until a signal ends this program; returns its status."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    settings = {"DATA": path, "BIND": f"127.0.0.1:{port}", "LOG_LEVEL": "warning"}
    environment |= {PREFIX + name: text for name, text in settings.items()}
    arguments = [sys.executable, "-m", "taskservice", "serve"]
    service = subprocess.Popen(arguments, env=environment, start_new_session=True)  # noqa: S603

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if _is_ready(service, port):
        agents = LiveAgents(Client(f"http://127.0.0.1:{port}", key))
        agents.start()
        print_line(f"Open {link}")
        print_line(f"API key of this demo: {key}")
        if opens_browser:
            webbrowser.open(link)
        service.wait()
        agents.stop()
    return service.wait()


def _is_ready(service: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the service can be reached; false if it has ended."""
    while service.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False
