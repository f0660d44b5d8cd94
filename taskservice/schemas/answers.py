"""How rows are written, and what answers hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate

from taskservice.contract.error_codes import CODES
from taskservice.contract.terms import (
    COMPLETE,
    DELIVERY_STATES,
    ERROR,
    ERROR_TYPES,
    FAILED,
    PENDING,
    RUNNING,
    STATUSES,
)
from taskservice.schemas import strict_json
from taskservice.schemas.fields import (
    EXAMPLE_ATTEMPT,
    EXAMPLE_DELIVERY,
    EXAMPLE_KEY,
    EXAMPLE_KEY_TEXT,
    EXAMPLE_MOMENT,
    EXAMPLE_REQUEST,
    EXAMPLE_TASK,
    EXAMPLE_USER,
    doc,
    id_field,
    moment_field,
)


class StoredJson(fields.Dict):
    """A JSON object that is stored as text and goes out as that text."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return strict_json.fragment(value)


# Takes the place of a log's lines in a dumped task. NUL can stand nowhere else in JSON.
_SLOT = b"\0"
LINES = strict_json.fragment(_SLOT)


class Lines(fields.List[str]):
    """The lines of a log. A row does not carry them: they are written into their place.

    See `LINES` and `split_at_lines`.
    """

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return LINES


class TaskError(fields.Field[Any]):
    """Why a task ended as error: by TaskErrorSchema, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


class AnswerSchema(Schema):
    """How an answer looks."""

    class Meta:
        # Whoever reads an answer must be prepared for fields that come later.
        unknown = EXCLUDE


class RowSchema(AnswerSchema):
    """A schema that writes rows by a plan which it makes of its own fields once.

    The result is what marshmallow's own `dump` gives; a test compares the two.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._plan = [
            (field.data_key or name, field.attribute or name, _serializer(field))
            for name, field in self.dump_fields.items()
        ]

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        # For the documentation: a row is always written whole.
        field_obj.required = True

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
    """A program that works on its own."""

    id = fields.String(metadata=doc("Its id, which its user chose.", "summarizer"))
    name = fields.String(metadata=doc("Its name.", "Nightly summarizer"))
    description = fields.String(metadata=doc("What it does.", "Sums up the day's mail."))
    userId = id_field("The user that it belongs to.", EXAMPLE_USER, attribute="user_id")
    createdAt = moment_field("When it was registered.", EXAMPLE_MOMENT, "created_at")


class UserSchema(RowSchema):
    """The person or team that things belong to."""

    id = id_field("The user's id.", EXAMPLE_USER)
    name = fields.String(metadata=doc("The user's name.", "alice"))
    createdAt = moment_field("When the user was added.", EXAMPLE_MOMENT, "created_at")


class KeySchema(RowSchema):
    """An API key, without its text."""

    id = id_field("The key's id.", EXAMPLE_KEY)
    name = fields.String(metadata=doc("What its user calls it.", "laptop"))
    hint = fields.String(metadata=doc("What its text begins and ends with.", "tsk_agent_…Xk2P"))
    agentId = fields.String(
        attribute="agent_id",
        allow_none=True,
        metadata=doc("The one agent that it acts for; null for a user key.", "summarizer"),
    )
    createdAt = moment_field("When it was created.", EXAMPLE_MOMENT, "created_at")
    expiresAt = moment_field("From when on it no longer counts.", None, "expires_at")
    lastUsedAt = moment_field("The minute in which it was last used.", None, "last_used_at")
    revokedAt = moment_field("When it was revoked.", None, "revoked_at")


