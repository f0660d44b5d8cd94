"""`taskservice listen`: webhooks for a developer whose machine cannot be reached."""

import signal
import sys
from urllib.parse import urlsplit

import click

from taskservice.cli.agent_command import the_service
from taskservice.runner.listener import Listener
from taskservice.terminal import print_line, remark


@click.command("listen")
@click.option("--forward", required=True, metavar="URL", help="Where to post them.")
def command(forward: str) -> None:
    """Post every task that finishes to a local address, as the service would.

    The webhooks are signed with your own secret. A receiver that does not answer 2xx gets
    the same one again, with the same webhook-id, a few times.
    """
    if not _is_url(forward):
        raise click.BadParameter("must be a URL such as http://127.0.0.1:9000/", param_hint="URL")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with the_service() as client:
        listener = Listener(client, forward, print_line)
        remark(f"tasks that finish now go to {forward}")
        try:
            listener.listen()
        except KeyboardInterrupt:
            sys.exit(0)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
