"""JSON in and out: what requests may say, and how rows are written."""

import re
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from taskservice import stamps, strict_json
from taskservice.models import CANCELLED, COMPLETE, ERROR, FAILED, RUNNING, TIMEOUT

MAX_NAME = 200
MAX_DESCRIPTION = 2_000
MAX_CALLBACK = 2_000
MAX_WRITER = 64
MAX_LINE = 64 * 1024
MAX_MESSAGE = 64 * 1024
MAX_OBJECT = 1024 * 1024
MAX_TIMEOUT = 366 * 86_400
MAX_LIMIT = 1_000

SORTS = ("-createdAt", "createdAt", "finishedAt")

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


# --- what a field may hold ---------------------------------------------------------------


class Flag(fields.Boolean):
    """true or false, and nothing that merely looks like it."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class WholeNumber(fields.Integer):
    """A JSON number without a fraction; neither a string nor a boolean."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.make_error("invalid", input=value)
        return value


class Moment(fields.Field[str]):
    """A moment as RFC 3339 has it, with its offset; loaded in our own spelling."""

    _SHAPE = re.compile(
        r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
    )

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        try:
            if not isinstance(value, str) or not self._SHAPE.fullmatch(value):
                raise ValueError
            return stamps.rfc3339(datetime.fromisoformat(value))
        except (ValueError, OverflowError):
            example = "2026-11-24T13:36:00Z"
            raise ValidationError(f"Must be a moment as in RFC 3339, such as {example}.") from None


class JsonObject(fields.Dict):
    """A JSON object of at most 1 MiB when written compactly."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise self.make_error("invalid")
        if len(strict_json.dumps(value)) > MAX_OBJECT:
            raise ValidationError(f"Longer than {MAX_OBJECT} bytes.")
        return value


class StoredJson(fields.Dict):
    """A JSON object that is stored as text and goes out as that text."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return strict_json.fragment(value)


class Lines(fields.List[str]):
    """The lines of a log. A row does not carry them: they are written into their place.

    See `LINES` and `split_at_lines`.
    """

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return LINES


class TaskError(fields.Field[Any]):
    """Why a task ended as error: `{"type", "message"}`, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


def _name(**options: Any) -> fields.String:
    return fields.String(validate=validate.Length(1, MAX_NAME), **options)


def _bytes_at_most(limit: int) -> Callable[[str], None]:
    def check(value: str) -> None:
        if len(value.encode()) > limit:
            raise ValidationError(f"Longer than {limit} bytes.")

    return check


# --- how rows are written ----------------------------------------------------------------

# Takes the place of a log's lines in a dumped task. NUL can stand nowhere else in JSON.
_SLOT = b"\0"
LINES = strict_json.fragment(_SLOT)


class RowSchema(Schema):
    """A schema that writes rows by a plan which it makes of its own fields once.

    The result is what marshmallow's own `dump` gives; a test compares the two.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._plan = [
            (field.data_key or name, field.attribute or name, _serializer(field))
            for name, field in self.dump_fields.items()
        ]

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self.many if many is None else many:
            return [self.dump(row, many=False) for row in obj]
        return {
            key: getattr(obj, attribute) if serialize is None
            else serialize(getattr(obj, attribute, None), attribute, obj)
            for key, attribute, serialize in self._plan
        }  # fmt: skip


def _serializer(field: fields.Field[Any]) -> Callable[..., Any] | None:
    """None where the row already holds what JSON is to have."""
    return None if type(field) in (fields.String, fields.Integer) else field._serialize


class AgentSchema(RowSchema):
    id = fields.String()
    name = fields.String()
    description = fields.String()
    userId = fields.String(attribute="user_id")
    createdAt = fields.String(attribute="created_at")


class UserSchema(RowSchema):
    id = fields.String()
    name = fields.String()
    createdAt = fields.String(attribute="created_at")


class KeySchema(RowSchema):
    id = fields.String()
    name = fields.String()
    hint = fields.String()
    agentId = fields.String(attribute="agent_id")
    createdAt = fields.String(attribute="created_at")
    expiresAt = fields.String(attribute="expires_at")
    lastUsedAt = fields.String(attribute="last_used_at")
    revokedAt = fields.String(attribute="revoked_at")


class NewKeySchema(KeySchema):
    """A key as its creation answers: the only answer with its text."""

    key = fields.String(attribute="text")


class CallbackSecretSchema(RowSchema):
    secret = fields.String()
    createdAt = fields.String(attribute="created_at")


class TaskSchema(RowSchema):
    id = fields.String()
    name = fields.String()
    agentId = fields.String(attribute="agent_id")
    userId = fields.String(attribute="user_id")
    createdAt = fields.String(attribute="created_at")
    updatedAt = fields.String(attribute="updated_at")
    claimedAt = fields.String(attribute="claimed_at")
    finishedAt = fields.String(attribute="finished_at")
    input = StoredJson()
    logs = Lines(fields.String())
    firstLog = fields.Integer(attribute="first_log")
    logCount = fields.Integer(attribute="log_count")
    output = StoredJson()
    status = fields.String(validate=validate.OneOf([RUNNING, COMPLETE, ERROR]))
    error = TaskError(attribute="error_type", validate=validate.OneOf([FAILED, CANCELLED, TIMEOUT]))
    callback = fields.String(attribute="callback_url")
    agent = fields.Nested(AgentSchema())
    user = fields.Nested(UserSchema())