class NewKeySchema(KeySchema):
    """A key as its creation answers: the only answer with its text."""

    key = fields.String(
        attribute="text",
        metadata=doc("What goes into the header `apikey`.", EXAMPLE_KEY_TEXT),
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    secret = fields.String(
        metadata=doc(
            "As libraries for Standard Webhooks take it.",
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        )
    )
    createdAt = moment_field("When it was made.", EXAMPLE_MOMENT, "created_at")


class TaskErrorSchema(AnswerSchema):
    """Why a task ended as `error`."""

    type = fields.String(
        required=True,
        validate=validate.OneOf(ERROR_TYPES),
        metadata=doc(
            "`failed`: its agent said so; `cancelled`: its user did; `timeout`: its agent "
            "fell silent.",
            FAILED,
        ),
    )
    message = fields.String(
        required=True, metadata=doc("What went wrong, for a person.", "The mailbox is locked")
    )


class TaskSchema(RowSchema):
    """One execution of an agent, and what it left behind."""

    id = id_field("The task's id, which sorts by creation.", EXAMPLE_TASK)
    name = fields.String(metadata=doc("The task's name.", "nightly summary"))
    agentId = fields.String(
        attribute="agent_id", metadata=doc("The agent that does it.", "summarizer")
    )
    userId = id_field("The user that it belongs to.", EXAMPLE_USER, attribute="user_id")
    createdAt = moment_field("When it was started.", EXAMPLE_MOMENT, "created_at")
    updatedAt = moment_field("When it was last changed.", "2026-11-24T13:36:02.456Z", "updated_at")
    claimedAt = moment_field("When an agent took it up.", None, "claimed_at")
    finishedAt = moment_field("When it ended.", None, "finished_at")
    input = StoredJson(metadata=doc("What its agent is to work on.", {"mailbox": "office"}))
    logs = Lines(
        fields.String(), metadata=doc("Its lines, in order of arrival.", ["Synopsis: Running"])
    )
    firstLog = fields.Integer(
        attribute="first_log",
        metadata=doc(
            "The number of the first line that is still there; `logCount` + 1 when none is.",
            1,
            minimum=1,
        ),
    )
    logCount = fields.Integer(
        attribute="log_count",
        metadata=doc("How many lines there have ever been.", 1, minimum=0),
    )
    output = StoredJson(metadata=doc("What its agent reported.", {}))
    status = fields.String(
        validate=validate.OneOf(STATUSES),
        metadata=doc("How it stands.", RUNNING),
    )
    error = TaskError(
        attribute="error_type",
        metadata=doc(
            "Why it ended as `error`; null for any other status.",
            None,
            anyOf=[{"$ref": "#/components/schemas/TaskError"}, {"type": "null"}],
        ),
    )
    callback = fields.String(
        attribute="callback_url",
        allow_none=True,
        metadata=doc(
            "Where the webhook goes when it ends.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
        ),
    )
    agent = fields.Nested(AgentSchema())
    user = fields.Nested(UserSchema())


class ShapedTaskSchema(TaskSchema):
    """A task with the fields that `fields` asks for, or all, and with what `expand` embeds."""


class AttemptSchema(RowSchema):
    """One try of a delivery."""

    at = moment_field("When it began.", EXAMPLE_MOMENT, "at")
    durationMs = fields.Integer(
        attribute="duration_ms", metadata=doc("How many milliseconds it lasted.", minimum=0)
    )
    statusCode = fields.Integer(
        attribute="status_code",
        allow_none=True,
        metadata=doc("The receiver's HTTP status; null without an answer."),
    )
    message = fields.String(metadata=doc("What came of it, in one sentence."))


class DeliverySchema(RowSchema):
    """One webhook owed to one callback."""

    id = id_field("The delivery's id: the `webhook-id` of all its attempts.", EXAMPLE_DELIVERY)
    callback = fields.String(
        attribute="callback_url",
        metadata=doc(
            "Where it goes.", "https://myapp.example/api/v1/callback/2100aaa", format="uri"
        ),
    )
    state = fields.String(
        validate=validate.OneOf(DELIVERY_STATES),
        metadata=doc(
            "`pending`: it is still to be posted; `delivered`: the receiver answered 2xx; "
            "`failed`: it is given up, and kept; `cancelled`: a newer one has taken its place.",
            PENDING,
        ),
    )
    createdAt = moment_field("When the task ended.", EXAMPLE_MOMENT, "created_at")
    nextAttemptAt = moment_field(
        "From when on it may be posted; null unless it is pending.", None, "next_attempt_at"
    )
    attempts = fields.List(
        fields.Nested(AttemptSchema()),
        metadata=doc("All attempts, oldest first.", [EXAMPLE_ATTEMPT]),
    )


TASK_EXPANSIONS = ("agent", "user")
TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)


