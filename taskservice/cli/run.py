"""`taskservice run`: runs any program as a task."""

import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from taskservice.cli import options
from taskservice.cli.service_client import PROGRAM_SECONDS, one_line_errors, program_client
from taskservice.client import SettingError
from taskservice.client.current_task import current_task_id
from taskservice.client.http import Connection
from taskservice.client.spool import now, rfc3339
from taskservice.client.task import not_none
from taskservice.runner.process import forward_signals
from taskservice.runner.program_output import Masker
from taskservice.runner.run import Run, become_program, check_program, resend
from taskservice.terminal import exit_with_error, notice, open_standard_files
from taskservice.terms import AGENT_ID, MAX_LABELS, label_problem


@options.command(
    "taskservice run",
    "--agent backup -- ./backup.sh --all",
    "--agent reader --input box=office --label env=prod -- python -u read.py",
    short_help="Run any program as a task.",
)
@click.option(
    "--agent",
    metavar="ID",
    # The program runs even if this ID is invalid.
    type=click.UNPROCESSED,
    help="Agent of the task; registered if new (default: the agent of an agent key, else the file "
    "name of CMD).",
)
@options.task_options("this command", options.Duration(), options.OptionOfRun)
@options.flag(
    "--tty", "is_tty", help="Give CMD a terminal, so that it prints line by line and in colour."
)
@options.flag(
    "--strict", "is_strict", is_eager=True, help="Do not run CMD if the task can't be started."
)
@options.flag("--resend", "is_resend", help="Send the saved data of earlier runs, then exit.")
@click.argument("command_line", metavar="-- CMD ...", nargs=-1, type=click.UNPROCESSED)
def command(
    agent: str | None,
    is_tty: bool,
    is_strict: bool,
    is_resend: bool,
    labels: dict[str, str] | None,
    command_line: tuple[str, ...],
    **fields: Any,
) -> None:
    """Run CMD as a task: its output becomes the log, and its exit status decides the outcome.

    The task's output is the JSON object that CMD writes to the file $TASKSERVICE_OUTPUT, else the
    last line that CMD prints, if that line is a JSON object. The command exits with the exit status
    of CMD, or 128 + n if signal n killed CMD. The environment of CMD contains TASKSERVICE_TASK_ID,
    TASKSERVICE_TASK_URL and TASKSERVICE_WRITER. Since the stdout of CMD is a pipe, many
    programs buffer their output; with --tty it is a terminal. The values of variables with secrets,
    such as $API_KEY, are replaced by *** before they are stored or sent.

    If the service is unavailable or refuses the task, CMD runs anyway, unless --strict is
    given, and unsent data stays on the disk for --resend. If the service refuses the callback,
    input, labels, name, parent, start time or timeout, the task is started without this
    value. An option with an invalid value is ignored. Without a valid URL, key and agent ID, CMD
    runs without a task. If CMD can't be started, no task is started, and the exit status is 127
    (not found) or 126 (not executable).
    A task started inside another task becomes its child.
    """
    open_standard_files()
    if is_resend:
        _resend(agent, command_line)
    if not command_line:
        raise click.UsageError("The program is missing: taskservice run -- CMD ...")
    # Checked first: a mistyped name must not become an agent that failed.
    check_program(command_line)
    with one_line_errors():
        try:
            connection = Connection(retry_timeout=PROGRAM_SECONDS)
            agent = _agent_id(agent, connection, command_line[0])
        except SettingError as error:
            if is_strict:
                raise
            notice(f"{error}; the program runs without a task, and nothing is recorded")
            become_program(command_line)
        masker = Masker(os.environ)
        valid = _valid_labels(masker.mask_json(labels or {}), is_strict)
        fields |= {name: masker.mask_json(fields[name]) for name in ("name", "input")}
        fields |= {"agentId": agent, "labels": valid or None, "parentId": current_task_id() or None}
        fields = not_none(**fields, claim=True, claimedAt=rfc3339(now()))
        run = Run(connection, command_line, fields, is_tty=is_tty)
        forward_signals(run.forward)
        if is_tty:
            signal.signal(signal.SIGWINCH, lambda number, frame: run.resize())
        run.start(is_strict)
        sys.exit(run.execute())


def _agent_id(agent: str | None, connection: Connection, program: str) -> str | None:
    """The given ID, else an ID from the program's name; None if an agent key determines the ID."""
    is_given = agent is not None
    if not is_given and not connection.agent_key_hint:
        file_name = Path(program).name
        id_like = re.sub("[^a-z0-9._-]", "-", file_name.lower()).lstrip("._-")
        agent = id_like[:64] or file_name
    if agent is not None and not AGENT_ID.fullmatch(agent):
        raise SettingError(f"agentId: {agent} must match {AGENT_ID.pattern}")
    if agent is not None and not is_given:
        notice(f"the agent is {agent}, named after the program; --agent changes the name")
    return agent


def _valid_labels(labels: Mapping[str, str], is_strict: bool) -> dict[str, str]:
    """The valid labels; with `is_strict`, exits if a label is invalid."""
    valid: dict[str, str] = {}
    for key, value in labels.items():
        problem = label_problem(key, value)
        if problem is None and len(valid) == MAX_LABELS:
            problem = f"A task has at most {MAX_LABELS} labels."
        if problem is None:
            valid[key] = value
        elif is_strict:
            exit_with_error(f"labels: {key}: {problem}")
        else:
            notice(f"labels: {key}: {problem} The task is started without this label")
    return valid


def _resend(agent: str | None, command_line: tuple[str, ...]) -> None:
    if agent is not None or command_line:
        raise click.UsageError("--resend takes no other arguments.")
    with program_client() as client:
        try:
            is_done = resend(client.connection)
        except OSError as error:
            exit_with_error(str(error))
        if not is_done:
            exit_with_error("Not everything could be sent")
    sys.exit(0)
