"""`taskservice run`: any program becomes a task."""

import sys
from typing import Any

import click

from taskservice.cli.agent_command import the_service
from taskservice.runner.resend import resend
from taskservice.runner.run import Run
from taskservice.runner.signals import forward_signals
from taskservice.terminal import give_up, open_standard_files, print_line


@click.command("run", context_settings={"ignore_unknown_options": False})
@click.option("--agent", metavar="ID", help="The agent whose task it is; registered if it is new.")
@click.option("--name", help="The task's name; the agent's by default.")
@click.option("--callback", metavar="URL", help="Where the signed webhook goes at the end.")
@click.option("--timeout", type=click.IntRange(0), metavar="S", help="Seconds it may be silent.")
@click.option("--strict", "is_strict", is_flag=True, help="Don't run CMD without its task.")
@click.option("--resend", "is_resend", is_flag=True, help="Send what earlier runs left behind.")
@click.argument("command_line", metavar="-- CMD ...", nargs=-1, type=click.UNPROCESSED)
def command(
    agent: str | None,
    is_strict: bool,
    is_resend: bool,
    command_line: tuple[str, ...],
    **fields: Any,
) -> None:
    """Run CMD as a task: its output becomes the log, its exit status the result.

    CMD's last line, if it is a JSON object, becomes the task's output; so does what CMD
    writes to the file that TASKSERVICE_OUTPUT names. The exit status is CMD's own, 128 and
    the number for a signal. CMD finds TASKSERVICE_TASK_ID, TASKSERVICE_TASK_URL and
    TASKSERVICE_WRITER in its environment. As with a pipe to `tee`, its stdout is no
    terminal: many programs then print in blocks unless told otherwise (`python -u`).

    When the service is away or refuses the task, CMD runs all the same, unless --strict is
    given; what could not be sent stays on the disk for --resend. A callback, name or timeout
    that the service refuses is left out.
    """
    open_standard_files()
    if is_resend:
        _resend(agent, command_line)
    if agent is None:
        raise click.UsageError("Missing option '--agent'.")
    if not command_line:
        raise click.UsageError("Missing the program: taskservice run --agent ID -- CMD ...")
    fields = {name: value for name, value in fields.items() if value is not None}
    with the_service() as client:
        run = Run(client.connection, command_line, {"agentId": agent, **fields, "claim": True})
        forward_signals(run.forward)
        run.start(is_strict)
        sys.exit(run.execute())


def _resend(agent: str | None, command_line: tuple[str, ...]) -> None:
    if agent is not None or command_line:
        raise click.UsageError("--resend goes alone.")
    with the_service() as client:
        try:
            is_done = resend(client.connection, print_line)
        except OSError as error:
            give_up(str(error))
        if not is_done:
            give_up("Not everything could be sent")
    sys.exit(0)