class AppendedSchema(AnswerSchema):
    """A task's log after an append."""

    logCount = fields.Integer(
        required=True, metadata=doc("How many lines there have ever been.", 3, minimum=0)
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf(STATUSES),
        metadata=doc("How the task stands.", RUNNING),
    )


class LogPageSchema(AnswerSchema):
    """Lines of a log, and where the next ones begin."""

    logs = fields.List(
        fields.String(),
        required=True,
        metadata=doc("Lines, in order of arrival.", ["Synopsis: Running"]),
    )
    next = fields.Integer(
        required=True,
        metadata=doc("What `after` is to be for the lines that follow.", 1, minimum=0),
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf(STATUSES),
        metadata=doc("How the task stands: unless it is running no more lines come.", RUNNING),
    )


class WhoAmISchema(UserSchema):
    """A user, and the key that asked."""

    key = fields.Nested(KeySchema())


class HealthSchema(AnswerSchema):
    """All is well."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata=doc("ok.", "ok"))


class FinishedTaskSchema(AnswerSchema):
    """What tells an agent whether to stop: only a cancelled task does."""

    id = id_field("The task's id.", EXAMPLE_TASK, required=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf([COMPLETE, ERROR]),
        metadata=doc("How it ended.", COMPLETE),
    )
    error = fields.Nested(TaskErrorSchema(), required=True, allow_none=True)


class ProblemSchema(AnswerSchema):
    """An error, as RFC 9457 has it."""

    type = fields.String(required=True, metadata=doc("What kind of problem.", "about:blank"))
    title = fields.String(required=True, metadata=doc("The status in words.", "Not Found"))
    status = fields.Integer(required=True, metadata=doc("The HTTP status.", 404))
    detail = fields.String(
        required=True, metadata=doc("What is wrong, in one sentence.", "Task's ID is not found")
    )
    code = fields.String(
        required=True,
        validate=validate.OneOf(CODES),
        metadata=doc(
            "The same for programs. "
            + " ".join(
                f"`{code}` ({status}): {meaning}" for code, (status, meaning) in CODES.items()
            ),
            "not_found",
        ),
    )
    errors = fields.Dict(
        metadata=doc(
            "With 422: field, parameter or header -> messages, nested as the request is.",
            additionalProperties={
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]
            },
        )
    )
    task = fields.Nested(FinishedTaskSchema())
    expected = fields.Integer(
        metadata=doc("With 409 at an append: the `seq` that the writer's next line has.")
    )
    requestId = fields.String(
        metadata=doc(
            "The request's id, as in the service's own log; not with 401.", EXAMPLE_REQUEST
        ),
    )


class DocumentSchema(Schema):
    """An OpenAPI document."""

    class Meta:
        unknown = INCLUDE

    openapi = fields.String(required=True, metadata=doc("The version of OpenAPI.", "3.1.0"))
    info = fields.Dict(required=True, metadata=doc("What it is.", {"title": "taskservice"}))
    paths = fields.Dict(required=True, metadata=doc("The operations.", {}))


agent_schema = AgentSchema()
user_schema = UserSchema()
key_schema = KeySchema()
new_key_schema = NewKeySchema()
callback_secret_schema = CallbackSecretSchema()
delivery_schema = DeliverySchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)
# Says how such an answer looks; `documents` dumps it through a TaskSchema of just those fields.
shaped_task_schema = ShapedTaskSchema(partial=True)
problem_schema = ProblemSchema()
document_schema = DocumentSchema()
appended_schema = AppendedSchema()
log_page_schema = LogPageSchema()
who_am_i_schema = WhoAmISchema()
health_schema = HealthSchema()


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A dumped task as JSON in two parts, between which the lines of its log belong.

    Without `logs` among its fields the second part is empty.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_lines(lines: Sequence[str]) -> bytes:
    """Lines as JSON strings with commas between them, without the brackets."""
    return strict_json.dumps(lines)[1:-1]
