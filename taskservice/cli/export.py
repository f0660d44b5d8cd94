"""`taskservice export` and `import`: tasks as JSON Lines."""

import shutil
import sys
import tempfile
from dataclasses import asdict

import click
from marshmallow import ValidationError

from taskservice.cli import options
from taskservice.cli.serve import service_app
from taskservice.quantities import plural
from taskservice.schemas.fields import in_utc
from taskservice.services import exports
from taskservice.services.imports import InvalidExport, import_from
from taskservice.terminal import exit_with_error, notice, print_json, print_line


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


@options.command("taskservice import", "< tasks.jsonl")
@options.json_object
def import_command(as_json: bool) -> None:
    """Import an export from stdin, completely or not at all.

    Tasks and hooks retain their IDs; existing tasks and hooks are skipped. Nobody is notified, and
    imported hooks are off. An error message contains the line number in the export.
    """
    with service_app():
        try:
            # `sys.stdin` is not used: it is None if stdin was closed when Python started.
            with open(0, "rb", closefd=False) as stdin, tempfile.TemporaryFile() as copy:
                if not stdin.seekable():
                    # Read a pipe, which can be slow, before the import: the database accepts no
                    # other writes during the import.
                    shutil.copyfileobj(stdin, copy)
                    copy.seek(0)
                imported = import_from(stdin if stdin.seekable() else copy)
        except (InvalidExport, OSError) as error:
            exit_with_error(f"Nothing was imported: {error}")
    sentence = (
        f"{plural(imported.tasks, 'task')} imported, {imported.existing_tasks:,} already existed; "
        f"{plural(len(imported.users), 'user')}, {plural(imported.agents, 'agent')} and "
        f"{plural(imported.hooks, 'hook')} added"
    )
    print_json(asdict(imported)) if as_json else print_line(sentence)
    for name in imported.users:
        notice(f"user {name} has no key yet; add one with `taskservice key add`")
    if imported.hooks:
        notice("the hooks are off; their users turn them on with `taskservice hook on ID`")
