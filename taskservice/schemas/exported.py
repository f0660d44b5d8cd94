"""The lines of an export: a type for each, with the fields that such a line has."""

from collections.abc import Mapping
from typing import Any

from marshmallow import (
    EXCLUDE,
    Schema,
    ValidationError,
    fields,
    pre_load,
    validate,
    validates_schema,
)

from taskservice.schemas import json_schema
from taskservice.schemas.fields import (
    Flag,
    Id,
    JsonObject,
    Labels,
    Moment,
    Share,
    Strings,
    Times,
    WholeNumber,
    bytes_at_most,
)
from taskservice.terms import (
    AGENT_ID,
    ANSWERED,
    DELIVERY_STATES,
    ERROR,
    ERROR_TYPES,
    MAX_DESCRIPTION,
    MAX_IDEMPOTENCY_KEY,
    MAX_LOG,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_NOTE,
    MAX_QUESTION,
    MAX_TIMEOUT,
    MAX_WRITER,
    MAX_WRITERS,
    QUESTION_STATES,
    RUNNING,
    STATUSES,
)
from taskservice.webhooks.destinations import read_url

FORMAT = 1
_MAX_COUNT = 1 << 53
_MAX_STATUS_CODE = 999


def _text(limit: int, **options: Any) -> fields.String:
    return fields.String(validate=validate.Length(max=limit), **options)


def _count() -> WholeNumber:
    return WholeNumber(validate=validate.Range(0, _MAX_COUNT))


