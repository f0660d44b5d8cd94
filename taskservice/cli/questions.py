"""Questions as text for a person: what an answer may be, and the command that answers."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from taskservice.cli.task_text import LONGER_ID, asks
from taskservice.client import Question, Task

# What stands for a value that is to be typed. A shell runs none of them as it stands.
PLACEHOLDERS = {
    "string": "<text>",
    "number": "<number>",
    "integer": "<number>",
    "boolean": "<true or false>",
    "array": "<choice>",
}
# Up to this number of choices, the command of each is shown.
MAX_CHOICES = 4


def command(task_id: str, question: Question, is_only: bool = True) -> str:
    """The command that answers it, but for the values."""
    which = "" if is_only else f" --question {question['id']}"
    return f"taskservice task answer {task_id[:LONGER_ID]}{which}"


def commands(task_id: str, question: Question, is_only: bool = True) -> list[str]:
    """The commands that answer it; what still has to be typed is in angle brackets."""
    begin = command(task_id, question, is_only)
    return [f"{begin} {values}" for values in _values(question["schema"])]


def question(task: Task, asked: Question) -> list[str]:
    """What it asks and the commands that answer it, each on a line."""
    found = commands(task.id, asked, is_only=len(task.questions) == 1)
    return [asks(asked["message"]), *(f"answer: {each}" for each in found)]


def open_questions(task: Task) -> Iterator[str]:
    for each in task.questions:
        yield from question(task, each)


def outcome(question: Question) -> str:
    """What became of a question that is no longer open."""
    answer = question["answer"]
    given = "" if answer is None else f": {json.dumps(answer, ensure_ascii=False)}"
    by = f" by key {question['answeredBy']}" if question["answeredBy"] else ""
    return f"The question is {question['state']}{by}{given}"


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


def _values(schema: Mapping[str, Any]) -> list[str]:
    """What can be typed for the fields: of a single one the value will do."""
    fields = schema["properties"]
    if not fields:
        return ["--accept"]
    if len(fields) == 1:
        ((name, field),) = fields.items()
        choices = ["true", "false"] if field["type"] == "boolean" else list(_choices(field))
        if 0 < len(choices) <= MAX_CHOICES:
            return [_choice(name, text) for text in choices]
        return [_placeholder(field)]
    needed = schema.get("required") or fields
    return [" ".join(f"{shlex.quote(name)}={_placeholder(fields[name])}" for name in needed)]


def _choice(name: str, text: str) -> str:
    """A choice as it is typed: with its field, if it looks like an option or like another pair."""
    return shlex.quote(f"{name}={text}" if text.startswith("-") or "=" in text else text)


def _placeholder(field: Mapping[str, Any]) -> str:
    return "<choice>" if _choices(field) else PLACEHOLDERS[field["type"]]


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
