"""JSON in and out: what requests may say, and how rows are written."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson
from marshmallow import (
    EXCLUDE,
    INCLUDE,
    Schema,
    ValidationError,
    fields,
    validate,
    validates_schema,
)

from taskservice import stamps, strict_json
from taskservice.models import (
    CANCELLED,
    COMPLETE,
    DELIVERED,
    ERROR,
    FAILED,
    PENDING,
    RUNNING,
    TIMEOUT,
)

MAX_NAME = 200
MAX_DESCRIPTION = 2_000
MAX_CALLBACK = 2_000
MAX_WRITER = 64
MAX_IDEMPOTENCY_KEY = 255
MAX_LINE = 64 * 1024
MAX_MESSAGE = 64 * 1024
MAX_OBJECT = 1024 * 1024
MAX_TIMEOUT = 366 * 86_400
MAX_LIMIT = 1_000
# Lines of a log in one page.
MAX_LINES = 10_000
DEFAULT_LINES = 1_000

DELIVERY_STATES = (PENDING, DELIVERED, FAILED, CANCELLED)
SORTS = ("-createdAt", "createdAt", "finishedAt")

AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# Python's own UUID takes many more spellings, some of them by mistake.
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# Of the examples in the documentation.
EXAMPLE_USER = "01a20e63-9218-7bda-b91d-7397fc8ca845"
EXAMPLE_TASK = "01a20e63-9249-713c-aada-f8fd1cd47589"
EXAMPLE_KEY = "01a20e63-921a-7c04-8f6e-52a1d0b7c3e9"
EXAMPLE_DELIVERY = "01a20e63-92c4-7f10-b3a5-9e1d6c2f4b80"
EXAMPLE_REQUEST = "01a20e63-9301-7d1e-b1a4-0c6f5e2d8a77"
EXAMPLE_KEY_TEXT = "tsk_agent_..."
EXAMPLE_MOMENT = "2026-11-24T13:36:00.123Z"
EXAMPLE_ATTEMPT = {
    "at": EXAMPLE_MOMENT,
    "durationMs": 10_002,
    "statusCode": None,
    "message": "No answer within 10 s.",
}


def said(description: str, *examples: Any, **keywords: Any) -> dict[str, Any]:
    """What the documentation says of a field; `keywords` are JSON Schema's own.

    The first example is the field's part of its schema's example.
    """
    more = {"examples": list(examples)} if examples else {}
    return {"description": description, **more, **keywords}


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

    def __init__(
        self, description: str, *examples: str, round_up: bool = False, **options: Any
    ) -> None:
        metadata = said(description, *examples, type="string", format="date-time")
        super().__init__(metadata=metadata, **options)
        # We count in milliseconds. Of a bound from above a part of one counts as a whole one.
        self._more = timedelta(microseconds=999 if round_up else 0)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        try:
            if not isinstance(value, str) or not self._SHAPE.fullmatch(value):
                raise ValueError
            # RFC 3339 allows `t` and `z`, which Python does not know.
            return stamps.rfc3339(self._rounded(datetime.fromisoformat(value.upper())))
        except (ValueError, OverflowError):
            example = "2026-11-24T13:36:00Z"
            raise ValidationError(f"Must be a moment as in RFC 3339, such as {example}.") from None

    def _rounded(self, moment: datetime) -> datetime:
        # After the last millisecond of the year 9999 there is none.
        latest = datetime.max.replace(tzinfo=moment.tzinfo) - self._more
        return min(moment, latest) + self._more


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
    """Why a task ended as error: by TaskErrorSchema, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


def _name(description: str, *examples: str, **options: Any) -> fields.String:
    metadata = said(description, *examples)
    return fields.String(validate=validate.Length(1, MAX_NAME), metadata=metadata, **options)


def _id(description: str, example: str, **options: Any) -> fields.String:
    return fields.String(metadata=said(description, example, format="uuid"), **options)


def _moment(description: str, example: str | None, attribute: str) -> fields.String:
    """A moment of a row, which holds it in our spelling already."""
    metadata = said(description, example, format="date-time")
    return fields.String(attribute=attribute, allow_none=example is None, metadata=metadata)


def _bytes_at_most(limit: int) -> Callable[[str], None]:
    def check(value: str) -> None:
        if len(value.encode()) > limit:
            raise ValidationError(f"Longer than {limit} bytes.")

    return check


# --- how rows are written ----------------------------------------------------------------