def _url(value: str) -> None:
    try:
        # Where webhooks may go is judged when one is sent.
        read_url(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None


def _input_schema(value: dict[str, Any]) -> None:
    _refuse(json_schema.input_schema_problem(value))


def _question_schema(value: dict[str, Any]) -> None:
    _refuse(json_schema.question_schema_problem(value))


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise ValidationError(problem)


class _Complete(Schema):
    """What has all fields that may not be null; an older version lacks those added since."""

    class Meta:
        # Of a later version.
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        if field_obj.allow_none:
            field_obj.load_default = None

    @pre_load
    def check_complete(self, data: Any, **kwargs: Any) -> Any:
        needed = {name for name, field in self.fields.items() if not field.allow_none}
        missing = needed - data.keys()
        if missing:
            raise ValidationError({name: ["Is missing."] for name in sorted(missing)})
        return data


class Line(_Complete):
    """A line of an export, of a type that is one of `LINES`."""

    type = fields.String()


class ExportLine(Line):
    """The first line: what the others are."""

    format = WholeNumber(validate=validate.Equal(FORMAT, error="Must be {other}, not {input}."))
    version = fields.String()


class UserLine(Line):
    """A user, without keys and secrets."""

    id = Id()
    name = fields.String(validate=validate.Length(1, MAX_NAME))
    createdAt = Moment("")


class AgentLine(Line):
    """An agent of a user before it."""

    id = fields.String(validate=validate.Regexp(AGENT_ID.pattern + r"\Z"))
    userId = Id()
    name = fields.String(validate=validate.Length(1, MAX_NAME))
    description = _text(MAX_DESCRIPTION)
    createdAt = Moment("")
    inputSchema = JsonObject(validate=_input_schema)
    annotations = JsonObject()
    tool = Flag()


class ErrorOfTask(_Complete):
    """Why a task ended as error."""

    type = fields.String(validate=validate.OneOf(ERROR_TYPES))
    message = fields.String(validate=bytes_at_most(MAX_MESSAGE))


class Idempotency(_Complete):
    """The key by which a request can be repeated, and the digest of that request."""

    key = _text(MAX_IDEMPOTENCY_KEY)
    digest = fields.String(validate=validate.Length(64, 64))


class TaskLine(Line):
    """A task of an agent before it; its questions, deliveries and log follow."""

    id = Id()
    name = _text(MAX_NAME)
    agentId = fields.String()
    userId = Id()
    createdAt = Moment("")
    updatedAt = Moment("")
    claimedAt = Moment("", allow_none=True)
    finishedAt = Moment("", allow_none=True)
    input = JsonObject()
    output = JsonObject()
    status = fields.String(validate=validate.OneOf(STATUSES))
    error = fields.Nested(ErrorOfTask(), allow_none=True)
    startedBy = _text(MAX_NAME, allow_none=True)
    endedBy = _text(MAX_NAME, allow_none=True)
    progress = Share(allow_none=True)
    note = _text(MAX_NOTE, allow_none=True)
    labels = Labels("")
    parentId = Id(allow_none=True)
    rerunOf = Id(allow_none=True)
    callback = fields.String(allow_none=True, validate=_url)
    firstLog = WholeNumber(validate=validate.Range(1, _MAX_COUNT))
    logCount = _count()
    logBytes = WholeNumber(validate=validate.Range(0, MAX_LOG))
    version = WholeNumber(validate=validate.Range(1, _MAX_COUNT))
    timeout = WholeNumber(allow_none=True, validate=validate.Range(0, MAX_TIMEOUT))
    # Writer -> the number of lines that it has sent; the empty name is the writer without one.
    writers = fields.Dict(keys=_text(MAX_WRITER), values=_count())
    idempotency = fields.Nested(Idempotency(), allow_none=True)
    claimKey = _text(MAX_IDEMPOTENCY_KEY, allow_none=True)

    @validates_schema
    def check_end(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if (data["status"] == ERROR) != (data["error"] is not None):
            raise ValidationError("Only a task in error has one.", "error")
        if (data["status"] == RUNNING) != (data["finishedAt"] is None):
            raise ValidationError("Only a task that has ended has it.", "finishedAt")
        if data["firstLog"] > data["logCount"] + 1:
            raise ValidationError("Past the end of the log.", "firstLog")
        if len(data["writers"]) > MAX_WRITERS + 1:
            raise ValidationError(f"More than {MAX_WRITERS}.", "writers")


class QuestionLine(Line):
    """A question of the task before it."""

    taskId = Id()
    id = Id()
    message = fields.String(validate=validate.Length(1, MAX_QUESTION))
    schema = JsonObject(validate=_question_schema)
    state = fields.String(validate=validate.OneOf(QUESTION_STATES))
    askedAt = Moment("")
    expiresAt = Moment("", allow_none=True)
    answer = JsonObject(allow_none=True)
    answeredBy = _text(MAX_NAME, allow_none=True)
    idempotency = fields.Nested(Idempotency(), allow_none=True)

    @validates_schema
    def check_answer(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if (data["state"] == ANSWERED) != (data["answer"] is not None):
            raise ValidationError("Only an answered question has one.", "answer")


class AttemptOfDelivery(_Complete):
    """One attempt of a delivery."""

    at = Moment("")
    durationMs = WholeNumber(validate=validate.Range(0, 1 << 31))
    statusCode = WholeNumber(allow_none=True, validate=validate.Range(0, _MAX_STATUS_CODE))
    message = fields.String()
    answer = fields.String(allow_none=True)


class DeliveryLine(Line):
    """A delivery of the task before it, with its attempts, oldest first."""

    taskId = Id()
    id = Id()
    callback = fields.String(validate=_url)
    state = fields.String(validate=validate.OneOf(DELIVERY_STATES))
    createdAt = Moment("")
    nextAttemptAt = Moment("", allow_none=True)
    attempts = fields.List(fields.Nested(AttemptOfDelivery()))


class LogLine(Line):
    """The next lines of the log of the task before it; `first` is the number of the first one."""

    taskId = Id()
    first = WholeNumber(validate=validate.Range(1, _MAX_COUNT))
    lines = Strings(fields.String(), validate=validate.Length(min=1))
    at = Times(allow_none=True)

    @validates_schema
    def check_lines(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if any("\n" in line for line in data["lines"]):
            raise ValidationError("A line has a line feed.", "lines")
        if isinstance(data["at"], list) and len(data["at"]) != len(data["lines"]):
            raise ValidationError("Must have one time for each line.", "at")


class VoidLine(Line):
    """The task before it does not count: it was deleted, or its log dropped, meanwhile."""

    taskId = Id()


class EndLine(Line):
    """The last line: without it, the export is not complete."""

    tasks = _count()


LINES: dict[str, Line] = {
    "export": ExportLine(),
    "user": UserLine(),
    "agent": AgentLine(),
    "task": TaskLine(),
    "question": QuestionLine(),
    "delivery": DeliveryLine(),
    "log": LogLine(),
    "void": VoidLine(),
    "end": EndLine(),
}
# The lines that belong to the task before them.
OF_TASK = ("question", "delivery", "log", "void")
