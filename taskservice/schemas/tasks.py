"""The schemas of tasks, questions and deliveries, for responses, webhooks and exports."""

from typing import Any

from marshmallow import INCLUDE, validate
from marshmallow.fields import Nested, String

from taskservice import error_codes, terms
from taskservice.database.models import Attempt, Delivery, Link, Question, Task
from taskservice.schemas import answer_schema, examples, fields
from taskservice.schemas.users import AgentOfTaskSchema, UserSchema

TASK_EXPANSIONS = ("agent", "user")


class TaskError(fields.Documented):
    """The error of a task in the form of TaskErrorSchema, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


class TaskErrorSchema(fields.ResponseSchema):
    """Why a task ended as `error`."""

    type = fields.choice(
        "`failed`: the agent reported a failure; `cancelled`: the user cancelled the task; "
        "`timeout`: the agent sent nothing for too long.",
        terms.ERROR_TYPES,
        terms.FAILED,
    )
    message = fields.text(
        "A human-readable reason.",
        "The mailbox is locked",
        **fields.bytes_at_most(terms.MAX_MESSAGE),
    )


class QuestionSchema(fields.RowSchema):
    """A question that an agent asks a person before it continues."""

    model = Question
    id = fields.uuid("The question's ID.", examples.QUESTION)
    message = fields.text("The question.", "Deploy to production?")
    schema = fields.StoredJson("The JSON Schema of the answer.", answer_schema.DEFAULT)
    state = fields.choice(
        "The state; only an open question can be answered.", terms.QUESTION_STATES, terms.OPEN
    )
    askedAt = fields.time("When the question was asked.", examples.TIME)
    expiresAt = fields.time("When the question expires; null if it never does.", None)
    answer = fields.StoredJson("The answer; null if the question has none.", None)
    answeredBy = fields.key_name(
        "The name of the key that answered or declined the question; null if no key did.", None
    )


class TaskSchema(fields.RowSchema):
    """One execution of an agent: its input, log, output and status.

    `agent` and `user` are present only if `expand` names them.
    """

    model = Task
    optional = TASK_EXPANSIONS

    id = fields.uuid("The task's ID; IDs sort by creation time.", examples.TASK)
    name = fields.text("The task's name.", "nightly summary")
    agentId = fields.text("The ID of the task's agent.", "summarizer")
    userId = fields.uuid("The ID of the user that owns the task.", examples.USER)
    createdAt = fields.time("When the task was started.", examples.TIME)
    updatedAt = fields.time("When the task last changed.", examples.LATER)
    claimedAt = fields.time("When the task was claimed.", None)
    finishedAt = fields.time("When the task ended.", None)
    input = fields.StoredJson("The task's input.", {"mailbox": "office"})
    logs = fields.Lines(
        "The lines of the log, in order of arrival.",
        ["Synopsis: Running"],
        items=String(),
        # `Lines` ignores this value. Most queries select the size of the log, but not its lines.
        attribute="log_bytes",
    )
    firstLog = fields.integer(
        "The number of the first stored line; `logCount` + 1 if no line is stored.",
        1,
        validate=validate.Range(1),
    )
    logCount = fields.integer("The number of lines appended so far.", 1, validate=validate.Range(0))
    output = fields.StoredJson("The task's output.", {})
    status = fields.choice("The task's status.", terms.STATUSES, terms.RUNNING)
    error = TaskError(
        "Why the task ended as `error`; null if the status is not `error`.",
        None,
        anyOf=[{"$ref": "#/components/schemas/TaskError"}, {"type": "null"}],
        column=Task.error_type,
    )
    startedBy = fields.key_name(
        "The name of the key that started the task; null if the name was not stored.", "laptop"
    )
    endedBy = fields.key_name(
        f"The name of the key that ended the task; `{terms.SERVICE}` for a timeout.", None
    )
    hangingSince = fields.time(
        "When the task began to hang: it has run for too long, or it sends nothing and has run "
        "much longer than usual. Null if the task does not hang.",
        None,
    )
    progress = fields.StoredNumber("The progress, from 0 to 1.", 0.5, minimum=0, maximum=1)
    note = fields.text(
        "A human-readable progress note.", "34 of 68 pages", maxLength=terms.MAX_NOTE
    )
    seconds = fields.StoredNumber(
        "How long the work took in seconds, as the agent measured it; null if the agent did not "
        "report it.",
        12.5,
        minimum=0,
    )
    labels = fields.StoredJson(
        "Key–value pairs to filter by.", {"env": "prod"}, additionalProperties={"type": "string"}
    )
    parentId = fields.uuid("The ID of the parent task; null if there is none.", None)
    rerunOf = fields.uuid("The ID of the task that this task reruns; null if there is none.", None)
    questions = fields.OpenQuestions(
        "The open questions, oldest first.", [], items=Nested(QuestionSchema())
    )
    callback = fields.text(
        "The URL that receives a webhook when the task ends.",
        "https://myapp.example/api/v1/callback/2100aaa",
        format="uri",
        column=Task.callback_url,
    )
    agent = Nested(AgentOfTaskSchema())
    user = Nested(UserSchema())


class RefusedSchema(fields.ResponseSchema):
    """A task for which the action was refused."""

    id = fields.text("The task's ID, as in the request.", examples.TASK)
    code = fields.text("The error code of the refusal.", error_codes.TASK_FINISHED)


class BulkResultSchema(fields.ResponseSchema):
    """The outcome of an action on many tasks."""

    optional = ("tasks",)

    done = fields.integer("The number of tasks that were changed.", 28, minimum=0)
    refused = fields.array("The tasks that were not changed.", items=Nested(RefusedSchema()))
    tasks = fields.array(
        "The IDs of the new tasks; only for the action `rerun`.",
        items=fields.uuid("The new task's ID.", examples.TASK),
    )


class PartialTaskSchema(TaskSchema):
    """A task that contains only the fields that the parameter `fields` of the request names."""


TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)
# The fields that viewers of a link can't read.
_NOT_SHARED = ("userId", "input", "callback", "startedBy", "endedBy", "parentId", "rerunOf")
SHARED_FIELDS = tuple(name for name in TASK_FIELDS if name not in _NOT_SHARED)


class LinkSchema(fields.RowSchema):
    """A link to a task, without its URL."""

    model = Link
    id = fields.uuid("The link's ID.", examples.LINK)
    createdAt = fields.time("When the link was created.", examples.TIME)
    expiresAt = fields.time("When the link expires.", examples.LATER)


class LinkWithUrlSchema(LinkSchema):
    """A new link with its URL, which no other response contains."""

    url = fields.text("The URL.", "https://tasks.example.org/shared/q3Yz0Jt8sVn5bL", format="uri")


class AppendedSchema(fields.ResponseSchema):
    """A task's log after an append."""

    logCount = fields.integer("The number of lines appended so far.", 3, minimum=0)
    status = fields.choice("The task's status.", terms.STATUSES, terms.RUNNING)