# Takes the place of a log's lines in a dumped task. NUL can stand nowhere else in JSON.
_SLOT = b"\0"
LINES = strict_json.fragment(_SLOT)


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

    id = fields.String(metadata=said("Its id, which its user chose.", "summarizer"))
    name = fields.String(metadata=said("Its name.", "Nightly summarizer"))
    description = fields.String(metadata=said("What it does.", "Sums up the day's mail."))
    userId = _id("The user that it belongs to.", EXAMPLE_USER, attribute="user_id")
    createdAt = _moment("When it was registered.", EXAMPLE_MOMENT, "created_at")


class UserSchema(RowSchema):
    """The person or team that things belong to."""

    id = _id("The user's id.", EXAMPLE_USER)
    name = fields.String(metadata=said("The user's name.", "alice"))
    createdAt = _moment("When the user was added.", EXAMPLE_MOMENT, "created_at")


class KeySchema(RowSchema):
    """An API key, without its text."""

    id = _id("The key's id.", EXAMPLE_KEY)
    name = fields.String(metadata=said("What its user calls it.", "laptop"))
    hint = fields.String(metadata=said("What its text begins and ends with.", "tsk_agent_…Xk2P"))
    agentId = fields.String(
        attribute="agent_id",
        allow_none=True,
        metadata=said("The one agent that it acts for; null for a user key.", "summarizer"),
    )
    createdAt = _moment("When it was created.", EXAMPLE_MOMENT, "created_at")
    expiresAt = _moment("From when on it no longer counts.", None, "expires_at")
    lastUsedAt = _moment("The minute in which it was last used.", None, "last_used_at")
    revokedAt = _moment("When it was revoked.", None, "revoked_at")


