"""Tasks, from whose fields reads, lists, webhooks and exports follow; questions; deliveries."""

from typing import Any

from marshmallow import INCLUDE, fields, validate

from taskservice import terms
from taskservice.database.models import Attempt, Delivery, Link, Question, Task
from taskservice.schemas import examples, json_schema
from taskservice.schemas.fields import (
    Documented,
    Lines,
    OpenQuestions,
    ResponseSchema,
    RowSchema,
    StoredJson,
    StoredNumber,
    boolean_field,
    choice_field,
    id_field,
    integer_field,
    list_field,
    object_field,
    text_field,
    time_field,
)
from taskservice.schemas.users import AgentOfTaskSchema, UserSchema

TASK_EXPANSIONS = ("agent", "user")


class TaskError(Documented):
    """Why a task ended as error: by TaskErrorSchema, or null."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else {"type": value, "message": obj.error_message}


class TaskErrorSchema(ResponseSchema):
    """Why a task ended as `error`."""

    type = choice_field(
        "`failed`: the agent reported it; `cancelled`: the user cancelled the task; `timeout`: the "
        "agent sent nothing for too long.",
        terms.ERROR_TYPES,
        terms.FAILED,
    )
    message = text_field("The reason, for people.", "The mailbox is locked")


class QuestionSchema(RowSchema):
    """A question that an agent asks a person before it continues."""

    model = Question
    id = id_field("The question's ID.", examples.QUESTION)
    message = text_field("The question.", "Deploy to production?")
    schema = StoredJson("The JSON Schema of the answer.", json_schema.DEFAULT)
    state = choice_field(
        "Only an open question can be answered.", terms.QUESTION_STATES, terms.OPEN
    )
    askedAt = time_field("When the question was asked.", examples.TIME)
    expiresAt = time_field("When the question expires; null: never.", None)
    answer = StoredJson("The answer; null unless there is one.", None)
    answeredBy = text_field(
        "The name of the key that answered or declined the question; else null.",
        None,
        maxLength=terms.MAX_NAME,
    )


class TaskSchema(RowSchema):
    """One execution of an agent: its input, log, output and status.

    `agent` and `user` are present only if `expand` names them.
    """

    model = Task
    optional = TASK_EXPANSIONS

    id = id_field("The task's ID; IDs sort by creation time.", examples.TASK)
    name = text_field("The task's name.", "nightly summary")
    agentId = text_field("The agent that does the work.", "summarizer")
    userId = id_field("The user that owns the task.", examples.USER)
    createdAt = time_field("When the task was started.", examples.TIME)
    updatedAt = time_field("When the task last changed.", examples.LATER)
    claimedAt = time_field("When an agent claimed the task.", None)
    finishedAt = time_field("When the task ended.", None)
    input = StoredJson("The task's input.", {"mailbox": "office"})
    logs = Lines(
        "The lines of the log, in order of arrival.", ["Synopsis: Running"], items=fields.String()
    )
    firstLog = integer_field(
        "The number of the first stored line; `logCount` + 1 if none is left.", 1, minimum=1
    )
    logCount = integer_field("The number of lines appended so far.", 1, minimum=0)
    output = StoredJson("The task's output.", {})
    status = choice_field("The task's status.", terms.STATUSES, terms.RUNNING)
    error = TaskError(
        "Why the task ended as `error`; null for any other status.",
        None,
        anyOf=[{"$ref": "#/components/schemas/TaskError"}, {"type": "null"}],
        column=Task.error_type,
    )
    startedBy = text_field(
        "The name of the key that started the task; null if it was not stored.",
        "laptop",
        maxLength=terms.MAX_NAME,
    )
    endedBy = text_field(
        f"The name of the key that ended the task; `{terms.SERVICE}` for a timeout.",
        None,
        maxLength=terms.MAX_NAME,
    )
    progress = StoredNumber("Progress from 0 to 1, as reported.", 0.5, minimum=0, maximum=1)
    note = text_field("The progress in words.", "34 of 68 pages", maxLength=terms.MAX_NOTE)
    labels = StoredJson(
        "Key–value pairs to filter by.", {"env": "prod"}, additionalProperties={"type": "string"}
    )
    parentId = id_field("The parent task, if there is one.", None)
    rerunOf = id_field("The task that this task runs again.", None)
    questions = OpenQuestions(
        "The open questions, oldest first.", [], items=fields.Nested(QuestionSchema())
    )
    callback = text_field(
        "The URL that receives a webhook when the task ends.",
        "https://myapp.example/api/v1/callback/2100aaa",
        format="uri",
        column=Task.callback_url,
    )
    agent = fields.Nested(AgentOfTaskSchema())
    user = fields.Nested(UserSchema())


class RefusedSchema(ResponseSchema):
    """A task on which the action was not possible."""

    id = text_field("The task's ID, as it was sent.", examples.TASK)
    code = text_field("The error code of the refusal.", terms.TASK_FINISHED)


class BulkResultSchema(ResponseSchema):
    """The outcome of an action on many tasks."""

    optional = ("tasks",)

    done = integer_field("The number of tasks that were changed.", 28, minimum=0)
    refused = list_field(
        "The tasks that were left as they are.", items=fields.Nested(RefusedSchema())
    )
    tasks = list_field(
        "The new tasks of reruns; absent for other actions.",
        items=id_field("The new task's ID.", examples.TASK),
    )


class PartialTaskSchema(TaskSchema):
    """A task in the response to a request with `fields`: only the fields named there."""


TASK_FIELDS = tuple(name for name in TaskSchema().fields if name not in TASK_EXPANSIONS)
# What a link does not show.
_NOT_SHARED = ("userId", "input", "callback", "startedBy", "endedBy", "parentId", "rerunOf")
SHARED_FIELDS = tuple(name for name in TASK_FIELDS if name not in _NOT_SHARED)


class LinkSchema(RowSchema):
    """A link to a task, without its URL."""

    model = Link
    id = id_field("The link's ID.", examples.LINK)
    createdAt = time_field("When the link was created.", examples.TIME)
    expiresAt = time_field("When the link expires.", examples.LATER)


class LinkWithUrlSchema(LinkSchema):
    """A new link with its URL, which no other response contains."""

    url = text_field("The URL.", "https://tasks.example.org/shared/q3Yz0Jt8sVn5bL", format="uri")


class AppendedSchema(ResponseSchema):
    """A task's log after an append."""

    logCount = integer_field("The number of lines appended so far.", 3, minimum=0)
    status = choice_field("The task's status.", terms.STATUSES, terms.RUNNING)


