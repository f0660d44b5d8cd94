"""The schemas of request bodies."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, ClassVar

import orjson
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from taskservice import terms
from taskservice.database import clock
from taskservice.schemas import examples, json_schema
from taskservice.schemas.fields import (
    Flag,
    Id,
    JsonObject,
    Labels,
    LabelTexts,
    Moment,
    Names,
    NumberText,
    Share,
    Strings,
    Times,
    WholeNumber,
    bytes_at_most,
    doc,
    flag_parameter,
    name_field,
    parse_id,
)
from taskservice.schemas.tasks import TASK_EXPANSIONS, TASK_FIELDS
from taskservice.schemas.users import AGENT_EXPANSIONS


def _allowed_by(problem_of: Callable[[Any], str | None]) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        problem = problem_of(value)
        if problem:
            raise ValidationError(problem)

    return check


class EmptySchema(Schema):
    """An empty query string or body."""


class StartSchema(Schema):
    """A task to start."""

    agentId = fields.String(
        required=True,
        metadata=doc("The agent that works on it; it must be registered.", "summarizer"),
    )
    name = name_field("Its name; the agent's by default.", "nightly summary", allow_none=True)
    input = JsonObject(
        allow_none=True,
        metadata=doc("What its agent works on; at most 1 MiB.", {"mailbox": "office"}),
    )
    callback = fields.String(
        allow_none=True,
        validate=bytes_at_most(terms.MAX_CALLBACK),
        metadata=doc(
            "The URL that gets a signed webhook when the task ends: http or https, a host, no "
            "user info and no fragment.",
            "https://myapp.example/api/v1/callback/2100aaa",
            format="uri",
            maxLength=terms.MAX_CALLBACK,
        ),
    )
    timeout = WholeNumber(
        allow_none=True,
        validate=validate.Range(0, terms.MAX_TIMEOUT),
        metadata=doc(
            "Seconds that a claimed task may be silent before it times out; 0: no limit.", 3600
        ),
    )
    claim = Flag(allow_none=True, metadata=doc("Whether the caller claims it at the start.", False))
    labels = Labels("Pairs by which it is found.")
    parentId = Id(
        allow_none=True,
        metadata=doc("The task that starts it; the key must see it.", None, format="uuid"),
    )


class RerunSchema(Schema):
    """A task to run again."""

    input = JsonObject(
        allow_none=True,
        metadata=doc(
            "What its agent works on, if not the same as before; at most 1 MiB.",
            {"mailbox": "office"},
        ),
    )


class FailureSchema(Schema):
    """Why a task failed. The service's own types can't be reported."""

    type = fields.String(validate=validate.Equal(terms.FAILED), metadata=doc("`failed`, if given."))
    message = fields.String(
        required=True,
        validate=bytes_at_most(terms.MAX_MESSAGE),
        metadata=doc("What went wrong, for a person.", maxLength=terms.MAX_MESSAGE),
    )


class ReportSchema(Schema):
    """Changes to a task."""

    # What a report may combine, in JSON Schema.
    rule: ClassVar = {
        "if": {"properties": {"error": {"type": "object"}}, "required": ["error"]},
        "then": {"properties": {"status": {"const": terms.ERROR}}, "required": ["status"]},
    }

    status = fields.String(
        validate=validate.OneOf(terms.STATUSES),
        metadata=doc("`complete` or `error` end the task.", terms.COMPLETE),
    )
    output = JsonObject(
        metadata=doc("Each key given replaces that key whole; at most 1 MiB.", {"sum": 15})
    )
    error = fields.Nested(FailureSchema(), allow_none=True)
    name = name_field("Another name.")
    progress = Share(allow_none=True, metadata=doc("How far it is.", 0.5, minimum=0, maximum=1))
    note = fields.String(
        allow_none=True,
        validate=validate.Length(max=terms.MAX_NOTE),
        metadata=doc("The same in words.", "34 of 68 pages"),
    )
    labels = Labels("Labels to set; null removes one.", may_remove=True)


class AskSchema(Schema):
    """A question to ask."""

    message = fields.String(
        required=True,
        validate=validate.Length(1, terms.MAX_QUESTION),
        metadata=doc("What the agent wants to know.", "Deploy to production?"),
    )
    schema = fields.Dict(
        allow_none=True,
        validate=_allowed_by(json_schema.question_schema_problem),
        metadata=doc(
            "A flat JSON Schema of the answer, as MCP's elicitation has it; by default one "
            "required string `answer`.",
            {
                "type": "object",
                "properties": {"deploy": {"type": "boolean"}},
                "required": ["deploy"],
            },
            required=["type", "properties"],
            properties={"type": {"const": "object"}, "properties": {"type": "object"}},
        ),
    )
    timeout = WholeNumber(
        allow_none=True,
        validate=validate.Range(0, terms.MAX_TIMEOUT),
        metadata=doc("Seconds until it expires; a day by default, 0: never.", 3600),
    )


class AnswerQuestionSchema(Schema):
    """What a person answers."""

    # `check_content` in JSON Schema.
    rule: ClassVar = {
        "if": {"properties": {"action": {"const": terms.DECLINE}}, "required": ["action"]},
        "then": {"properties": {"content": {"type": "null"}}},
    }

    action = fields.String(
        required=True,
        validate=validate.OneOf([terms.ACCEPT, terms.DECLINE]),
        metadata=doc("Whether the question is answered or declined.", terms.ACCEPT),
    )
    content = JsonObject(
        allow_none=True,
        metadata=doc("The answer, which fits the question's schema.", {"deploy": True}),
    )

    @validates_schema
    def check_content(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data.get("action") == terms.DECLINE and data.get("content") is not None:
            raise ValidationError("Only allowed with the action accept.", "content")


class AppendSchema(Schema):
    """Lines to add to a log."""

    logs = Strings(
        fields.String(),
        required=True,
        metadata=doc(
            "Lines of at most 64 KiB; a string with line feeds counts as several.",
            ["Synopsis: Running", "15 mails"],
        ),
    )
    seq = WholeNumber(
        allow_none=True,
        validate=validate.Range(1, 1 << 53),
        metadata=doc(
            "The number of the first line sent, counted from 1 by its writer: lines already "
            "stored are skipped.",
            1,
        ),
    )
    writer = fields.String(
        allow_none=True,
        validate=validate.Length(max=terms.MAX_WRITER),
        metadata=doc(
            f"The name of the writer, if there are several; empty by default. A task has at "
            f"most {terms.MAX_WRITERS:,} of them.",
            "worker-1",
        ),
    )
    # Without a type, since of `anyOf` with an array generators for Java make a broken class.
    at = Times(
        allow_none=True,
        metadata=doc(
            "When its agent printed the lines, in RFC 3339: one time for all, or an array with one "
            "for each string, ascending. Now by default.",
            examples.MOMENT,
        ),
    )


class AnnotationsSchema(Schema):
    """What an agent does, in the words of MCP's tools; clients only hint at it to people."""

    title = name_field("Its name in a list of tools.", "Sum up the mail")
    readOnlyHint = Flag(metadata=doc("Whether it changes nothing.", False))
    destructiveHint = Flag(metadata=doc("Whether it may delete or overwrite.", True))
    idempotentHint = Flag(metadata=doc("Whether the same input again changes nothing more.", False))
    openWorldHint = Flag(metadata=doc("Whether it deals with things outside.", True))


