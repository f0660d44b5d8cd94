"""The lines of an export, whose fields are checked in the same way as the fields of requests."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, validates_schema
from marshmallow.fields import Dict, Field, List, Nested
from marshmallow.validate import Length, Range, Regexp

from taskservice import terms
from taskservice.schemas import fields
from taskservice.schemas.answer_schema import answer_problems
from taskservice.schemas.hooks import HookFieldsSchema, HookSchema
from taskservice.schemas.requests import (
    AnswerQuestionSchema,
    AppendSchema,
    AskSchema,
    PutAgentSchema,
    ReportSchema,
    StartSchema,
)
from taskservice.schemas.tasks import (
    TASK_EXPANSIONS,
    AttemptSchema,
    DeliverySchema,
    QuestionSchema,
    TaskErrorSchema,
    TaskSchema,
)
from taskservice.schemas.users import AGENT_EXPANSIONS, AgentSchema, UserSchema
from taskservice.webhooks.destinations import RefusedError, read_url
from taskservice.webhooks.transport import KEPT_BYTES

# The version of the export format. Fields can be added without a new version, since an import
# ignores unknown fields and sets missing fields to their defaults.
FORMAT = 1
# The schemas of the exported rows. `failingSince` is not exported, since it depends on attempts
# that are not exported either.
hook_rows = HookSchema(exclude=("failingSince",))
user_rows = UserSchema()
agent_rows = AgentSchema(exclude=AGENT_EXPANSIONS)
# Logs and questions are exported in separate lines. `hangingSince` is omitted, since the service
# checks again whether an imported task hangs.
task_rows = TaskSchema(exclude=(*TASK_EXPANSIONS, "logs", "questions", "hangingSince"))
question_rows = QuestionSchema()
delivery_rows = DeliverySchema(exclude=("attempts",))
attempt_rows = AttemptSchema()


class LineSchema(Schema):
    """The base of the lines of an export; `of_rows` adds the fields of rows to a subclass."""

    class Meta:
        # Ignore unknown fields: a later version of the service, which has more fields, may have
        # written the export.
        unknown = EXCLUDE

    @classmethod
    def of_rows(cls, rows: fields.RowSchema, *requests: Schema) -> Schema:
        """A schema that loads the objects that `rows` dumps.

        Each field is loaded in the same way as by the first schema in `requests` that contains the
        field, or else by `rows`.
        """
        loaders: dict[str, Field[Any]] = {}
        declared = cls().fields
        for name, column in rows.columns.items():
            if name in declared:
                continue
            source = next((schema for schema in requests if name in schema.fields), rows)
            field = loaders[name] = copy(source.fields[name])
            field.attribute, field.allow_none = None, bool(column.nullable)
            # An export by an older version may lack the field, which is then null or has the
            # column's default.
            field.required = not column.nullable and column.server_default is None
        return cls.from_dict(loaders)()


def _check_url(url: str) -> None:
    # Only the syntax is checked here: each attempt checks whether the URL is allowed.
    try:
        read_url(url)
    except RefusedError as error:
        raise ValidationError(str(error)) from None


def _require(condition: bool, name: str, reason: str) -> None:
    if not condition:
        raise ValidationError(reason, name)


# Validates a line number or a number of lines.
_count = Range(1, 1 << 53)


class UserLineSchema(LineSchema):
    """A user, with the user's hooks."""

    hooks = List(
        Nested(LineSchema.of_rows(hook_rows, HookFieldsSchema())),
        validate=Length(max=terms.MAX_HOOKS),
        load_default=(),
    )


class IdempotencySchema(LineSchema):
    """The idempotency key of a request, and the digest of its body."""

    key = fields.text(required=True, validate=Length(1, terms.MAX_IDEMPOTENCY_KEY))
    digest = fields.text(required=True, validate=Regexp(r"[0-9a-f]{64}\Z"))


class TaskLineSchema(LineSchema):
    """A task without its log, questions and deliveries."""

    error = Nested(TaskErrorSchema(), allow_none=True, load_default=None)
    callback = fields.text(allow_none=True, validate=_check_url)
    logBytes = fields.integer(required=True, validate=Range(0, terms.MAX_LOG))
    version = fields.integer(required=True, validate=_count)
    timeout = fields.timeout(allow_none=True, load_default=None)
    writers = Dict(
        keys=fields.text(validate=Length(max=terms.MAX_WRITER)),
        values=fields.integer(validate=_count),
        validate=Length(max=terms.MAX_WRITERS + 1),
        required=True,
    )
    idempotency = Nested(IdempotencySchema(), allow_none=True, load_default=None)

    @validates_schema
    def check(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        is_running, has_failed = data["status"] == terms.RUNNING, data["status"] == terms.ERROR
        has_ended = data.get("finishedAt") is not None
        _require(has_ended != is_running, "finishedAt", "Must match the status.")
        _require((data["error"] is not None) == has_failed, "error", "Must match the status.")
        _require(
            data["firstLog"] <= data["logCount"] + 1, "firstLog", "Must be at most logCount + 1."
        )
        # Each line has at least one byte, its line feed.
        _require(data["logCount"] <= data["logBytes"], "logCount", "Must be at most logBytes.")


class QuestionLineSchema(LineSchema):
    """A question; the line of its task precedes it in the export."""

    taskId = fields.uuid(required=True)
    answer = AnswerQuestionSchema().fields["content"]
    idempotency = Nested(IdempotencySchema(), allow_none=True, load_default=None)

    @validates_schema
    def check(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        answer = data.get("answer")
        is_answered = data["state"] == terms.ANSWERED
        _require((answer is not None) == is_answered, "answer", "Must match the state.")
        if answer is not None and (errors := answer_problems(data["schema"], answer)):
            raise ValidationError(errors)


class AttemptLineSchema(LineSchema):
    """An attempt, with the start of the receiver's response."""

    answer = fields.text(allow_none=True, validate=Length(max=KEPT_BYTES))


class DeliveryLineSchema(LineSchema):
    """A delivery; the line of its task precedes it in the export."""

    taskId = fields.uuid(required=True)
    callback = fields.text(required=True, validate=_check_url)
    attempts = List(
        Nested(AttemptLineSchema.of_rows(attempt_rows)),
        validate=Length(max=terms.MAX_ATTEMPTS),
        required=True,
    )


class LogLineSchema(LineSchema):
    """Lines of a log; the line of the task precedes them in the export."""

    taskId = fields.uuid(required=True)
    first = fields.integer(required=True, validate=_count)
    lines = fields.strings()
    at = AppendSchema().fields["at"]


class VoidLineSchema(LineSchema):
    """Tells the import to discard a task whose line precedes this line in the export."""

    taskId = fields.uuid(required=True)


class ExportLineSchema(LineSchema):
    """The first line of an export."""

    format = fields.integer(required=True)


class EndLineSchema(LineSchema):
    """The last line of an export."""

    tasks = fields.integer(required=True)


LINES: dict[str, Schema] = {
    "export": ExportLineSchema(),
    "user": UserLineSchema.of_rows(user_rows),
    "agent": LineSchema.of_rows(agent_rows, PutAgentSchema()),
    "task": TaskLineSchema.of_rows(task_rows, StartSchema(), ReportSchema()),
    "question": QuestionLineSchema.of_rows(question_rows, AskSchema()),
    "delivery": DeliveryLineSchema.of_rows(delivery_rows),
    "log": LogLineSchema(),
    "void": VoidLineSchema(),
    "end": EndLineSchema(),
}
