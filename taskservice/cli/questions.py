"""`taskservice ask`, `task answer` and `progress`, and the text of questions in a terminal."""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

import click

from taskservice.cli import options
from taskservice.cli.service_client import (
    UNAVAILABLE,
    WRONG_USE,
    find_task_id,
    program_client,
    service_client,
)
from taskservice.cli.task_text import LONGER_ID, asks
from taskservice.cli.watchdog import ended_if_killed
from taskservice.client import Client, Question, Task, responses
from taskservice.client.current_task import current_task_id, require_task_id
from taskservice.client.task import (
    ask,
    ask_alone,
    list_questions,
    schema_of_choices,
    seconds_open,
)
from taskservice.runner.program_output import Masker
from taskservice.runner.run import parse_object
from taskservice.terminal import exit_with_error, notice, print_json, print_line, print_log_line
from taskservice.terms import MAX_QUESTION, MAX_TIMEOUT, OPEN, QUESTION_TIMEOUT

# Placeholders for values, in angle brackets: if a person does not replace a placeholder, the shell
# reports an error.
PLACEHOLDERS = {
    "string": "<text>",
    "number": "<number>",
    "integer": "<number>",
    "boolean": "<true or false>",
    "array": "<choice>",
}
# If a question has at most this many choices, a command is printed for each choice.
MAX_CHOICES = 4


def commands(task_id: str, question: Question, is_only: bool) -> tuple[list[str], str]:
    """The commands that answer a question, with placeholders, and the command to decline it."""
    which = "" if is_only else f" --question {question['id']}"
    start = f"taskservice task answer {task_id[:LONGER_ID]}{which}"
    return [f"{start} {values}" for values in _values(question["schema"])], f"{start} --decline"


def print_open(task: Task, question: Question, err: bool = False) -> None:
    """Print the message of an open question, and the commands that answer it."""
    lines, _ = commands(task.id, question, is_only=len(task.questions) == 1)
    for line in (asks(question["message"]), *(f"answer: {line}" for line in lines)):
        print_line(line, err=err)


def outcome(question: Question) -> str:
    """The outcome of a question that is no longer open."""
    answer = question["answer"]
    content = "" if answer is None else f": {json.dumps(answer, ensure_ascii=False)}"
    by = f" by key {question['answeredBy']}" if question["answeredBy"] else ""
    return f"The question is {question['state']}{by}{content}"


def _values(schema: Mapping[str, Any]) -> list[str]:
    """The arguments of each command: only a value for a single field, otherwise KEY=VALUE pairs."""
    fields = schema["properties"]
    if not fields:
        return ["--accept"]
    if len(fields) == 1:
        ((name, field),) = fields.items()
        choices = ["true", "false"] if field["type"] == "boolean" else list(_choices(field))
        if 0 < len(choices) <= MAX_CHOICES:
            # Add the name of the field to a value that looks like an option or like KEY=VALUE.
            typed = (f"{name}={text}" if re.search("^-|=", text) else text for text in choices)
            return list(map(shlex.quote, typed))
        return [_placeholder(field)]
    required = [name for name in schema.get("required") or fields if name in fields]
    return [" ".join(f"{shlex.quote(name)}={_placeholder(fields[name])}" for name in required)]


def _placeholder(field: Mapping[str, Any]) -> str:
    return "<choice>" if _choices(field) else PLACEHOLDERS.get(field["type"], "<text>")


def _choices(field: Mapping[str, Any]) -> dict[str, str]:
    """The allowed values of a field, with their titles; empty if any value is allowed."""
    source = field.get("items", {}) if field["type"] == "array" else field
    options = source.get("oneOf") or source.get("anyOf") or ()
    titles = {str(option["const"]): str(option.get("title", "")) for option in options}
    return titles or dict.fromkeys(map(str, source.get("enum", ())), "")


def _described(field: Mapping[str, Any]) -> str:
    choices = _choices(field)
    several = "any of " if field["type"] == "array" else ""
    if texts := [f"{value} ({title})" if title else value for value, title in choices.items()]:
        return several + ", ".join(texts)
    words = {"string": "text", "boolean": "true or false", "integer": "whole number"}
    return str(field.get("format") or words.get(field["type"], field["type"]))


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


