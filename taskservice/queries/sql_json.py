"""Tasks as JSON that the database writes: for lists, which Python would make much slower."""

from typing import Any

from marshmallow import fields
from sqlalchemy import ColumnElement, Uuid, and_, bindparam, case, func, select, true

from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.types import (
    Identifier,
    Timestamp,
    api_text,
    formatted,
    joined_by_line_feed,
    json_string,
    utf8,
)
from taskservice.schemas.answers import Lines, StoredJson, TaskError, TaskSchema

# What is larger is not read together with other tasks: a log, in bytes; input, output and the
# message of an error, in characters.
SMALL_LOG = 8 * 1024
SMALL_JSON = 4 * 1024


def task_json(schema: TaskSchema) -> ColumnElement[bytes | None]:
    """SQL for the JSON that `schema` has of a task; NULL if one of its fields is large."""
    values = {name: _value(name, field, schema) for name, field in schema.dump_fields.items()}
    return case((_is_small(schema), utf8(_object(values))))


def _is_small(schema: TaskSchema) -> ColumnElement[bool]:
    small: list[ColumnElement[bool]] = [true()]
    for name, field in schema.dump_fields.items():
        if isinstance(field, StoredJson):
            small.append(func.length(schema.columns[name]) <= SMALL_JSON)
        elif isinstance(field, Lines):
            small.append(Task.log_bytes <= SMALL_LOG)
        elif isinstance(field, TaskError):
            small.append(func.coalesce(func.length(Task.error_message), 0) <= SMALL_JSON)
    return and_(*small)


def _object(values: dict[str, tuple[str, Any]]) -> ColumnElement[str]:
    """A JSON object of these fields: for each, its JSON with `%s`, and what replaces that."""
    template = ",".join(f'"{name}":{text}' for name, (text, _) in values.items())
    return formatted("{" + template + "}", *(value for _, value in values.values()))


def _value(name: str, field: fields.Field[Any], schema: TaskSchema) -> tuple[str, Any]:
    if isinstance(field, Lines):
        return "[%s]", case((Task.first_log <= Task.log_count, _LINES))
    if isinstance(field, TaskError):
        return "%s", case((Task.error_type.is_(None), "null"), else_=_ERROR)
    column: Any = schema.columns[name]
    if isinstance(field, fields.Integer | StoredJson):
        return "%s", column
    if not isinstance(column.type, Uuid | Timestamp):
        return "%s", json_string(column)
    # That of the user is the same for all tasks of a list: computed once.
    is_user = column is Task.user_id
    text = api_text(bindparam("user_id", type_=Identifier) if is_user else column)
    # It has no characters that JSON escapes.
    return ("%s", json_string(text)) if column.nullable else ('"%s"', text)


_ERROR = _object(
    {
        "type": ("%s", json_string(Task.error_type)),
        "message": ("%s", json_string(Task.error_message)),
    }
)
_CHUNKS = (
    select(LogChunk.text)
    .join(Log, Log.id == LogChunk.log_id)
    .where(Log.task_id == Task.id)
    .order_by(LogChunk.last)
    .correlate(Task)
    .subquery()
)
# All lines as one JSON string, and then its line feeds become the borders of strings. Meanwhile
# each escaped backslash is a control character, which JSON does not contain.
_STRING = json_string(joined_by_line_feed(_CHUNKS.c.text))
_STRINGS = func.replace(func.replace(func.replace(_STRING, r"\\", "\1"), r"\n", '","'), "\1", r"\\")
_LINES = select(_STRINGS).scalar_subquery()
