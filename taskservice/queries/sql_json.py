"""Tasks as JSON that the database writes: for lists, which Python would make much slower."""

from typing import Any

from marshmallow import fields
from sqlalchemy import ColumnElement, and_, bindparam, case, func, select, true

from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.types import Identifier, formatted, joined_by_line_feed, json_string
from taskservice.schemas.answers import Lines, StoredJson, TaskError, TaskSchema

# What is larger is not read together with other tasks: a log, in bytes; input and output, in
# characters.
SMALL_LOG = 32 * 1024
SMALL_JSON = 8 * 1024


def task_json(schema: TaskSchema) -> ColumnElement[str | None]:
    """SQL for the text that `schema` has of a task; NULL if one of its fields is large."""
    values = [_value(name, field, schema) for name, field in schema.dump_fields.items()]
    return case((_is_small(schema), _object(list(schema.dump_fields), values)))


def _is_small(schema: TaskSchema) -> ColumnElement[bool]:
    small: list[ColumnElement[bool]] = [true()]
    for name, field in schema.dump_fields.items():
        if isinstance(field, StoredJson):
            small.append(func.length(schema.columns[name]) <= SMALL_JSON)
        elif isinstance(field, Lines):
            small.append(Task.log_bytes <= SMALL_LOG)
    return and_(*small)


def _object(names: list[str], values: list[Any]) -> ColumnElement[str]:
    template = ",".join(f'"{name}":%s' for name in names)
    return formatted("{" + template + "}", *values)


def _value(name: str, field: fields.Field[Any], schema: TaskSchema) -> Any:
    if isinstance(field, Lines):
        return case((Task.first_log > Task.log_count, "[]"), else_=_LINES)
    if isinstance(field, TaskError):
        return case((Task.error_type.is_(None), "null"), else_=_ERROR)
    column: Any = schema.columns[name]
    if column is Task.user_id:
        # The same for all tasks of a list: computed once.
        column = bindparam("user_id", type_=Identifier)
    return column if isinstance(field, fields.Integer | StoredJson) else json_string(column)


_ERROR = _object(
    ["type", "message"], [json_string(Task.error_type), json_string(Task.error_message)]
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
_LINES = formatted("[%s]", select(_STRINGS).scalar_subquery())