class LogPageSchema(fields.ResponseSchema):
    """Lines of a log, and the position of the next page."""

    optional = ("times",)

    logs = fields.array("The lines, in order of arrival.", ["Synopsis: Running"], items=String())
    times = fields.array(
        "With the parameter `times`: when each line was printed; null for a line whose time was "
        "not stored.",
        [examples.TIME],
        items=String(allow_none=True, metadata={"format": "date-time"}),
    )
    next = fields.integer("The value of `after` for the next page.", 1, minimum=0)
    status = fields.choice(
        "The task's status; only the log of a running task grows.", terms.STATUSES, terms.RUNNING
    )


class NewLineSchema(fields.ResponseSchema):
    """A line of a task's log that the log of the other task does not contain."""

    line = fields.integer("The number of the line.", 812, minimum=1)
    at = fields.time(
        "When the line was printed; null if the time was not stored.",
        examples.TIME,
        allow_none=True,
    )
    text = fields.text("At most 400 characters of the line.", "write failed: disk full")


class HitSchema(NewLineSchema):
    """A line that contains the text of a search."""

    taskId = fields.uuid("The task.", examples.TASK)
    name = fields.text("The task's name.", "nightly summary")
    agentId = fields.text("The task's agent.", "summarizer")
    status = fields.choice("The task's status.", terms.STATUSES, terms.ERROR)
    text = fields.text(
        "At most 400 characters of the line, including the text that was searched for.",
        "write failed: disk full",
    )


class SearchedSchema(fields.ResponseSchema):
    """How much of the logs a search has read."""

    tasks = fields.integer("The number of tasks whose logs were read.", 62, minimum=0)
    bytes = fields.integer("The size of the logs in bytes.", 4_800_000, minimum=0)
    until = fields.time(
        "The `createdAt` of the last task that was read; null if all tasks were read.", None
    )


class FoundSchema(fields.ResponseSchema):
    """A page of the results of a search."""

    hits = fields.array(
        "The matching lines, newest task first; the lines of a task are in the order of its log.",
        items=Nested(HitSchema()),
    )
    searched = Nested(SearchedSchema())


class AgainstSchema(fields.ResponseSchema):
    """The task that a log was compared with."""

    id = fields.uuid("The task's ID.", examples.TASK)
    finishedAt = fields.time("When the task ended.", examples.LATER, allow_none=True)


class NewLinesSchema(fields.ResponseSchema):
    """The lines of a log that the log of another task does not contain."""

    against = Nested(AgainstSchema())
    lines = fields.array("The new lines; at most the last 200.", items=Nested(NewLineSchema()))
    cut = fields.boolean("Whether any lines were not compared, or are not returned.", False)


class EventSchema(fields.ResponseSchema):
    """One of the Server-Sent Events of a stream."""

    optional = ("id",)

    event = fields.choice(
        "`task`: the task has changed; `log`: a new line in its log.", ["task", "log"], "log"
    )
    id = fields.text("For `log`, the number of the line.", "1", pattern="^[0-9]+$")
    data = fields.text(
        "JSON. For `task`, the task without `logs`. For `log`, the line as a string; with the "
        "parameter `times`, an object `{at, line}`.",
        '"Synopsis: Running"',
        contentMediaType="application/json",
    )