class NewKeySchema(KeySchema):
    """A key as its creation answers: the only answer with its text."""

    key = fields.String(
        attribute="text",
        metadata=said("What goes into the header `apikey`.", EXAMPLE_KEY_TEXT),
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    secret = fields.String(
        metadata=said(
            "As libraries for Standard Webhooks take it.",
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        )
    )
    createdAt = _moment("When it was made.", EXAMPLE_MOMENT, "created_at")


class TaskErrorSchema(AnswerSchema):
    """Why a task ended as `error`."""

    type = fields.String(
        required=True,
        validate=validate.OneOf([FAILED, CANCELLED, TIMEOUT]),
        metadata=said(
            "`failed`: its agent said so; `cancelled`: its user did; `timeout`: its agent "
            "fell silent.",
            FAILED,
        ),
    )
    message = fields.String(
        required=True, metadata=said("What went wrong, for a person.", "The mailbox is locked")
    )


class TaskSchema(RowSchema):
    """One execution of an agent, and what it left behind."""

    id = _id("The task's id, which sorts by creation.", EXAMPLE_TASK)
    name = fields.String(metadata=said("The task's name.", "nightly summary"))
    agentId = fields.String(
        attribute="agent_id", metadata=said("The agent that does it.", "summarizer")
    )
    userId = _id("The user that it belongs to.", EXAMPLE_USER, attribute="user_id")
    createdAt = _moment("When it was started.", EXAMPLE_MOMENT, "created_at")
    updatedAt = _moment("When it was last changed.", "2026-11-24T13:36:02.456Z", "updated_at")
    claimedAt = _moment("When an agent took it up.", None, "claimed_at")
    finishedAt = _moment("When it ended.", None, "finished_at")
    input = StoredJson(metadata=said("What its agent is to work on.", {"mailbox": "office"}))
    logs = Lines(
        fields.String(), metadata=said("Its lines, in order of arrival.", ["Synopsis: Running"])
    )
    firstLog = fields.Integer(
        attribute="first_log",
        metadata=said(
            "The number of the first line that is still there; `logCount` + 1 when none is.",
            1,
            minimum=1,
        ),
    )
    logCount = fields.Integer(
        attribute="log_count",
        metadata=said("How many lines there have ever been.", 1, minimum=0),
    )
    output = StoredJson(metadata=said("What its agent reported.", {}))
    status = fields.String(
        validate=validate.OneOf([RUNNING, COMPLETE, ERROR]),
        metadata=said("How it stands.", RUNNING),
    )
    error = TaskError(
        attribute="error_type",
        metadata=said(
            "Why it ended as `error`; null for any other status.",
            None,
            anyOf=[{"$ref": "#/components/schemas/TaskError"}, {"type": "null"}],
        ),
    )
    callback = fields.String(
        attribute="callback_url",
        allow_none=True,
        metadata=said(
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

    at = _moment("When it began.", EXAMPLE_MOMENT, "at")
    durationMs = fields.Integer(
        attribute="duration_ms", metadata=said("How many milliseconds it lasted.", minimum=0)
    )
    statusCode = fields.Integer(
        attribute="status_code",
        allow_none=True,
        metadata=said("The receiver's HTTP status; null without an answer."),
    )
    message = fields.String(metadata=said("What came of it, in one sentence."))


class DeliverySchema(RowSchema):
    """One webhook owed to one callback."""

    id = _id("The delivery's id: the `webhook-id` of all its attempts.", EXAMPLE_DELIVERY)
    callback = fields.String(
        attribute="callback_url",
        metadata=said(
            "Where it goes.", "https://myapp.example/api/v1/callback/2100aaa", format="uri"
        ),
    )
    state = fields.String(
        validate=validate.OneOf(DELIVERY_STATES),
        metadata=said(
            "`pending`: it is still to be posted; `delivered`: the receiver answered 2xx; "
            "`failed`: it is given up, and kept; `cancelled`: a newer one has taken its place.",
            PENDING,
        ),
    )
    createdAt = _moment("When the task ended.", EXAMPLE_MOMENT, "created_at")
    nextAttemptAt = _moment(
        "From when on it may be posted; null unless it is pending.", None, "next_attempt_at"
    )
    attempts = fields.List(
        fields.Nested(AttemptSchema()),
        metadata=said("All attempts, oldest first.", [EXAMPLE_ATTEMPT]),
    )


TASK_EXPANSIONS = ("agent", "user")
TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)

agent_schema = AgentSchema()
user_schema = UserSchema()
key_schema = KeySchema()
new_key_schema = NewKeySchema()
callback_secret_schema = CallbackSecretSchema()
delivery_schema = DeliverySchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)
# Says how such an answer looks; `documents` dumps it through a TaskSchema of just those fields.
shaped_task_schema = ShapedTaskSchema(partial=True)


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A dumped task as JSON in two parts, between which the lines of its log belong.

    Without `logs` among its fields the second part is empty.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_lines(lines: Sequence[str]) -> bytes:
    """Lines as JSON strings with commas between them, without the brackets."""
    return strict_json.dumps(lines)[1:-1]


# --- answers that no schema writes: here for the documentation ----------------------------


class AppendedSchema(AnswerSchema):
    """A task's log after an append."""

    logCount = fields.Integer(
        required=True, metadata=said("How many lines there have ever been.", 3, minimum=0)
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf([RUNNING, COMPLETE, ERROR]),
        metadata=said("How the task stands.", RUNNING),
    )


class LogPageSchema(AnswerSchema):
    """Lines of a log, and where the next ones begin."""

    logs = fields.List(
        fields.String(),
        required=True,
        metadata=said("Lines, in order of arrival.", ["Synopsis: Running"]),
    )
    next = fields.Integer(
        required=True,
        metadata=said("What `after` is to be for the lines that follow.", 1, minimum=0),
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf([RUNNING, COMPLETE, ERROR]),
        metadata=said("How the task stands: unless it is running no more lines come.", RUNNING),
    )


class WhoAmISchema(UserSchema):
    """A user, and the key that asked."""

    key = fields.Nested(KeySchema())


class HealthSchema(AnswerSchema):
    """All is well."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata=said("ok.", "ok"))


class FinishedTaskSchema(AnswerSchema):
    """What tells an agent whether to stop: only a cancelled task does."""

    id = _id("The task's id.", EXAMPLE_TASK, required=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf([COMPLETE, ERROR]),
        metadata=said("How it ended.", COMPLETE),
    )
    error = fields.Nested(TaskErrorSchema(), required=True, allow_none=True)


class ProblemSchema(AnswerSchema):
    """An error, as RFC 9457 has it."""

    type = fields.String(required=True, metadata=said("What kind of problem.", "about:blank"))
    title = fields.String(required=True, metadata=said("The status in words.", "Not Found"))
    status = fields.Integer(required=True, metadata=said("The HTTP status.", 404))
    detail = fields.String(
        required=True, metadata=said("What is wrong, in one sentence.", "Task's ID is not found")
    )
    errors = fields.Dict(
        metadata=said(
            "With 422: field or parameter -> messages, nested as the request is.",
            additionalProperties={
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]
            },
        )
    )
    task = fields.Nested(FinishedTaskSchema())
    expected = fields.Integer(
        metadata=said("With 409 at an append: the `seq` that the writer's next line has.")
    )
    requestId = fields.String(
        metadata=said(
            "The request's id, as in the service's own log; not with 401.", EXAMPLE_REQUEST
        ),
    )


class DocumentSchema(Schema):
    """An OpenAPI document."""

    class Meta:
        unknown = INCLUDE

    openapi = fields.String(required=True, metadata=said("The version of OpenAPI.", "3.1.0"))
    info = fields.Dict(required=True, metadata=said("What it is.", {"title": "taskservice"}))
    paths = fields.Dict(required=True, metadata=said("The operations.", {}))


problem_schema = ProblemSchema()
document_schema = DocumentSchema()
appended_schema = AppendedSchema()
log_page_schema = LogPageSchema()
who_am_i_schema = WhoAmISchema()
health_schema = HealthSchema()


# --- what requests may say ---------------------------------------------------------------


class StartSchema(Schema):
    """What a task is started with."""

    agentId = fields.String(
        required=True, metadata=said("The agent that is to do it; registered.", "summarizer")
    )
    name = _name("Its name; the agent's by default.", "nightly summary", allow_none=True)
    input = JsonObject(
        allow_none=True,
        metadata=said("What its agent is to work on; at most 1 MiB.", {"mailbox": "office"}),
    )
    callback = fields.String(
        allow_none=True,
        validate=_bytes_at_most(MAX_CALLBACK),
        metadata=said(
            "Where a signed webhook goes when the task ends: http or https, a host, neither "
            "user info nor fragment.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            maxLength=MAX_CALLBACK,
        ),
    )
    timeout = WholeNumber(
        allow_none=True,
        validate=validate.Range(0, MAX_TIMEOUT),
        metadata=said(
            "Seconds for which a claimed task may stay silent before it ends; 0: for ever.", 3600
        ),
    )
    claim = Flag(
        allow_none=True, metadata=said("Whether the caller takes it up right away.", False)
    )


class FailureSchema(Schema):
    """Why a task failed. The service's own types can't be reported."""

    type = fields.String(
        validate=validate.Equal(FAILED), metadata=said("`failed`, if it is given.")
    )
    message = fields.String(
        required=True,
        validate=_bytes_at_most(MAX_MESSAGE),
        metadata=said("What went wrong, for a person.", maxLength=MAX_MESSAGE),
    )


class ReportSchema(Schema):
    """What is to change in a task."""

    status = fields.String(
        validate=validate.OneOf([RUNNING, COMPLETE, ERROR]),
        metadata=said("`complete` or `error` end the task.", COMPLETE),
    )
    output = JsonObject(
        metadata=said("Each key given replaces that key whole; at most 1 MiB.", {"sum": 15})
    )
    error = fields.Nested(FailureSchema(), allow_none=True)
    name = _name("Another name.")


class AppendSchema(Schema):
    """Lines to add to a log."""

    logs = fields.List(
        fields.String(),
        required=True,
        metadata=said(
            "Lines; a line feed in one makes several of it. At most 64 KiB each.",
            ["Synopsis: Running", "15 mails"],
        ),
    )
    seq = WholeNumber(
        allow_none=True,
        validate=validate.Range(1, 1 << 53),
        metadata=said(
            "The number of the first line sent, counted from 1 by its writer: lines that are "
            "stored already are skipped.",
            1,
        ),
    )
    writer = fields.String(
        allow_none=True,
        validate=validate.Length(max=MAX_WRITER),
        metadata=said("Who counts, where several write; empty by default.", "worker-1"),
    )


class PutAgentSchema(Schema):
    """What an agent is registered with, or what is to change in it."""

    name = _name("Its name; at first its id.", "Nightly summarizer", allow_none=True)
    description = fields.String(
        allow_none=True,
        validate=validate.Length(max=MAX_DESCRIPTION),
        metadata=said("What it does.", "Sums up the day's mail."),
    )


class CreateKeySchema(Schema):
    """What a key is created with."""

    name = _name("What to call it.", "laptop", required=True)
    agentId = fields.String(
        allow_none=True,
        metadata=said("The one agent to which the key is narrowed; registered.", "summarizer"),
    )
    expiresAt = Moment(
        "From when on it no longer counts; never by default.",
        "2126-11-24T13:36:00Z",
        allow_none=True,
    )


# --- what the query string may say -------------------------------------------------------


class Names(fields.Field[Sequence[str]]):
    """Names separated by commas, each one of `known`."""

    def __init__(self, known: Sequence[str], description: str, **options: Any) -> None:
        # Documented as text, not as an array: not all clients can join one by commas.
        name = f"(?:{'|'.join(known)})"
        metadata = said(description, type="string", pattern=f"^{name}(?:,{name})*$")
        super().__init__(metadata=metadata, **options)
        self.known = known

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        names = tuple(value.split(","))
        unknown = [name for name in names if name not in self.known]
        if unknown:
            raise ValidationError([f"Unknown name: {name!r}." for name in unknown])
        return names


class NumberText(fields.Field[int]):
    """A whole number in the digits 0 to 9, from `low` to `high`."""

    def __init__(self, low: int, high: int, description: str) -> None:
        super().__init__(metadata=said(description, type="integer", minimum=low, maximum=high))
        self.low, self.high = low, high

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        digits = value.isascii() and value.isdigit() and len(value) <= 19
        if not digits or not self.low <= int(value) <= self.high:
            raise ValidationError(f"Must be a whole number from {self.low} to {self.high}.")
        return int(value)


class NothingSchema(Schema):
    """A query string or body that has nothing to say."""


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class TaskQuerySchema(Schema):
    """Which parts of a task are wanted."""

    fields_ = Names(
        TASK_FIELDS,
        f"The fields to return, separated by commas: {_in_words(TASK_FIELDS)}. All by default.",
        data_key="fields",
        attribute="fields",
    )
    expand = Names(
        TASK_EXPANSIONS, f"What to embed, separated by commas: {_in_words(TASK_EXPANSIONS)}."
    )


class CursorField(fields.Field[tuple[Any, ...]]):
    """Where a page of a list ended, in a form that nobody needs to understand."""

    def __init__(self) -> None:
        description = "Where the page before ended: it is in that page's `Link`. Goes with `limit`."
        super().__init__(metadata=said(description, type="string"))

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        try:
            sort, since, stage, moment, task_id = orjson.loads(urlsafe_b64decode(value))
            stages = (0, 1) if sort == "finishedAt" else (0,)
            # The types first: who takes a cursor apart puts in whatever JSON has.
            are_texts = all(type(part) is str for part in (sort, since, moment, task_id))
            if not are_texts or type(stage) is not int or stage not in stages:
                raise ValueError
            if sort not in SORTS or parse_id(task_id) != task_id:
                raise ValueError
            if not (_is_ours(since) and _is_ours(moment)):
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise ValidationError("Is no cursor of this list.") from None
        return sort, since, stage, moment, task_id


def _is_ours(moment: str) -> bool:
    return stamps.rfc3339(datetime.fromisoformat(moment)) == moment


def dump_cursor(sort: str, since: str, stage: int, moment: str, task_id: str) -> str:
    """The cursor of a place in a list; CursorField loads it."""
    return urlsafe_b64encode(orjson.dumps((sort, since, stage, moment, task_id))).decode()


class ListQuerySchema(TaskQuerySchema):
    """Which tasks a list has, and in which order."""

    status = fields.String(
        validate=validate.OneOf([RUNNING, COMPLETE, ERROR]),
        metadata=said("Only tasks that stand so."),
    )
    agentId = fields.String(
        validate=validate.Regexp(AGENT_ID.pattern + r"\Z"),
        metadata=said("Only tasks of this agent.", pattern=f"^{AGENT_ID.pattern}$"),
    )
    q = fields.String(
        validate=validate.Length(1, MAX_NAME),
        metadata=said("Only tasks with this in their name, in any case."),
    )
    createdAfter = Moment("Only tasks started after this moment.")
    createdBefore = Moment("Only tasks started before this moment.", round_up=True)
    finishedAfter = Moment("Only tasks that ended after this moment.")
    sort = fields.String(
        validate=validate.OneOf(SORTS),
        metadata=said(
            "`-createdAt`: newest first; `createdAt`: oldest first; `finishedAt`: by their end, "
            "running ones last.",
            default=SORTS[0],
        ),
    )
    limit = NumberText(1, MAX_LIMIT, "How many tasks a page has; without it all come, streamed.")
    cursor = CursorField()

    @validates_schema
    def check_cursor(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "cursor" not in data:
            return
        if "limit" not in data:
            raise ValidationError("Goes with limit.", "cursor")
        if data["cursor"][0] != data.get("sort", SORTS[0]):
            raise ValidationError("Belongs to a list in another order.", "cursor")


class LogQuerySchema(Schema):
    """Which lines are wanted."""

    after = NumberText(0, (1 << 63) - 1, "Only lines after this number; from the first by default.")
    limit = NumberText(
        1,
        MAX_LINES,
        f"At most so many lines. {DEFAULT_LINES:,} by default; as `text/plain`, all of them.",
    )


class AppendQuerySchema(Schema):
    """What goes into the body where that is JSON."""

    seq = NumberText(1, 1 << 53, "With `text/plain`: as `seq` in the JSON body.")
    writer = fields.String(
        validate=validate.Length(max=MAX_WRITER),
        metadata=said("With `text/plain`: as `writer` in the JSON body."),
    )


def parse_id(text: str) -> str | None:
    """A UUID in lower case, or None where `text` is none in the usual form of 8-4-4-4-12."""
    return text.lower() if _UUID.fullmatch(text) else None
