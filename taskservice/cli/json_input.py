"""The option that takes the input of a task: JSON, or a file with JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from taskservice.cli.options import Text
from taskservice.runner.run import parse_object
from taskservice.terms import MAX_OBJECT


class JsonInput(click.ParamType[dict[str, Any]]):
    """A JSON object, or @FILE that has one; @- reads stdin. Its numbers stay exact."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            text = _read(value[1:]) if value.startswith("@") else value.encode(errors="replace")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.fail(f"{value[1:]} can't be read: {reason}", param, ctx)
        given = parse_object(text)
        if given is None:
            self.fail(_reason(text), param, ctx)
        return given


class JsonFile(JsonInput):
    """A file that has a JSON object; - reads stdin."""

    name = "file"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        return super().convert(f"@{value}", param, ctx)


def _read(path: str) -> bytes:
    """What a file has, but no more than tells that it is too long."""
    if path == "-":
        return sys.stdin.buffer.read(MAX_OBJECT + 1)
    with open(path, "rb") as file:
        return file.read(MAX_OBJECT + 1)


def _reason(text: bytes) -> str:
    if len(text) > MAX_OBJECT:
        return "has more than 1 MiB"
    try:
        value = json.loads(text)
    except RecursionError:
        return "is nested too deep"
    except ValueError as error:
        return f"is not JSON: {error}; an example is '{{\"day\": 1}}', or @FILE"
    if not isinstance(value, dict):
        return 'must be a JSON object, such as {"day": 1}'
    return "has a key twice, a number that can't be kept exactly, or too many levels"


class TaskInput(JsonInput):
    """As JsonInput, or one member of the object as KEY=VALUE, whose value is a text."""

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
    """All members; None where the option is not given."""
    return {key: value for each in objects for key, value in each.items()} if objects else None


task_input = click.option(
    "--input",
    "given",
    type=TaskInput(),
    multiple=True,
    callback=_merged,
    metavar="JSON",
    help="Its input: a JSON object, @FILE with one (@- reads stdin), or KEY=VALUE with a text; "
    "may be given several times.",
)