class FinishedTaskSchema(fields.ResponseSchema):
    """The outcome of a finished task. If the task was cancelled, the agent must stop its work."""

    id = fields.uuid("The task's ID.", examples.TASK)
    status = fields.choice("The task's status.", [terms.COMPLETE, terms.ERROR], terms.COMPLETE)
    error = Nested(TaskErrorSchema(), allow_none=True)


question_schema = QuestionSchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)
expanded_task_schema = TaskSchema()
link_schema = LinkSchema()
link_with_url_schema = LinkWithUrlSchema()
# The columns that queries select, for responses and for internal use.
TASK_COLUMNS = (
    *task_schema.columns.values(),
    *(Task.error_message, Task.hanging_reason, Task.log_bytes, Task.version),
)
LINK_COLUMNS = tuple(link_schema.columns.values())
QUESTION_COLUMNS = (*question_schema.columns.values(), Question.task_id)


class AttemptSchema(fields.RowSchema):
    """One attempt of a delivery."""

    model = Attempt
    at = fields.time("When the attempt began.", examples.TIME)
    durationMs = fields.integer(
        "The duration in milliseconds.", 10_002, validate=validate.Range(0, (1 << 31) - 1)
    )
    statusCode = fields.integer(
        "The status of the receiver's HTTP response; null without a response.",
        None,
        validate=validate.Range(0, 999),
    )
    message = fields.text(
        "A human-readable outcome.",
        "No response within 10 s.",
        **fields.bytes_at_most(terms.MAX_MESSAGE),
    )


class DeliverySchema(fields.RowSchema):
    """A webhook for the callback of a task."""

    model = Delivery
    id = fields.uuid("The delivery's ID: the `webhook-id` of all its attempts.", examples.DELIVERY)
    callback = fields.text(
        "The URL that the webhook is sent to.",
        "https://myapp.example/api/v1/callback/2100aaa",
        format="uri",
        column=Delivery.callback_url,
    )
    state = fields.choice(
        "`pending`: the webhook will be sent; `delivered`: the receiver responded with 2xx; "
        "`failed`: the webhook will not be sent again; `cancelled`: a newer delivery replaced it.",
        terms.DELIVERY_STATES,
        terms.PENDING,
    )
    createdAt = fields.time("When the task ended.", examples.TIME)
    nextAttemptAt = fields.time(
        "When the next attempt is due; null if the state is not `pending`.", None
    )
    attempts = fields.array(
        f"The newest {terms.MAX_ATTEMPTS} attempts, oldest first; older attempts are deleted.",
        items=Nested(AttemptSchema()),
    )


attempt_schema = AttemptSchema()
delivery_schema = DeliverySchema()
DELIVERY_COLUMNS = (*delivery_schema.columns.values(), Delivery.task_id)
ATTEMPT_COLUMNS = (
    *attempt_schema.columns.values(), Attempt.delivery_id, Attempt.answer, Attempt.text
)  # fmt: skip


class HealthSchema(fields.ResponseSchema):
    """The service is healthy."""

    status = fields.text("ok.", "ok", validate=validate.Equal("ok"))


class ReadinessSchema(HealthSchema):
    """The service is ready for requests."""

    optional = ("notice",)

    notice = fields.text("A problem with the setup.", "No webhooks are retried.")


class ProblemSchema(fields.ResponseSchema):
    """An error, in the format of RFC 9457."""

    optional = ("errors", "task", "question", "expected", "requestId")

    type = fields.text("The type of the problem, a URI.", "about:blank")
    title = fields.text("The name of the HTTP status.", "Not Found")
    status = fields.integer("The HTTP status.", 404)
    detail = fields.text("A human-readable reason.", "Task's ID is not found")
    code = fields.choice(
        "The error code, for programs. "
        + " ".join(
            f"`{code}` ({status}): {meaning}"
            for code, (status, meaning) in error_codes.CODES.items()
        ),
        error_codes.CODES,
        "not_found",
    )
    errors = fields.members(
        "With 422: the messages for each invalid field, parameter or header, nested like the "
        "request."
    )
    task = Nested(FinishedTaskSchema())
    question = Nested(QuestionSchema())
    expected = fields.integer("With 409 for an append: the `seq` of the writer's next line.")
    requestId = fields.text(
        "The request's ID, which is also in the service's log; absent with 401.", examples.REQUEST
    )


class DocumentSchema(fields.ResponseSchema):
    """An OpenAPI document."""

    class Meta:
        unknown = INCLUDE

    openapi = fields.text("The version of OpenAPI.", "3.1.0")
    info = fields.members("The title and version of the API.", {"title": "taskservice"})
    paths = fields.members("The operations.", {})


problem_schema = ProblemSchema()