class PutAgentSchema(Schema):
    """An agent to register, or changes to it."""

    name = name_field("Its name; at first its id.", "Nightly summarizer", allow_none=True)
    description = fields.String(
        allow_none=True,
        validate=validate.Length(max=terms.MAX_DESCRIPTION),
        metadata=doc("What it does.", "Sums up the day's mail."),
    )
    inputSchema = fields.Dict(
        allow_none=True,
        validate=_allowed_by(json_schema.input_schema_problem),
        metadata=doc(
            "A JSON Schema (draft 2020-12) of its input, by which each unclaimed start and each "
            "rerun is checked: at most 16 KiB and 16 levels; at the top the type is object, "
            "without oneOf, anyOf, allOf, not, if, enum and $ref; each $ref begins with #/ and "
            "does not lead back to itself.",
            examples.INPUT_SCHEMA,
            required=["type"],
            properties={"type": {"const": "object"}},
        ),
    )
    annotations = fields.Nested(AnnotationsSchema(), allow_none=True)
    tool = Flag(
        allow_none=True, metadata=doc("Whether MCP clients see it as a tool of its own.", True)
    )


class CreateKeySchema(Schema):
    """A key to create."""

    name = name_field("Its name.", "laptop", required=True)
    agentId = fields.String(
        allow_none=True,
        metadata=doc("The agent that the key is for, which must be registered.", "summarizer"),
    )
    expiresAt = Moment(
        "When it expires; never by default.",
        "2126-11-24T13:36:00Z",
        allow_none=True,
    )


