"""`taskservice export`: tasks as lines of JSON."""

import sys

import click
from marshmallow import ValidationError

from taskservice.cli.options import Text, examples
from taskservice.cli.service_app import service_app
from taskservice.schemas.fields import Moment
from taskservice.services import transfer
from taskservice.terminal import exit_with_error


class MomentText(click.ParamType[str]):
    """A moment in RFC 3339."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            moment: str = Moment("").deserialize(value)
        except ValidationError as error:
            self.fail(str(error.messages[0]), param, ctx)
        return moment


@click.command(
    "export",
    short_help="Print tasks with all that belongs to them as JSON.",
    epilog=examples(
        "taskservice export > tasks.jsonl",
        "taskservice export --user alice --since 2026-11-24T00:00:00Z > tasks.jsonl",
    ),
)
@click.option("--user", type=Text(), metavar="NAME", help="Only the tasks of this user.")
@click.option(
    "--since", type=MomentText(), metavar="TIME", help="Only tasks updated at or after this time."
)
def command(user: str | None, since: str | None) -> None:
    """Print tasks with their logs, questions and deliveries as lines of JSON.

    The service may run meanwhile. Keys and secrets are not exported.
    """
    with service_app():
        try:
            for line in transfer.lines(user, since):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            exit_with_error(f"stdout can't be written: {error.strerror}")
