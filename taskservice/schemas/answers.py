"""The schemas of answers, and how they serialize rows."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

from marshmallow import EXCLUDE, INCLUDE, Schema, fields, validate

from taskservice.contract.error_codes import CODES
from taskservice.contract.terms import (
    COMPLETE,
    DELIVERY_STATES,
    ERROR,
    ERROR_TYPES,
    FAILED,
    MAX_NOTE,
    OPEN,
    PENDING,
    QUESTION_STATES,
    RUNNING,
    SERVICE,
    STATUSES,
)
from taskservice.database import timestamps
from taskservice.database.models import (
    Agent,
    ApiKey,
    Attempt,
    CallbackSecret,
    Delivery,
    Question,
    Task,
    User,
)
from taskservice.schemas import elicitation, strict_json
from taskservice.schemas.fields import (
    EXAMPLE_ATTEMPT,
    EXAMPLE_DELIVERY,
    EXAMPLE_INPUT_SCHEMA,
    EXAMPLE_KEY,
    EXAMPLE_KEY_TEXT,
    EXAMPLE_LATER,
    EXAMPLE_MOMENT,
    EXAMPLE_QUESTION,
    EXAMPLE_REQUEST,
    EXAMPLE_TASK,
    EXAMPLE_USER,
    Column,
    doc,
    id_field,
    moment_field,
)

AGENT_EXPANSIONS = ("health",)
TASK_EXPANSIONS = ("agent", "user")


class StoredJson(fields.Dict):
    """A JSON object that is stored as text and answered as that text, or null."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if value is None else strict_json.fragment(value)


class StoredNumber(fields.Float):
    """A number that is stored as text and answered as that text, or null."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if value is None else strict_json.fragment(value)


# What `Task.questions` is without an open one.
NO_QUESTIONS = "[]"
# The placeholder of a log's lines in a dumped task. JSON contains NUL nowhere else.
_SLOT = b"\0"
LINES = strict_json.fragment(_SLOT)


class Lines(fields.List[str]):
    """The lines of a log. A row does not contain them: they replace `LINES`.

    See `split_at_lines`.
    """

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return LINES


class OpenQuestions(fields.List[Any]):
    """The open questions of a task, which are stored as JSON, without those that have expired."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return strict_json.fragment(value) if value == NO_QUESTIONS else open_questions(value)


def open_questions(stored: str) -> list[dict[str, Any]]:
    """The questions that are open now, of those that `Task.questions` has."""
    now = timestamps.now()
    questions: list[dict[str, Any]] = strict_json.loads(stored.encode())
    return [each for each in questions if each["expiresAt"] is None or each["expiresAt"] > now]


class TaskError(fields.Field[Any]):
    """Why a task ended as error: by TaskErrorSchema, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


class AnswerSchema(Schema):
    """The schema of an answer."""

    class Meta:
        # Later versions may add fields, which clients must ignore.
        unknown = EXCLUDE


class RowSchema(AnswerSchema):
    """A schema that serializes rows with functions built once from its fields, which is faster.

    The result equals that of marshmallow's own `dump`; a test compares the two.
    """

    # Fields that an answer has only if `expand` asks for them.
    expansions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        named = {field.data_key or name: field for name, field in self.dump_fields.items()}
        read = {key: field for key, field in named.items() if not isinstance(field, Lines)}
        attributes = {key: str(field.attribute or field.name) for key, field in read.items()}
        self._keys = tuple(named)
        self._keys_of_row = tuple(read)
        self._values = _getter(tuple(attributes.values()))
        self._serialized = [
            (key, attributes[key], field._serialize)
            for key, field in read.items()
            # Of other fields the row contains the value for the JSON.
            if type(field) not in (fields.String, fields.Integer)
        ]

    @property
    def columns(self) -> dict[str, Column]:
        """Field -> its column: what a read of such rows selects."""
        documented = {name: field.metadata for name, field in self.dump_fields.items()}
        return {name: doc["column"] for name, doc in documented.items() if "column" in doc}

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        # For the documentation: a dumped row always has all other fields.
        field_obj.required = field_name not in self.expansions
        if "column" in field_obj.metadata:
            field_obj.attribute = field_obj.metadata["column"].key

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self.many if many is None else many:
            return [self.dump(row, many=False) for row in obj]
        # A row contains everything but the lines.
        dumped: dict[str, Any] = dict.fromkeys(self._keys, LINES)
        dumped.update(zip(self._keys_of_row, self._values(obj), strict=True))
        for key, attribute, serialize in self._serialized:
            dumped[key] = serialize(dumped[key], attribute, obj)
        return dumped


def _getter(attributes: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads all these attributes of a row at once."""
    if len(attributes) > 1:
        return attrgetter(*attributes)
    return lambda row: tuple(getattr(row, name) for name in attributes)


