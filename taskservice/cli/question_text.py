"""Questions as text for a person: what an answer may be, and the command that answers."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from taskservice.cli.task_text import LONGER_ID, asks
from taskservice.client import Question, Task

# What is typed for a value of each type.
WORDS = {"string": "TEXT", "number": "NUMBER", "integer": "NUMBER", "boolean": "true|false"}


def command(task_id: str, question: Question, is_only: bool = True) -> str:
    """The command that answers it, but for the values."""
    which = "" if is_only else f" --question {question['id']}"
    return f"taskservice task answer {task_id[:LONGER_ID]}{which}"


def question(task: Task, asked: Question) -> list[str]:
    """What it asks and the command that answers it, each on a line."""
    begin = command(task.id, asked, is_only=len(task.questions) == 1)
    return [asks(asked["message"]), f"answer: {begin} {values(asked['schema'])}"]


def open_questions(task: Task) -> Iterator[str]:
    for each in task.questions:
        yield from question(task, each)


def details(question: Question) -> Iterator[str]:
    """The message, and a line for each field of the answer."""
    yield from question["message"].splitlines()
    schema = question["schema"]
    for name, field in schema["properties"].items():
        said = [
            _described(field),
            *(field[word] for word in ("title", "description") if word in field),
        ]
        optional = "" if name in schema.get("required", ()) else ", optional"
        yield f"  {name:10}  {': '.join(said)}{optional}"


def values(schema: Mapping[str, Any]) -> str:
    """What is typed for all fields: of a single one the value will do."""
    fields = schema["properties"]
    if not fields:
        return "--accept"
    if len(fields) == 1:
        return " ".join(map(_typed, fields.values()))
    required = schema.get("required", ())
    pairs = {name: f"{shlex.quote(name)}={_typed(field)}" for name, field in fields.items()}
    return " ".join(pair if name in required else f"[{pair}]" for name, pair in pairs.items())


def _typed(field: Mapping[str, Any]) -> str:
    found = _choices(field)
    if not found:
        return WORDS.get(field["type"], "TEXT")
    return "|".join(shlex.quote(text) for text in found)


def _choices(field: Mapping[str, Any]) -> dict[str, str]:
    """The values that a field may have, with their titles; empty if it may have others."""
    source = field.get("items", {}) if field["type"] == "array" else field
    options = source.get("oneOf") or source.get("anyOf") or ()
    titles = {str(each["const"]): str(each.get("title", "")) for each in options}
    return titles or dict.fromkeys(map(str, source.get("enum", ())), "")


def _described(field: Mapping[str, Any]) -> str:
    found = _choices(field)
    several = "any of " if field["type"] == "array" else ""
    texts = [f"{value} ({title})" if title else value for value, title in found.items()]
    return several + ", ".join(texts) if texts else _kind(field)


def _kind(field: Mapping[str, Any]) -> str:
    words = {"string": "text", "boolean": "true or false", "integer": "whole number"}
    return str(field.get("format") or words.get(field["type"], field["type"]))