# The schemas of query strings.


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class TaskQuerySchema(Schema):
    """The parts of a task in the answer."""

    fields_ = Names(
        TASK_FIELDS,
        f"The fields to return, separated by commas: {_in_words(TASK_FIELDS)}. All by "
        "default. The answer is then a `PartialTask`.",
        data_key="fields",
        attribute="fields",
    )
    expand = Names(
        TASK_EXPANSIONS, f"What to embed, separated by commas: {_in_words(TASK_EXPANSIONS)}."
    )


class CursorField(fields.Field[tuple[str, str, str]]):
    """The end of a page, opaque to callers: the sort, a moment and a task's id."""

    def __init__(self) -> None:
        description = "Where the page before ended: it is in that page's `Link`. Goes with `limit`."
        super().__init__(metadata=doc(description, type="string"))

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> tuple[str, str, str]:
        try:
            sort, moment, task_id = orjson.loads(urlsafe_b64decode(value))
            # The type first: a forged cursor may hold any JSON.
            if type(task_id) is not str or sort not in terms.SORTS or parse_id(task_id) != task_id:
                raise ValueError
            if clock.rfc3339(datetime.fromisoformat(moment)) != moment:
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise ValidationError("Is not a cursor of this list.") from None
        return sort, moment, task_id


def dump_cursor(sort: str, moment: str, task_id: str) -> str:
    """The cursor that CursorField loads."""
    return urlsafe_b64encode(orjson.dumps((sort, moment, task_id))).decode()


class ListQuerySchema(TaskQuerySchema):
    """The tasks in a list, and their order."""

    status = fields.String(
        validate=validate.OneOf(terms.STATUSES),
        metadata=doc("Only tasks with this status."),
    )
    errorType = fields.String(
        validate=validate.OneOf(terms.ERROR_TYPES),
        metadata=doc("Only tasks that ended as `error` of this type."),
    )
    claimed = flag_parameter("Only tasks that an agent has claimed, or that none has.")
    agentId = fields.String(
        validate=validate.Regexp(terms.AGENT_ID.pattern + r"\Z"),
        metadata=doc("Only tasks of this agent.", pattern=f"^{terms.AGENT_ID.pattern}$"),
    )
    parentId = Id(metadata=doc("Only tasks that this one started.", format="uuid"))
    label = LabelTexts("Only tasks with this label, `key:value`; several must all fit.")
    q = fields.String(
        validate=validate.Length(1, terms.MAX_NAME),
        metadata=doc("Only tasks with this text in their name, in upper or lower case."),
    )
    createdAfter = Moment("Only tasks started after this moment.")
    createdBefore = Moment("Only tasks started before this moment.", round_up=True)
    finishedAfter = Moment("Only tasks that ended after this moment.")
    sort = fields.String(
        validate=validate.OneOf(terms.SORTS),
        metadata=doc(
            "`-createdAt`: newest first; `createdAt`: oldest first; `finishedAt`: finished tasks "
            "only, the first to end first.",
            default=terms.SORTS[0],
        ),
    )
    limit = NumberText(1, terms.MAX_LIMIT, "Tasks on a page; without it all are streamed.")
    cursor = CursorField()

    @validates_schema
    def check_cursor(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "cursor" not in data:
            return
        if "limit" not in data:
            raise ValidationError("Only allowed with limit.", "cursor")
        if data["cursor"][0] != data.get("sort", terms.SORTS[0]):
            raise ValidationError("Belongs to a list in another order.", "cursor")


class LogQuerySchema(Schema):
    """The lines of a log in the answer."""

    after = NumberText(0, (1 << 63) - 1, "Only lines after this number; from the first by default.")
    limit = NumberText(
        1,
        terms.MAX_LINES,
        f"Maximum number of lines. Default: {terms.DEFAULT_LINES:,}; as `text/plain`, all of them.",
    )
    times = flag_parameter("Whether the answer has the time of each line.")


class FollowQuerySchema(Schema):
    """The form of the events."""

    times = flag_parameter("Whether each line comes with its time.")


class AgentQuerySchema(Schema):
    """The parts of an agent in the answer."""

    expand = Names(AGENT_EXPANSIONS, f"What to embed: {_in_words(AGENT_EXPANSIONS)}.")


class AppendQuerySchema(Schema):
    """The fields of a JSON body, for a text body."""

    seq = NumberText(1, 1 << 53, "With `text/plain`: as `seq` in the JSON body.")
    writer = fields.String(
        validate=validate.Length(max=terms.MAX_WRITER),
        metadata=doc("With `text/plain`: as `writer` in the JSON body."),
    )
    at = Times(
        metadata=doc(
            "With `text/plain`: when the agent printed the lines, one time for all.",
            examples.MOMENT,
            type="string",
            format="date-time",
        )
    )