class LogPageSchema(ResponseSchema):
    """Lines of a log, and the cursor of the next ones."""

    optional = ("times",)

    logs = list_field("Lines, in order of arrival.", ["Synopsis: Running"], items=fields.String())
    times = list_field(
        "With the parameter `times`: when each line was printed; null if it was not stored.",
        [examples.TIME],
        items=fields.String(allow_none=True, metadata={"format": "date-time"}),
    )
    next = integer_field("The value of `after` for the next page.", 1, minimum=0)
    status = choice_field(
        "The task's status; only a running task gets more lines.", terms.STATUSES, terms.RUNNING
    )


class NewLineSchema(ResponseSchema):
    """A line that the other log does not have."""

    line = integer_field("The number of the line.", 812, minimum=1)
    at = time_field(
        "When the line was printed; null if that was not stored.", examples.TIME, allow_none=True
    )
    text = text_field("At most 400 characters of the line.", "write failed: disk full")


class HitSchema(NewLineSchema):
    """A line that contains the text."""

    taskId = id_field("The task.", examples.TASK)
    name = text_field("The task's name.", "nightly summary")
    agentId = text_field("The task's agent.", "summarizer")
    status = choice_field("The task's status.", terms.STATUSES, terms.ERROR)
    text = text_field(
        "At most 400 characters of the line, with the text.", "write failed: disk full"
    )


class SearchedSchema(ResponseSchema):
    """The logs that a search has read."""

    tasks = integer_field("The number of tasks.", 62, minimum=0)
    bytes = integer_field("The size of their logs.", 4_800_000, minimum=0)
    until = time_field("The `createdAt` of the last task; null: there are no more.", None)


class FoundSchema(ResponseSchema):
    """The lines that a search has found."""

    hits = list_field(
        "The newest task first; the lines of one task in their order.",
        items=fields.Nested(HitSchema()),
    )
    searched = fields.Nested(SearchedSchema())


class AgainstSchema(ResponseSchema):
    """The task that a log was compared with."""

    id = id_field("The task's ID.", examples.TASK)
    finishedAt = time_field("When the task ended.", examples.LATER, allow_none=True)


class NewLinesSchema(ResponseSchema):
    """The lines of a log that another one does not have."""

    against = fields.Nested(AgainstSchema())
    lines = list_field("At most 200 lines, the last ones.", items=fields.Nested(NewLineSchema()))
    cut = boolean_field("Whether lines were left out.", False)


class EventSchema(ResponseSchema):
    """One of the Server-Sent Events of a stream."""

    optional = ("id",)

    event = choice_field(
        "`task`: the task has changed; `log`: its log has another line.", ["task", "log"], "log"
    )
    id = text_field("With `log`: the number of the line.", "1", pattern="^[0-9]+$")
    data = text_field(
        "JSON. With `task`: the task without `logs`. With `log`: the line as a string, or with "
        "`times` an object `{at, line}`.",
        '"Synopsis: Running"',
        contentMediaType="application/json",
    )