@options.command(
    "taskservice task answer",
    "01a20e63-9249-713c yes",
    '01a20e63-9249-713c deploy=true note="after lunch"',
    "01a20e63-9249-713c --decline",
)
@click.argument("task_id", type=options.text)
@click.argument("values", metavar="[KEY=VALUE]...", nargs=-1, type=options.text)
@options.text_option(
    "--question", "question_id", metavar="ID", help="Question to answer, if several are open."
)
@options.flag("--accept", help="Accept a question that has no fields.")
@options.flag("--decline", help="Decline the question.")
@options.json_object
def answer_command(
    task_id: str,
    values: Sequence[str],
    question_id: str | None,
    accept: bool,
    decline: bool,
    as_json: bool,
) -> None:
    """Answer a question of a task.

    Without values, the command prints the question and the commands that answer it. For a
    question with one field, omit KEY. Repeat KEY=VALUE for a field with several values.
    """
    if (accept, decline, bool(values)).count(True) > 1:
        raise click.UsageError("Give values, --accept or --decline.")
    with service_client() as client:
        task_id = find_task_id(client, task_id)
        question = _question(client, task_id, question_id)
        if not (values or accept or decline):
            _print_question(task_id, question, question_id is None)
        task = Task(client.connection, {"id": task_id})
        try:
            if decline:
                answered = task.decline(question["id"])
            else:
                answered = task.answer(question["id"], _content(question["schema"], values))
        except responses.Invalid as error:
            # The service names a field `content.KEY`, but the person typed only KEY.
            exit_with_error(str(error).replace("content.", ""))
        except responses.Conflict:
            exit_with_error(outcome(_question(client, task_id, question["id"])))
        print_json(answered) if as_json else print_line(answered["state"])


def _question(client: Client, task_id: str, prefix: str | None) -> Question:
    """The question whose ID has this prefix; exits if no question or several questions match.

    Without a prefix: the only open question, or the last question if none is open.
    """
    questions = list_questions(client.connection, task_id)
    if prefix is None:
        matches = [item for item in questions if item["state"] == OPEN] or questions[-1:]
        problem = "The task has no questions"
    else:
        matches = [item for item in questions if options.has_prefix(item["id"], prefix)]
        problem = f"No question matches {prefix}"
    if not matches:
        exit_with_error(problem)
    if len(matches) > 1:
        for item in matches:
            print_line(f"{item['id']}  {asks(item['message'])}", err=True)
        exit_with_error("Several questions match; choose one with --question ID", WRONG_USE)
    return matches[0]


def _print_question(task_id: str, question: Question, is_only: bool) -> NoReturn:
    for line in question["message"].splitlines():
        print_line(line)
    schema = question["schema"]
    for name, field in schema["properties"].items():
        words = [field[word] for word in ("title", "description") if word in field]
        optional = "" if name in schema.get("required", ()) else ", optional"
        print_line(f"  {name:10}  {': '.join([_described(field), *words])}{optional}")
    if question["state"] != OPEN:
        exit_with_error(outcome(question))
    to_answer, to_decline = commands(task_id, question, is_only)
    for line in to_answer:
        print_line(f"to answer:   {line}")
    print_line(f"to decline:  {to_decline}")
    sys.exit(WRONG_USE)


def _content(schema: Mapping[str, Any], values: Sequence[str]) -> dict[str, Any]:
    """The value of each field, converted to the type in the schema."""
    fields = schema["properties"]
    by_field: dict[str, list[str]] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals and len(fields) == 1:
            key, value = next(iter(fields)), text
        elif not equals or key not in fields:
            keys = ", ".join(fields) or "none"
            raise click.UsageError(f"{text}: must be KEY=VALUE; keys: {keys}.")
        by_field.setdefault(key, []).append(value)
    return {key: _converted(key, fields[key]["type"], texts) for key, texts in by_field.items()}


def _converted(key: str, kind: str, texts: Sequence[str]) -> Any:
    """The value of a field; the service validates it against the schema."""
    if kind == "array":
        return list(texts)
    if len(texts) > 1:
        raise click.UsageError(f"{key}: was given more than once.")
    (text,) = texts
    if kind == "boolean":
        if text.lower() not in _BOOLEANS:
            raise click.UsageError(f"{key}: must be true or false.")
        return _BOOLEANS[text.lower()]
    if kind not in ("number", "integer"):
        return text
    if not _NUMBER.fullmatch(text):
        raise click.UsageError(f"{key}: must be a number.")
    parsed = parse_object(f'{{"number": {text}}}'.encode())
    if parsed is None:
        raise click.UsageError(f"{key}: {text} can't be stored exactly as a number.")
    return parsed["number"]


# The exit statuses; click uses 2 for wrong arguments.
EXIT_CODES = {responses.QuestionDeclined: 1, responses.QuestionExpired: 3}
TASK_ENDED = 4
INTERRUPTED = 128 + signal.SIGINT