TASK_EXPANSIONS = ("agent", "user")
TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)

agent_schema = AgentSchema()
user_schema = UserSchema()
key_schema = KeySchema()
new_key_schema = NewKeySchema()
callback_secret_schema = CallbackSecretSchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A dumped task as JSON in two parts, between which the lines of its log belong.

    Without `logs` among its fields the second part is empty.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_lines(lines: Sequence[str]) -> bytes:
    """Lines as JSON strings with commas between them, without the brackets."""
    return strict_json.dumps(lines)[1:-1]


# --- what requests may say ---------------------------------------------------------------


class StartSchema(Schema):
    agentId = fields.String(required=True)
    name = _name(allow_none=True)
    input = JsonObject(allow_none=True)
    callback = fields.String(allow_none=True, validate=_bytes_at_most(MAX_CALLBACK))
    timeout = WholeNumber(allow_none=True, validate=validate.Range(0, MAX_TIMEOUT))
    claim = Flag(allow_none=True)


class FailureSchema(Schema):
    """Why a task failed. The service's own types can't be reported."""

    type = fields.String(validate=validate.Equal(FAILED))
    message = fields.String(required=True, validate=_bytes_at_most(MAX_MESSAGE))


class ReportSchema(Schema):
    status = fields.String(validate=validate.OneOf([RUNNING, COMPLETE, ERROR]))
    output = JsonObject()
    error = fields.Nested(FailureSchema(), allow_none=True)
    name = _name()


class AppendSchema(Schema):
    logs = fields.List(fields.String(), required=True)
    seq = WholeNumber(allow_none=True, validate=validate.Range(1, 1 << 53))
    writer = fields.String(allow_none=True, validate=validate.Length(max=MAX_WRITER))


class PutAgentSchema(Schema):
    name = _name(allow_none=True)
    description = fields.String(allow_none=True, validate=validate.Length(max=MAX_DESCRIPTION))


class CreateKeySchema(Schema):
    name = _name(required=True)
    agentId = fields.String(allow_none=True)
    expiresAt = Moment(allow_none=True)


# --- what the query string may say -------------------------------------------------------


class Names(fields.Field[Sequence[str]]):
    """Names separated by commas, each one of `known`."""

    def __init__(self, known: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.known = known

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        names = tuple(value.split(","))
        unknown = [name for name in names if name not in self.known]
        if unknown:
            raise ValidationError([f"Unknown name: {name!r}." for name in unknown])
        return names


class NumberText(fields.Field[int]):
    """A whole number in the digits 0 to 9, from `low` to `high`."""

    def __init__(self, low: int, high: int, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = low, high

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        digits = value.isascii() and value.isdigit() and len(value) <= 19
        if not digits or not self.low <= int(value) <= self.high:
            raise ValidationError(f"Must be a whole number from {self.low} to {self.high}.")
        return int(value)


class NothingSchema(Schema):
    """A query string or body that has nothing to say."""


class TaskQuerySchema(Schema):
    fields_ = Names(TASK_FIELDS, data_key="fields", attribute="fields")
    expand = Names(TASK_EXPANSIONS)


class CursorField(fields.Field[tuple[Any, ...]]):
    """Where a page of a list ended, in a form that nobody needs to understand."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        try:
            sort, since, stage, moment, task_id = orjson.loads(urlsafe_b64decode(value))
            well_formed = sort in SORTS and stage in (0, 1) and parse_id(task_id) == task_id
            if not well_formed or not all(map(MOMENT.fullmatch, (since, moment))):
                raise ValueError
        except (ValueError, TypeError):
            raise ValidationError("Is no cursor of this list.") from None
        return sort, since, stage, moment, task_id


def dump_cursor(sort: str, since: str, stage: int, moment: str, task_id: str) -> str:
    """The cursor of a place in a list; CursorField loads it."""
    return urlsafe_b64encode(orjson.dumps((sort, since, stage, moment, task_id))).decode()


class ListQuerySchema(TaskQuerySchema):
    status = fields.String(validate=validate.OneOf([RUNNING, COMPLETE, ERROR]))
    agentId = fields.String(validate=validate.Regexp(AGENT_ID.pattern + r"\Z"))
    q = fields.String(validate=validate.Length(1, MAX_NAME))
    createdAfter = Moment()
    createdBefore = Moment()
    finishedAfter = Moment()
    sort = fields.String(validate=validate.OneOf(SORTS))
    limit = NumberText(1, MAX_LIMIT)
    cursor = CursorField()

    @validates_schema
    def check_cursor(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "cursor" not in data:
            return
        if "limit" not in data:
            raise ValidationError("Goes with limit.", "cursor")
        if data["cursor"][0] != data.get("sort", SORTS[0]):
            raise ValidationError("Belongs to a list in another order.", "cursor")


class AppendQuerySchema(Schema):
    seq = NumberText(1, 1 << 53)
    writer = fields.String(validate=validate.Length(max=MAX_WRITER))


def parse_id(text: str) -> str | None:
    """A UUID in its canonical spelling, or None where `text` is none."""
    try:
        return str(uuid.UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