class RecentTaskSchema(AnswerSchema):
    """A finished task in the health of its agent."""

    id = id_field("The task's id.", EXAMPLE_TASK, required=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf([COMPLETE, ERROR]),
        metadata=doc("Its status.", COMPLETE),
    )
    finishedAt = fields.String(
        required=True, metadata=doc("When it ended.", EXAMPLE_MOMENT, format="date-time")
    )
    seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Its duration since it was claimed; null if it never was.", 12.5, minimum=0),
    )


class HealthOfAgentSchema(AnswerSchema):
    """How an agent has done lately, over its last 30 finished tasks."""

    recent = fields.List(
        fields.Nested(RecentTaskSchema()),
        required=True,
        metadata=doc("Those tasks, the first to end first."),
    )
    successRate = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc(
            "The share of them that are complete, cancelled ones left out.",
            0.97,
            minimum=0,
            maximum=1,
        ),
    )
    lastSuccessAt = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("When the last complete one ended.", EXAMPLE_MOMENT, format="date-time"),
    )
    medianSeconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Their median duration in seconds, cancelled ones left out.", 12.5, minimum=0),
    )


class AgentOfTaskSchema(RowSchema):
    """The agent of a task."""

    id = fields.String(
        metadata=doc("The agent's id, chosen by its user.", "summarizer", column=Agent.id)
    )
    name = fields.String(metadata=doc("Its name.", "Nightly summarizer", column=Agent.name))
    description = fields.String(
        metadata=doc("What it does.", "Sums up the day's mail.", column=Agent.description)
    )
    userId = id_field("The user that it belongs to.", EXAMPLE_USER, column=Agent.user_id)
    createdAt = moment_field("When it was registered.", EXAMPLE_MOMENT, Agent.created_at)


