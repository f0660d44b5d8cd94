"""`taskservice export` and `import`: tasks as JSON Lines."""

import shutil
import sys
import tempfile
from dataclasses import asdict

import click
from marshmallow import ValidationError

from taskservice.cli.options import Text, examples, json_object
from taskservice.cli.service_app import service_app
from taskservice.schemas.fields import Timestamp
from taskservice.services import transfer
from taskservice.services.transfer import ImportResult, InvalidExport, import_from
from taskservice.terminal import exit_with_error, notice, print_json, print_line


class TimeText(click.ParamType[str]):
    """A time in RFC 3339."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            timestamp: str = Timestamp("").deserialize(value)
        except ValidationError as error:
            self.fail(str(error.messages[0]), param, ctx)
        return timestamp


@click.command(
    "export",
    short_help="Export tasks as JSON Lines.",
    epilog=examples(
        "taskservice export > tasks.jsonl",
        "taskservice export --user alice --since 2026-11-24T00:00:00Z > tasks.jsonl",
    ),
)
@click.option("--user", type=Text(), metavar="NAME", help="Only the tasks of this user.")
@click.option(
    "--since", type=TimeText(), metavar="TIME", help="Only tasks updated at or after this time."
)
def export_command(user: str | None, since: str | None) -> None:
    """Print tasks with their logs, questions and deliveries as JSON Lines.

    The service can be running. Keys and secrets are not exported.
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


# `taskservice import`: adds the tasks of an export.


@click.command("import", epilog=examples("taskservice import < tasks.jsonl"))
@json_object
def import_command(as_json: bool) -> None:
    """Add the tasks of an export on stdin: all of them or none.

    Tasks keep their ids. Tasks that already exist are skipped. No webhooks are sent.
    """
    with service_app():
        try:
            # Not `sys.stdin`, which is None if it was closed at the start.
            with open(0, "rb", closefd=False) as stdin, tempfile.TemporaryFile() as copy:
                if not stdin.seekable():
                    # Writers wait during the import, and a pipe can be slow.
                    shutil.copyfileobj(stdin, copy)
                    copy.seek(0)
                imported = import_from(stdin if stdin.seekable() else copy)
        except (InvalidExport, OSError) as error:
            exit_with_error(f"Nothing was imported: {error}")
    if as_json:
        print_json(asdict(imported))
    else:
        print_line(_sentence(imported))
    for name in imported.users:
        notice(f"user {name} has no key yet; add one with `taskservice key add`")


def _sentence(imported: ImportResult) -> str:
    return (
        f"{imported.tasks:,} tasks imported, {imported.existing_tasks:,} already existed; "
        f"{len(imported.users):,} users and {imported.agents:,} agents added"
    )
