"""Options whose value is JSON, or a file with JSON, such as the input of a task."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from taskservice.cli.options import Text
from taskservice.runner.run import parse_object
from taskservice.terms import MAX_OBJECT


class JsonInput(click.ParamType[dict[str, Any]]):
    """A JSON object, or @FILE with one; @- reads stdin. Its numbers stay exact."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            text = _read(value[1:]) if value.startswith("@") else value.encode(errors="replace")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.fail(f"{value[1:]} can't be read: {reason}", param, ctx)
        parsed = parse_object(text)
        if parsed is None:
            self.fail(_reason(text), param, ctx)
        return parsed


class JsonFile(JsonInput):
    """A file with a JSON object; - reads stdin."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        return super().convert(f"@{value}", param, ctx)


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


class TaskInput(JsonInput):
    """Like JsonInput, or one member of the object as KEY=VALUE, whose value is a string."""

    name = "input"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        key, equals, text = value.partition("=")
        if equals and key and not key.lstrip().startswith(("@", "{", "[", '"')):
            return {Text().convert(key, param, ctx): Text().convert(text, param, ctx)}
        return super().convert(value, param, ctx)


def _merged(
    ctx: click.Context, param: click.Parameter, objects: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """All members; None if the option is not given."""
    return {key: value for part in objects for key, value in part.items()} if objects else None


task_input = click.option(
    "--input",
    "input_object",
    type=TaskInput(),
    multiple=True,
    callback=_merged,
    metavar="JSON",
    help="Input of the task: a JSON object, @FILE with one (@- reads stdin), or KEY=VALUE for a "
    "string. Repeatable.",
)