class FinishedTaskSchema(ResponseSchema):
    """A finished task. An agent must stop only if it was cancelled."""

    id = id_field("The task's ID.", examples.TASK)
    status = choice_field("The task's status.", [terms.COMPLETE, terms.ERROR], terms.COMPLETE)
    error = fields.Nested(TaskErrorSchema(), allow_none=True)


question_schema = QuestionSchema()
task_schema = TaskSchema(exclude=TASK_EXPANSIONS)
expanded_task_schema = TaskSchema()
bulk_result_schema = BulkResultSchema()
partial_task_schema = PartialTaskSchema(partial=True)
link_schema = LinkSchema()
link_with_url_schema = LinkWithUrlSchema()
appended_schema = AppendedSchema()
log_page_schema = LogPageSchema()
found_schema = FoundSchema()
new_lines_schema = NewLinesSchema()
event_schema = EventSchema()
# The columns that reads select: for responses, and for the code.
TASK_COLUMNS = (*task_schema.columns.values(), Task.error_message, Task.log_bytes, Task.version)
LINK_COLUMNS = tuple(link_schema.columns.values())
QUESTION_COLUMNS = (*question_schema.columns.values(), Question.task_id)


class AttemptSchema(RowSchema):
    """One attempt of a delivery."""

    model = Attempt
    at = time_field("When the attempt began.", examples.TIME)
    durationMs = integer_field("Duration in milliseconds.", 10_002, minimum=0)
    statusCode = integer_field(
        "The receiver's HTTP status; null without a response.", None, minimum=0, maximum=999
    )
    message = text_field("The outcome in one sentence.", "No response within 10 s.")


class DeliverySchema(RowSchema):
    """A webhook for the callback of a task."""

    model = Delivery
    id = id_field("The delivery's ID: the `webhook-id` of all its attempts.", examples.DELIVERY)
    callback = text_field(
        "The URL that the webhook is sent to.",
        "https://myapp.example/api/v1/callback/2100aaa",
        format="uri",
        column=Delivery.callback_url,
    )
    state = choice_field(
        "`pending`: will be sent; `delivered`: the receiver responded with 2xx; `failed`: will "
        "not be sent again; `cancelled`: replaced by a newer delivery.",
        terms.DELIVERY_STATES,
        terms.PENDING,
    )
    createdAt = time_field("When the task ended.", examples.TIME)
    nextAttemptAt = time_field("When the next attempt is due; null unless `pending`.", None)
    attempts = list_field(
        f"The newest {terms.MAX_ATTEMPTS} attempts, oldest first; older ones are deleted.",
        items=fields.Nested(AttemptSchema()),
    )


attempt_schema = AttemptSchema()
delivery_schema = DeliverySchema()
DELIVERY_COLUMNS = (*delivery_schema.columns.values(), Delivery.task_id)
ATTEMPT_COLUMNS = (*attempt_schema.columns.values(), Attempt.delivery_id, Attempt.answer)


# Problems, the health of the service and its OpenAPI document.


class HealthSchema(ResponseSchema):
    """The service is healthy."""

    status = text_field("ok.", "ok", validate=validate.Equal("ok"))


class ReadinessSchema(HealthSchema):
    """The service can be used."""

    optional = ("notice",)

    notice = text_field("A problem of the setup.", "No webhooks are retried.")


class ProblemSchema(ResponseSchema):
    """An error, in the format of RFC 9457."""

    optional = ("errors", "task", "question", "expected", "requestId")

    type = text_field("The type of the problem, a URI.", "about:blank")
    title = text_field("The status in words.", "Not Found")
    status = integer_field("The HTTP status.", 404)
    detail = text_field("The problem, in one sentence.", "Task's ID is not found")
    code = choice_field(
        "The kind of error, for programs. "
        + " ".join(
            f"`{code}` ({status}): {meaning}" for code, (status, meaning) in terms.CODES.items()
        ),
        terms.CODES,
        "not_found",
    )
    errors = object_field(
        "With 422: field, parameter or header -> messages, nested like the request."
    )
    task = fields.Nested(FinishedTaskSchema())
    question = fields.Nested(QuestionSchema())
    expected = integer_field("With 409 at an append: the `seq` of the writer's next line.")
    requestId = text_field(
        "The request's ID, as in the service's log; absent with 401.", examples.REQUEST
    )


class DocumentSchema(ResponseSchema):
    """An OpenAPI document."""

    class Meta:
        unknown = INCLUDE

    openapi = text_field("The version of OpenAPI.", "3.1.0")
    info = object_field("The title and version of the API.", {"title": "taskservice"})
    paths = object_field("The operations.", {})


problem_schema = ProblemSchema()
document_schema = DocumentSchema()
health_schema = HealthSchema()
readiness_schema = ReadinessSchema()