class AgentSchema(AgentOfTaskSchema):
    """A program that works on tasks; `health` only if `expand` asks for it."""

    expansions = AGENT_EXPANSIONS

    inputSchema = StoredJson(
        metadata=doc(
            "The JSON Schema of its input, by which each start is checked.",
            EXAMPLE_INPUT_SCHEMA,
            column=Agent.input_schema,
        )
    )
    annotations = StoredJson(
        metadata=doc(
            "What it does, in the words of MCP's tools.",
            {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
            column=Agent.annotations,
        )
    )
    tool = fields.Boolean(
        metadata=doc("Whether MCP clients see it as a tool of its own.", True, column=Agent.tool)
    )
    health = fields.Nested(HealthOfAgentSchema())


class UserSchema(RowSchema):
    """The person or team that owns tasks, agents and keys."""

    id = id_field("The user's id.", EXAMPLE_USER, column=User.id)
    name = fields.String(metadata=doc("The user's name.", "alice", column=User.name))
    createdAt = moment_field("When the user was added.", EXAMPLE_MOMENT, User.created_at)


class KeySchema(RowSchema):
    """An API key, without its text."""

    id = id_field("The key's id.", EXAMPLE_KEY, column=ApiKey.id)
    name = fields.String(metadata=doc("The key's name.", "laptop", column=ApiKey.name))
    hint = fields.String(
        metadata=doc(
            "The first and last characters of its text.", "tsk_agent_…Xk2P", column=ApiKey.hint
        )
    )
    agentId = fields.String(
        allow_none=True,
        metadata=doc(
            "The agent that it is limited to; null for a user key.",
            "summarizer",
            column=ApiKey.agent_id,
        ),
    )
    createdAt = moment_field("When it was created.", EXAMPLE_MOMENT, ApiKey.created_at)
    expiresAt = moment_field("When it expires.", None, ApiKey.expires_at)
    lastUsedAt = moment_field("The minute in which it was last used.", None, ApiKey.last_used_at)
    revokedAt = moment_field("When it was revoked.", None, ApiKey.revoked_at)


class NewKeySchema(KeySchema):
    """A new key, with its text: no other answer has the text."""

    key = fields.String(
        attribute="text",
        metadata=doc("The text of the key, for the header `apikey`.", EXAMPLE_KEY_TEXT),
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    secret = fields.String(
        metadata=doc(
            "The secret, in the format of Standard Webhooks.",
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            column=CallbackSecret.secret,
        )
    )
    createdAt = moment_field("When it was created.", EXAMPLE_MOMENT, CallbackSecret.created_at)


class TaskErrorSchema(AnswerSchema):
    """Why a task ended as `error`."""

    type = fields.String(
        required=True,
        validate=validate.OneOf(ERROR_TYPES),
        metadata=doc(
            "`failed`: its agent reported it; `cancelled`: its user cancelled it; `timeout`: its "
            "agent was silent for too long.",
            FAILED,
        ),
    )
    message = fields.String(
        required=True, metadata=doc("What went wrong, for a person.", "The mailbox is locked")
    )


class QuestionSchema(RowSchema):
    """What an agent asks a person before it goes on."""

    id = id_field("The question's id.", EXAMPLE_QUESTION, column=Question.id)
    message = fields.String(
        metadata=doc(
            "What the agent wants to know.", "Deploy to production?", column=Question.message
        )
    )
    schema = StoredJson(
        metadata=doc("The JSON Schema of the answer.", elicitation.DEFAULT, column=Question.schema)
    )
    state = fields.String(
        validate=validate.OneOf(QUESTION_STATES),
        metadata=doc("Only an open one can be answered.", OPEN, column=Question.state),
    )
    askedAt = moment_field("When it was asked.", EXAMPLE_MOMENT, Question.asked_at)
    expiresAt = moment_field("When it expires; null: never.", None, Question.expires_at)
    answer = StoredJson(
        allow_none=True,
        metadata=doc("The answer; null unless there is one.", None, column=Question.answer),
    )


class TaskSchema(RowSchema):
    """One execution of an agent: its input, log, output and status.

    `agent` and `user` only if `expand` asks for them.
    """

    expansions = TASK_EXPANSIONS

    id = id_field("The task's id, which sorts by creation.", EXAMPLE_TASK, column=Task.id)
    name = fields.String(metadata=doc("The task's name.", "nightly summary", column=Task.name))
    agentId = fields.String(
        metadata=doc("The agent that works on it.", "summarizer", column=Task.agent_id)
    )
    userId = id_field("The user that it belongs to.", EXAMPLE_USER, column=Task.user_id)
    createdAt = moment_field("When it was started.", EXAMPLE_MOMENT, Task.created_at)
    updatedAt = moment_field("When it was last changed.", EXAMPLE_LATER, Task.updated_at)
    claimedAt = moment_field("When an agent claimed it.", None, Task.claimed_at)
    finishedAt = moment_field("When it ended.", None, Task.finished_at)
    input = StoredJson(
        metadata=doc("What its agent works on.", {"mailbox": "office"}, column=Task.input)
    )
    logs = Lines(
        fields.String(), metadata=doc("Its lines, in order of arrival.", ["Synopsis: Running"])
    )
    firstLog = fields.Integer(
        metadata=doc(
            "The number of the first stored line; `logCount` + 1 when none is left.",
            1,
            minimum=1,
            column=Task.first_log,
        ),
    )
    logCount = fields.Integer(
        metadata=doc(
            "The number of lines that were ever appended.", 1, minimum=0, column=Task.log_count
        ),
    )
    output = StoredJson(metadata=doc("What its agent reported.", {}, column=Task.output))
    status = fields.String(
        validate=validate.OneOf(STATUSES),
        metadata=doc("Its status.", RUNNING, column=Task.status),
    )
    error = TaskError(
        metadata=doc(
            "Why it ended as `error`; null for any other status.",
            None,
            anyOf=[{"$ref": "#/components/schemas/TaskError"}, {"type": "null"}],
            column=Task.error_type,
        ),
    )
    endedBy = fields.String(
        allow_none=True,
        metadata=doc(
            f"The name of the key that ended it; `{SERVICE}` for a timeout, null while it runs.",
            None,
            column=Task.ended_by,
        ),
    )
    progress = StoredNumber(
        allow_none=True,
        metadata=doc(
            "How far it is, as its agent reported.", 0.5, minimum=0, maximum=1, column=Task.progress
        ),
    )
    note = fields.String(
        allow_none=True,
        metadata=doc("The same in words.", "34 of 68 pages", column=Task.note, maxLength=MAX_NOTE),
    )
    labels = StoredJson(
        metadata=doc(
            "Pairs by which it is found.",
            {"env": "prod"},
            additionalProperties={"type": "string"},
            column=Task.labels,
        )
    )
    parentId = id_field("The task that started it, if there is one.", None, column=Task.parent_id)
    rerunOf = id_field("The task that it runs again.", None, column=Task.rerun_of)
    questions = OpenQuestions(
        fields.Nested(QuestionSchema()),
        metadata=doc("Its open questions, oldest first.", [], column=Task.questions),
    )
    callback = fields.String(
        allow_none=True,
        metadata=doc(
            "The URL that gets a webhook when it ends.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            column=Task.callback_url,
        ),
    )
    agent = fields.Nested(AgentOfTaskSchema())
    user = fields.Nested(UserSchema())


class PartialTaskSchema(TaskSchema):
    """A task as it is answered to a request with `fields`: it has only the fields named there."""


class AttemptSchema(RowSchema):
    """One attempt of a delivery."""

    at = moment_field("When it began.", EXAMPLE_MOMENT, Attempt.at)
    durationMs = fields.Integer(
        metadata=doc("Its duration in milliseconds.", minimum=0, column=Attempt.duration_ms)
    )
    statusCode = fields.Integer(
        allow_none=True,
        metadata=doc(
            "The receiver's HTTP status; null without an answer.", column=Attempt.status_code
        ),
    )
    message = fields.String(metadata=doc("Its outcome in one sentence.", column=Attempt.message))


class DeliverySchema(RowSchema):
    """One webhook for one callback."""

    id = id_field(
        "The delivery's id: the `webhook-id` of all its attempts.",
        EXAMPLE_DELIVERY,
        column=Delivery.id,
    )
    callback = fields.String(
        metadata=doc(
            "The URL that it is posted to.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            column=Delivery.callback_url,
        ),
    )
    state = fields.String(
        validate=validate.OneOf(DELIVERY_STATES),
        metadata=doc(
            "`pending`: it will be posted; `delivered`: the receiver answered 2xx; "
            "`failed`: it will not be posted again; `cancelled`: a newer delivery replaced it.",
            PENDING,
            column=Delivery.state,
        ),
    )
    createdAt = moment_field("When the task ended.", EXAMPLE_MOMENT, Delivery.created_at)
    nextAttemptAt = moment_field(
        "When it is due; null unless it is pending.", None, Delivery.next_attempt_at
    )
    attempts = fields.List(
        fields.Nested(AttemptSchema()),
        metadata=doc("All attempts, oldest first.", [EXAMPLE_ATTEMPT]),
    )


TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)


class AppendedSchema(AnswerSchema):
    """A task's log after an append."""

    logCount = fields.Integer(
        required=True, metadata=doc("The number of lines that were ever appended.", 3, minimum=0)
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf(STATUSES),
        metadata=doc("The task's status.", RUNNING),
    )


class LogPageSchema(AnswerSchema):
    """Lines of a log, and the cursor of the next ones."""

    logs = fields.List(
        fields.String(),
        required=True,
        metadata=doc("Lines, in order of arrival.", ["Synopsis: Running"]),
    )
    times = fields.List(
        fields.String(allow_none=True, metadata={"format": "date-time"}),
        metadata=doc(
            "With the parameter `times`: when each line was printed; null for one from before "
            "there were times.",
            [EXAMPLE_MOMENT],
        ),
    )
    next = fields.Integer(
        required=True,
        metadata=doc("The value of `after` for the next page.", 1, minimum=0),
    )
    status = fields.String(
        required=True,
        validate=validate.OneOf(STATUSES),
        metadata=doc("The task's status; only a running task gets more lines.", RUNNING),
    )


class WhoAmISchema(UserSchema):
    """A user, and the key of the request."""

    key = fields.Nested(KeySchema())


class HealthSchema(AnswerSchema):
    """The service is healthy."""

    status = fields.String(required=True, validate=validate.Equal("ok"), metadata=doc("ok.", "ok"))


class FinishedTaskSchema(AnswerSchema):
    """A finished task: an agent stops only if it was cancelled."""

    id = id_field("The task's id.", EXAMPLE_TASK, required=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf([COMPLETE, ERROR]),
        metadata=doc("Its status.", COMPLETE),
    )
    error = fields.Nested(TaskErrorSchema(), required=True, allow_none=True)


class ProblemSchema(AnswerSchema):
    """An error, in the format of RFC 9457."""

    type = fields.String(required=True, metadata=doc("The type of problem, a URI.", "about:blank"))
    title = fields.String(required=True, metadata=doc("The status in words.", "Not Found"))
    status = fields.Integer(required=True, metadata=doc("The HTTP status.", 404))
    detail = fields.String(
        required=True, metadata=doc("What is wrong, in one sentence.", "Task's ID is not found")
    )
    code = fields.String(
        required=True,
        validate=validate.OneOf(CODES),
        metadata=doc(
            "The kind of error, for programs. "
            + " ".join(
                f"`{code}` ({status}): {meaning}" for code, (status, meaning) in CODES.items()
            ),
            "not_found",
        ),
    )
    errors = fields.Dict(
        metadata=doc(
            "With 422: field, parameter or header -> messages, nested like the request.",
            additionalProperties={
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]
            },
        )
    )
    task = fields.Nested(FinishedTaskSchema())
    question = fields.Nested(QuestionSchema())
    expected = fields.Integer(
        metadata=doc("With 409 at an append: the `seq` of the writer's next line.")
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


agent_schema = AgentSchema(exclude=AGENT_EXPANSIONS)
agent_of_task_schema = AgentOfTaskSchema()
user_schema = UserSchema()
key_schema = KeySchema()
new_key_schema = NewKeySchema()
callback_secret_schema = CallbackSecretSchema()
delivery_schema = DeliverySchema()
question_schema = QuestionSchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)
# For the documentation only.
expanded_agent_schema = AgentSchema()
expanded_task_schema = TaskSchema()
partial_task_schema = PartialTaskSchema(partial=True)
problem_schema = ProblemSchema()
document_schema = DocumentSchema()
appended_schema = AppendedSchema()
log_page_schema = LogPageSchema()
who_am_i_schema = WhoAmISchema()
health_schema = HealthSchema()


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A dumped task as JSON in two parts; the lines of its log belong between them.

    Without `logs` among its fields the second part is empty.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_items(items: Sequence[Any]) -> bytes:
    """Items of an array as JSON with commas between them, without the brackets."""
    return strict_json.dumps(items)[1:-1]
