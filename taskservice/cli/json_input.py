"""Options whose value is JSON, or a file with JSON, such as the input of a task."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from taskservice.cli.options import Text
from taskservice.runner.run import parse_object
from taskservice.terms import MAX_OBJECT


def json_input(value: str) -> dict[str, Any]:
    """A JSON object, or @FILE with one; @- reads stdin. Its numbers stay exact."""
    try:
        text = _read(value[1:]) if value.startswith("@") else value.encode(errors="replace")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise click.BadParameter(f"{value[1:]} can't be read: {reason}") from None
    parsed = parse_object(text)
    if parsed is None:
        raise click.BadParameter(_reason(text))
    return parsed


def json_file(path: str) -> dict[str, Any]:
    """A file with a JSON object; - reads stdin."""
    return json_input(f"@{path}")


def _read(path: str) -> bytes:
    """Read at most MAX_OBJECT + 1 bytes, enough to detect a file that is too large."""
    if path == "-":
        return sys.stdin.buffer.read(MAX_OBJECT + 1)
    with open(path, "rb") as file:
        return file.read(MAX_OBJECT + 1)


def _reason(text: bytes) -> str:
    if len(text) > MAX_OBJECT:
        return "is larger than 1 MiB"
    try:
        value = json.loads(text)
    except RecursionError:
        return "is nested too deeply"
    except ValueError as error:
        return f"is not JSON: {error}; an example is '{{\"day\": 1}}', or @FILE"
    if not isinstance(value, dict):
        return 'must be a JSON object, such as {"day": 1}'
    return "contains a key twice, a number that can't be stored exactly, or too many levels"


def _json_or_member(value: str) -> dict[str, Any]:
    """Like `json_input`, or one member of the object as KEY=VALUE, whose value is a string."""
    key, equals, text = value.partition("=")
    if equals and key and not key.lstrip().startswith(("@", "{", "[", '"')):
        return {Text()(key): Text()(text)}
    return json_input(value)


def _merged(
    ctx: click.Context, param: click.Parameter, objects: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """All members; None if the option is not given."""
    return {key: value for part in objects for key, value in part.items()} if objects else None


task_input = click.option(
    "--input",
    "input_object",
    type=_json_or_member,
    multiple=True,
    callback=_merged,
    metavar="JSON",
    help="Input of the task: a JSON object, @FILE with one (@- reads stdin), or KEY=VALUE for a "
    "string. Repeatable.",
)