@options.command(
    "taskservice ask",
    '"Which branch?"',
    '"Deploy?" --choice yes --choice no --timeout 1h',
    '"Delete 34 files?" --schema schema.json',
    short_help="Ask a person, and wait for the answer.",
)
@click.argument("message", type=options.text)
@options.text_option("--choice", "choices", multiple=True, help="Allowed answer. Repeatable.")
@click.option(
    "--schema",
    type=lambda path: options.json_input(f"@{path}"),
    metavar="FILE",
    help="File with a JSON Schema for the answer; - reads stdin.",
)
@click.option(
    "--timeout",
    type=options.Duration(maximum=MAX_TIMEOUT),
    help=f"Time until the question expires (default: {QUESTION_TIMEOUT // 3600}h); 0 for never.",
)
@options.text_option(
    "--agent",
    metavar="ID",
    help="Agent of the new task, if the command does not run in a task (default: ask).",
)
def ask_command(
    message: str,
    choices: tuple[str, ...],
    schema: dict[str, Any] | None,
    timeout: int | None,
    agent: str | None,
) -> None:
    """Ask a person, and print the answer.

    In a program that `run` or `work` started, the question belongs to the program's task.
    Otherwise, the command starts a task for the question, and ends the task with the answer, or
    with the output {"state": "expired"} or "declined". If the answer has one field, its value is
    printed; otherwise, the answer is printed as JSON. During an
    outage of the service, the command continues to wait. A signal withdraws the question, or
    cancels the task that was started for it. Exit status: 0 answered, 1 declined, 3 no answer in
    time, 4 the task has ended or the question was withdrawn, 69 the service stayed unavailable or
    refused the question.
    """
    if choices and schema is not None:
        raise click.UsageError("--choice can't be used with --schema.")
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The question is stored, so its secrets are masked, as in the log.
    masker = Masker(os.environ)
    message = masker.mask_text(message)
    if len(message) > MAX_QUESTION:
        problem = f"has {len(message):,} characters; at most {MAX_QUESTION:,} are allowed"
        exit_with_error(f"message: {problem}", WRONG_USE)
    answer_schema = masker.mask_json(schema_of_choices(choices) if choices else schema)
    with program_client(seconds_open(timeout), failure=UNAVAILABLE) as client:
        question = _answered(client, agent, message, answer_schema, timeout)
    answer = question["answer"] or {}
    if len(question["schema"]["properties"]) != 1:
        print_json(answer)
        return
    value = next(iter(answer.values()), "")
    # A string is printed unchanged to a file or a pipe.
    print_log_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _answered(
    client: Client,
    agent: str | None,
    message: str,
    schema: dict[str, Any] | None,
    timeout: int | None,
) -> Question:
    """The answered question; exits if there is no answer."""
    print_once = cache(notice)

    def announce(task_id: str) -> None:
        notice(f"{asks(message)} (answer at {client.connection.url}/tasks/{task_id})")

    def pause(seconds: float, error: responses.TaskServiceError) -> None:
        print_once(f"{error}; retrying")
        time.sleep(seconds)

    arguments = (message, schema, timeout)
    try:
        if task_id := current_task_id():
            announce(task_id)
            return ask(client.connection, task_id, *arguments, pause=pause)
        with ended_if_killed(client.connection, seconds_open(timeout)) as watch:

            def on_start(task: Task) -> None:
                watch(task)
                announce(task.id)

            return ask_alone(
                client.connection, *arguments, agent_id=agent, on_start=on_start, pause=pause
            )
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except responses.QuestionNotAnswered as error:
        exit_with_error(str(error), EXIT_CODES.get(type(error), TASK_ENDED))
    except (responses.TaskFinished, responses.NotFound) as error:
        exit_with_error(str(error), TASK_ENDED)


_AMOUNT = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_SHARE = re.compile(rf"({_AMOUNT})(?:/({_AMOUNT})|(%))?")


def _share(value: str) -> float:
    """A number from 0 to 1, given as `34/68`, `50%` or `0.5`."""
    match = _SHARE.fullmatch(value)
    if match is None:
        raise click.BadParameter("must look like 34/68, 50% or 0.5")
    whole = float(match[2] or (100 if match[3] else 1))
    if not whole or float(match[1]) > whole:
        raise click.BadParameter("must be from 0 to 1, like 34/68, 50% or 0.5")
    return float(match[1]) / whole


@options.command(
    "taskservice progress",
    '34/68 "34 of 68 pages"',
    "50%",
    short_help="Report the progress of the current task.",
)
@click.argument("share", metavar="DONE", type=_share)
@click.argument("note", type=options.text, required=False)
def progress_command(share: float, note: str | None) -> None:
    """Report the progress of the current task, in a program that `run` or `work` started.

    DONE is a fraction (34/68), a percentage (50%) or a number from 0 to 1 (0.5). NOTE describes
    the progress in up to 200 characters. Without NOTE, the note does not change.
    """
    noted = {} if note is None else {"note": Masker(os.environ).mask_text(note)}
    with program_client() as client:
        Task(client.connection, {"id": require_task_id()}).report(progress=share, **noted)
