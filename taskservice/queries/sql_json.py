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
from taskservice.schemas.fields import NO_QUESTIONS, Lines, OpenQuestions, StoredJson, StoredNumber
from taskservice.schemas.tasks import TaskError, TaskSchema

# A task that exceeds one of these is not read together with others: the size of its log in bytes;
# the length of its input, its output and the message of its error in characters.
MAX_LOG_BYTES = 8 * 1024
MAX_TEXT_LENGTH = 4 * 1024


def of_task(schema: TaskSchema) -> ColumnElement[bytes | None]:
    """SQL for the JSON that `schema` would dump of a task; NULL if one of its fields is large."""
    values = {name: _value(name, field, schema) for name, field in schema.dump_fields.items()}
    return case((_is_small(schema), utf8(_object(values))))


def _is_small(schema: TaskSchema) -> ColumnElement[bool]:
    small: list[ColumnElement[bool]] = [true()]
    for name, field in schema.dump_fields.items():
        if isinstance(field, StoredJson):
            small.append(func.length(schema.columns[name]) <= MAX_TEXT_LENGTH)
        elif isinstance(field, OpenQuestions):
            # Whether they are still open is said in Python.
            small.append(Task.questions == NO_QUESTIONS)
        elif isinstance(field, Lines):
            small.append(Task.log_bytes <= MAX_LOG_BYTES)
        elif isinstance(field, TaskError):
            small.append(func.coalesce(func.length(Task.error_message), 0) <= MAX_TEXT_LENGTH)
    return and_(*small)


def _object(values: dict[str, tuple[str, Any]]) -> ColumnElement[str]:
    """SQL for a JSON object. Field -> its JSON, with one `%s`, and the SQL that replaces this."""
    template = ",".join(f'"{name}":{text}' for name, (text, _) in values.items())
    return formatted("{" + template + "}", *(value for _, value in values.values()))


def _value(name: str, field: fields.Field[Any], schema: TaskSchema) -> tuple[str, Any]:
    """The JSON of a field, with one `%s`, and the SQL that replaces this."""
    if isinstance(field, Lines):
        return "[%s]", case((Task.first_log <= Task.log_count, _LINES))
    if isinstance(field, TaskError):
        return "%s", case((Task.error_type.is_(None), "null"), else_=_ERROR)
    column: Any = schema.columns[name]
    if isinstance(field, fields.Integer | StoredJson | OpenQuestions):
        return "%s", column
    if isinstance(field, StoredNumber):
        return "%s", func.coalesce(column, "null")
    if not isinstance(column.type, Uuid | Timestamp):
        return "%s", json_string(column)
    # All tasks of a list have the same user, so this id is formatted once, as a constant.
    is_user = column is Task.user_id
    text = api_text(bindparam("user_id", type_=Identifier) if is_user else column)
    # An id or a moment has no characters that JSON escapes.
    if not column.nullable:
        return '"%s"', text
    return "%s", case((column.is_(None), "null"), else_=json_string(text))


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
# All lines become one JSON string, and then each `\n` in it the border between two strings. In the
# meantime `\1`, which JSON does not contain, stands for `\\`: in `\\n` there is no line feed.
_STRING = json_string(joined_by_line_feed(_CHUNKS.c.text))
_STRINGS = func.replace(func.replace(func.replace(_STRING, r"\\", "\1"), r"\n", '","'), "\1", r"\\")
_LINES = select(_STRINGS).scalar_subquery()
