"""`taskservice export`: tasks as JSON Lines."""

import sys

import click
from marshmallow import ValidationError

from taskservice.cli import options
from taskservice.cli.serve import service_app
from taskservice.schemas.fields import in_utc
from taskservice.services import exports
from taskservice.terminal import exit_with_error


def _time(value: str) -> str:
    """The time in UTC, from RFC 3339."""
    try:
        return in_utc(value)
    except ValidationError as error:
        raise click.BadParameter(str(error.messages[0])) from None


@options.command(
    "taskservice export",
    "> tasks.jsonl",
    "--user alice --since 2026-11-24T00:00:00Z > tasks.jsonl",
    short_help="Export tasks as JSON Lines.",
)
@options.text_option("--user", metavar="NAME", help="Only the data of this user.")
@click.option(
    "--since", type=_time, metavar="TIME", help="Only tasks updated at or after this time."
)
def command(user: str | None, since: str | None) -> None:
    """Print users with their agents, hooks and tasks as JSON Lines.

    You need not stop the service. Keys, secrets and links are not exported.
    """
    with service_app():
        try:
            for line in exports.lines(user, since):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            exit_with_error(f"stdout can't be written: {error.strerror}")
