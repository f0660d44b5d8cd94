"""`taskservice run`: any program becomes a task."""

import signal
import sys
from typing import Any

import click

from taskservice.cli.options import Duration, Label, Text, examples
from taskservice.cli.service_client import service_client
from taskservice.client.current_task import own_task_id
from taskservice.contract.terminal import exit_with_error, open_standard_files, print_line
from taskservice.runner.resend import resend
from taskservice.runner.run import Run
from taskservice.runner.signals import forward_signals


@click.command(
    "run",
    short_help="Run any program as a task.",
    context_settings={"ignore_unknown_options": False},
    epilog=examples(
        "taskservice run --agent backup -- ./backup.sh --all",
        "taskservice run --agent reader --label env=prod --timeout 1h30m -- python -u read.py",
    ),
)
@click.option(
    "--agent", type=Text(), metavar="ID", help="The agent of the task; registered if new."
)
@click.option("--name", type=Text(), help="The task's name; the agent's by default.")
@click.option(
    "--label",
    "labels",
    type=Label(),
    metavar="K=V",
    multiple=True,
    help="A label of the task; may be given several times.",
)
@click.option(
    "--callback", type=Text(), metavar="URL", help="Address of the webhook that is sent at the end."
)
@click.option(
    "--timeout",
    type=Duration(),
    metavar="TIME",
    help="How long this command may be silent before the service ends the task, such as 90 "
    "(seconds), 5m or 1h30m; 0 for no limit.",
)
@click.option(
    "--tty",
    "is_tty",
    is_flag=True,
    help="CMD prints to a terminal: line by line, and in colour.",
)
@click.option(
    "--strict", "is_strict", is_flag=True, help="Don't run CMD if the task can't be started."
)
@click.option(
    "--resend", "is_resend", is_flag=True, help="Send what earlier runs left on the disk."
)
@click.argument("command_line", metavar="-- CMD ...", nargs=-1, type=click.UNPROCESSED)
def command(
    agent: str | None,
    is_tty: bool,
    is_strict: bool,
    is_resend: bool,
    labels: tuple[tuple[str, str], ...],
    command_line: tuple[str, ...],
    **fields: Any,
) -> None:
    """Run CMD as a task: what it prints becomes the log, its exit code the result.

    The JSON object that CMD writes to the file $TASKSERVICE_OUTPUT becomes the task's
    output; without one, CMD's last line does, if it is a JSON object. The exit code is that
    of CMD, or 128 + n if signal n killed it. The environment of CMD has TASKSERVICE_TASK_ID,
    TASKSERVICE_TASK_URL and TASKSERVICE_WRITER. Its stdout is a pipe, and many programs print
    to a pipe in blocks; with --tty it is a terminal. The values of variables that look secret,
    such as $API_KEY, are stored and sent as ***.

    If the service is away or refuses the task, CMD runs anyway, unless --strict is given,
    and what could not be sent stays on the disk for --resend. If the service refuses the
    callback, label, name or timeout, the task is started without it. A task that is started
    inside another one has that as its parent.
    """
    open_standard_files()
    if is_resend:
        _resend(agent, command_line)
    if agent is None:
        raise click.UsageError("Missing option '--agent'.")
    if not command_line:
        raise click.UsageError("Missing the program: taskservice run --agent ID -- CMD ...")
    fields |= {"labels": dict(labels) or None, "parentId": own_task_id() or None}
    fields = {name: value for name, value in fields.items() if value is not None}
    with service_client() as client:
        fields = {"agentId": agent, **fields, "claim": True}
        run = Run(client.connection, command_line, fields, is_tty=is_tty)
        forward_signals(run.forward)
        if is_tty:
            signal.signal(signal.SIGWINCH, lambda number, frame: run.resize())
        run.start(is_strict)
        sys.exit(run.execute())


def _resend(agent: str | None, command_line: tuple[str, ...]) -> None:
    if agent is not None or command_line:
        raise click.UsageError("--resend takes no other arguments.")
    with service_client() as client:
        try:
            is_done = resend(client.connection, print_line)
        except OSError as error:
            exit_with_error(str(error))
        if not is_done:
            exit_with_error("Not everything could be sent")
    sys.exit(0)
