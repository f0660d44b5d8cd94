"""`taskservice listen`: print webhooks, or post them to a local address."""

import json
import signal
import sys
from collections.abc import Callable
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import click

from taskservice.cli.options import Text, examples
from taskservice.cli.service_client import service_client
from taskservice.client import Client
from taskservice.runner.listener import HOST, Listener, Receiver
from taskservice.terminal import exit_with_error, print_line, remark

DEFAULT_PORT = 9000


@click.command(
    "listen",
    short_help="Receive webhooks on this machine.",
    epilog=examples(
        "taskservice listen", "taskservice listen --forward http://127.0.0.1:3000/webhook"
    ),
)
@click.option(
    "--forward",
    type=Text(),
    metavar="URL",
    help="Post the webhook of every task that finishes to this address.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help=f"Where to listen; {DEFAULT_PORT} by default."
)
@click.option("--json", "as_json", is_flag=True, help="Print each webhook as JSON on one line.")
def command(forward: str | None, port: int | None, as_json: bool) -> None:
    """Receive webhooks on this machine, verify their signatures and print each.

    Start a task with the callback http://127.0.0.1:9000/ and wait for its end. The service
    must be able to reach that address, and TASKSERVICE_CALLBACK_ALLOWED must contain `loopback`,
    as it has with `make run`.

    With --forward the service need not reach this machine: the command asks for finished
    tasks, whatever their callback is, and posts them to the address as the service would,
    signed with your callback secret. A receiver that does not answer 2xx gets the same
    webhook again, with the same webhook-id, up to six times.
    """
    if forward is not None and (port or as_json):
        raise click.UsageError("--forward can't be used with --port or --json.")
    if forward is not None and not _is_url(forward):
        raise click.BadParameter("must be a URL such as http://127.0.0.1:9000/", param_hint="URL")
    stopped = _stopped_by_signals()
    try:
        with service_client() as client:
            if forward is None:
                show = bytes.decode if as_json else _described
                _receive(client, port or DEFAULT_PORT, show, stopped)
            else:
                _forward(client, forward, stopped)
    except KeyboardInterrupt:
        sys.exit(0)


def _stopped_by_signals() -> Event:
    """Set by SIGINT and SIGTERM, which also raise KeyboardInterrupt.

    If a signal comes while Python runs a finalizer, that swallows the exception.
    """
    stopped = Event()

    def stop(_number: int, _frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped


def _receive(client: Client, port: int, show: Callable[[bytes], str], stopped: Event) -> None:
    try:
        receiver = Receiver(client, port, remark)
    except OSError as error:
        exit_with_error(
            f"can't listen on {HOST}:{port}: {error.strerror}; --port names another port"
        )
    with receiver:
        remark(f"webhooks to {receiver.url} are verified and shown here")
        for webhook in receiver.webhooks(stopped):
            print_line(show(webhook))


def _forward(client: Client, url: str, stopped: Event) -> None:
    listener = Listener(client, url, print_line)
    remark(f"tasks that finish now go to {url}")
    listener.listen(stopped)


def _described(webhook: bytes) -> str:
    """A task in one line: its id and name, its outcome, and that its signature is valid."""
    task: dict[str, Any] = json.loads(webhook)
    error = task.get("error")
    result = (
        f"{error['type']}: {error['message']}"
        if error
        else json.dumps(task["output"], ensure_ascii=False)
    )
    return f"{task['id']} {task['name']}: {task['status']} {result}, signature verified"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
