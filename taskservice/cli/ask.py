"""`taskservice ask` and `progress`: a program asks a person, or reports its progress."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import click

from taskservice.cli.json_input import json_file
from taskservice.cli.options import Duration, Text, examples
from taskservice.cli.service_client import UNAVAILABLE, WRONG_SETTING, service_client
from taskservice.cli.task_text import asks
from taskservice.client import (
    Client,
    Invalid,
    NotFound,
    Question,
    QuestionDeclined,
    QuestionExpired,
    QuestionNotAnswered,
    TaskFinished,
    require_task_id,
)
from taskservice.client.task import ask, change_task, schema_of_choices, seconds_open
from taskservice.runner.program_output import Masker
from taskservice.terminal import exit_with_error, notice, print_json, print_log_line
from taskservice.terms import MAX_TIMEOUT, QUESTION_TIMEOUT

# The exit codes; click uses 2 for wrong arguments.
EXIT_CODES = {QuestionDeclined: 1, QuestionExpired: 3}
TASK_ENDED = 4
INTERRUPTED = 128 + signal.SIGINT


@click.command(
    "ask",
    short_help="Ask a person, and wait for the answer.",
    epilog=examples(
        'taskservice ask "Which branch?"',
        'taskservice ask "Deploy?" --choice yes --choice no --timeout 1h',
        'taskservice ask "Delete 34 files?" --schema schema.json',
    ),
)
@click.argument("message", type=Text())
@click.option("--choice", "choices", type=Text(), multiple=True, help="Allowed answer. Repeatable.")
@click.option(
    "--schema",
    type=json_file,
    metavar="FILE",
    help="File with a JSON Schema for the answer; - reads stdin.",
)
@click.option(
    "--timeout",
    type=Duration(maximum=MAX_TIMEOUT),
    help=f"Time until the question expires (default: {QUESTION_TIMEOUT // 3600}h); 0 for never.",
)
def command(
    message: str, choices: tuple[str, ...], schema: dict[str, Any] | None, timeout: int | None
) -> None:
    """Ask a person, in a program that `run` or `work` started, and print the answer.

    If the answer has one field, its value is printed, otherwise the answer as JSON. Exit codes:
    0 answered, 1 declined, 3 no answer in time, 4 the task has ended or the question was
    withdrawn, 69 the service stayed unavailable or refused the question. The command keeps
    waiting during an outage. A signal withdraws the question.
    """
    if choices and schema is not None:
        raise click.UsageError("--choice can't be used with --schema.")
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The question is stored, like the lines of the log.
    masker = Masker(os.environ)
    message = masker.mask_text(message)
    answer_schema = masker.mask_json(schema_of_choices(choices) if choices else schema)
    with service_client(seconds_open(timeout), failure=UNAVAILABLE) as client:
        question = _answered(client, message, answer_schema, timeout)
    answer = question["answer"] or {}
    if len(question["schema"]["properties"]) != 1:
        print_json(answer)
        return
    value = next(iter(answer.values()), "")
    # A string is printed unchanged to a file or a pipe.
    print_log_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _answered(
    client: Client, message: str, schema: dict[str, Any] | None, timeout: int | None
) -> Question:
    """The answered question; without an answer the command exits."""
    task_id = require_task_id()
    notice(f"{asks(message)} (answer at {client.connection.url}/tasks/{task_id})")
    try:
        return ask(client.connection, task_id, message, schema, timeout, _waiting())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except QuestionNotAnswered as error:
        exit_with_error(str(error), EXIT_CODES.get(type(error), TASK_ENDED))
    except (TaskFinished, NotFound) as error:
        exit_with_error(str(error), TASK_ENDED)
    except Invalid as error:
        exit_with_error(str(error), WRONG_SETTING)


def _waiting() -> Callable[[float], None]:
    """A function that waits between attempts, and prints once that the service is unavailable."""
    print_once = cache(notice)

    def wait(seconds: float) -> None:
        print_once("the service does not respond; retrying")
        time.sleep(seconds)

    return wait


# `taskservice progress`: a program reports its progress.

_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_SHARE = re.compile(rf"({_NUMBER})(?:/({_NUMBER})|(%))?")


def _share(value: str) -> float:
    """A number from 0 to 1, given as `34/68`, `50%` or `0.5`."""
    match = _SHARE.fullmatch(value)
    if match is None:
        raise click.BadParameter("must look like 34/68, 50% or 0.5")
    whole = float(match[2] or (100 if match[3] else 1))
    if not whole or float(match[1]) > whole:
        raise click.BadParameter("must be from 0 to 1, like 34/68, 50% or 0.5")
    return float(match[1]) / whole


@click.command(
    "progress",
    short_help="Report the progress of the current task.",
    epilog=examples(
        'taskservice progress 34/68 "34 of 68 pages"',
        "taskservice progress 50%",
    ),
)
@click.argument("share", metavar="DONE", type=_share)
@click.argument("note", type=Text(), required=False)
def progress_command(share: float, note: str | None) -> None:
    """Report the progress of the current task, in a program that `run` or `work` started.

    DONE is a fraction (34/68), a percentage (50%) or a number from 0 to 1 (0.5). NOTE describes
    it in up to 200 characters; without NOTE, the old note stays.
    """
    changes: dict[str, Any] = {"progress": share}
    if note is not None:
        changes["note"] = Masker(os.environ).mask_text(note)
    with service_client() as client:
        change_task(client.connection, require_task_id(), changes)
