"""The schemas of request bodies and query strings."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, ClassVar

import orjson
from marshmallow import Schema, ValidationError, post_load, pre_load, validates_schema
from marshmallow.fields import Dict, Nested, Raw
from marshmallow.validate import Equal, Length, Range

from taskservice import terms
from taskservice.database import clock
from taskservice.schemas import answer_schema, examples, fields, input_schema
from taskservice.schemas.tasks import TASK_EXPANSIONS, TASK_FIELDS
from taskservice.schemas.users import AGENT_EXPANSIONS


def _schema_field(
    description: str, example: Any, check: Callable[[Any], None], **properties: Any
) -> Dict:
    """A field for a JSON Schema; `properties` contains a schema for each required keyword."""
    rules = {"required": list(properties), "properties": properties}
    metadata = {"description": description, "examples": [example], **rules}
    return Dict(validate=check, metadata=metadata)


class EmptySchema(Schema):
    """An empty query string or body."""


class StartSchema(fields.RequestSchema):
    """A task to start."""

    agentId = fields.text(
        "The agent that executes the task; it must be registered.", "summarizer", required=True
    )
    name = fields.name("The task's name; by default the agent's name.", "nightly summary")
    input = fields.json_object("The task's input; at most 1 MiB.", {"mailbox": "office"})
    callback = fields.text(
        "The http or https URL that receives a signed webhook when the task ends. It must not "
        "contain a user name, a password or a fragment.",
        "https://myapp.example/api/v1/callback/2100aaa",
        **fields.bytes_at_most(terms.MAX_CALLBACK),
        format="uri",
        pattern="^[Hh][Tt][Tt][Pp][Ss]?://.",
    )
    timeout = fields.timeout(
        "Seconds after which a claimed task times out if its agent sends no append or report; 0 "
        "means no limit.",
        3600,
    )
    claim = fields.StrictBoolean("Whether the caller claims the task when it starts.", False)
    claimedAt = fields.timestamp(
        "For a claimed task whose work began before this request: the time when the work began, "
        "at most 30 days ago."
    )
    labels = fields.labels("Key–value pairs to filter by.")
    parentId = fields.uuid("The parent task; the key must have access to it.", None)


class RerunSchema(fields.RequestSchema):
    """Changes for the new task of a rerun, or null."""

    rule: ClassVar = {"type": ["object", "null"]}

    input = fields.json_object(
        "The input of the new task, at most 1 MiB; by default the input of the original task.",
        {"mailbox": "office"},
    )
    labels = fields.labels(
        "The labels of the new task; by default the labels of the original task."
    )

    @pre_load
    def accept_null(self, data: Any, **kwargs: Any) -> Any:
        return {} if data is None else data


class BulkSchema(fields.RequestSchema):
    """An action on many tasks."""

    action = fields.choice(
        "The action to apply to each task.", terms.BULK_ACTIONS, terms.CANCEL, required=True
    )
    taskIds = fields.strings(
        "The IDs of the tasks; a repeated ID counts once.",
        [examples.TASK],
        validate=Length(1, terms.MAX_LIMIT),
    )


class FailureSchema(Schema):
    """Why a task failed. An agent can only report errors of the type `failed`."""

    type = fields.text("The type of the error: `failed`.", validate=Equal(terms.FAILED))
    message = fields.text(
        "A human-readable reason.", required=True, **fields.bytes_at_most(terms.MAX_MESSAGE)
    )


class ReportSchema(Schema):
    """Changes to a task."""

    # The rule that a report with an `error` must have the status `error`, as JSON Schema for the
    # OpenAPI document.
    rule: ClassVar = {
        "if": {"properties": {"error": {"type": "object"}}, "required": ["error"]},
        "then": {"properties": {"status": {"const": terms.ERROR}}, "required": ["status"]},
    }

    status = fields.choice("`complete` and `error` end the task.", terms.STATUSES, terms.COMPLETE)
    output = fields.json_object(
        "Keys to set in the output; each value replaces the key's stored value. The whole output "
        "can have at most 1 MiB.",
        {"sum": 15},
    )
    error = Nested(FailureSchema(), allow_none=True)
    name = fields.name("A new name.")
    progress = fields.Number("The progress.", 0.5, allow_none=True, validate=fields.up_to(1))
    note = fields.text(
        "A human-readable progress note.",
        "34 of 68 pages",
        allow_none=True,
        validate=Length(max=terms.MAX_NOTE),
    )
    seconds = fields.Number(
        "How long the work took in seconds, for a report that may arrive after the work ended.",
        12.5,
        allow_none=True,
        validate=fields.up_to(terms.MAX_TIMEOUT),
    )
    labels = fields.labels("Labels to set; null removes a label.", may_remove=True)


class AskSchema(fields.RequestSchema):
    """A question to ask."""

    message = fields.text(
        "The question.",
        "Deploy to production?",
        required=True,
        validate=Length(1, terms.MAX_QUESTION),
    )
    schema = _schema_field(
        "A flat JSON Schema of the answer, as in MCP elicitation; by default one required "
        "string `answer`.",
        {"type": "object", "properties": {"deploy": {"type": "boolean"}}, "required": ["deploy"]},
        answer_schema.check_question_schema,
        type={"const": "object"},
        properties={"type": "object"},
    )
    timeout = fields.timeout(
        "Seconds until the question expires; by default a day. With 0, it never expires.", 3600
    )


class AnswerQuestionSchema(fields.RequestSchema):
    """A person's answer to a question."""

    # The rule of `check_content`, as JSON Schema for the OpenAPI document.
    rule: ClassVar = {
        "if": {"properties": {"action": {"const": terms.DECLINE}}, "required": ["action"]},
        "then": {"properties": {"content": {"type": "null"}}},
    }

    action = fields.choice(
        "Whether the question is answered or declined.",
        [terms.ACCEPT, terms.DECLINE],
        terms.ACCEPT,
        required=True,
    )
    content = fields.json_object(
        "The answer, which must match the question's schema.", {"deploy": True}
    )

    @validates_schema
    def check_content(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data.get("action") == terms.DECLINE and data.get("content") is not None:
            raise ValidationError("Only allowed with the action `accept`.", "content")


class AppendSchema(fields.RequestSchema):
    """Lines to add to a log."""

    logs = fields.strings(
        "The lines, each of at most 64 KiB; a string with line feeds becomes several lines.",
        ["Synopsis: Running", "15 mails"],
    )
    seq = fields.integer(
        "The number of the first line in this request, counted from 1 for each writer. Lines that "
        "are already stored are skipped.",
        1,
        validate=Range(1, 1 << 53),
    )
    writer = fields.text(
        "The name of the writer, if the log has several writers; empty by default. A task can have "
        f"at most {terms.MAX_WRITERS:,} writers.",
        "worker-1",
        validate=Length(max=terms.MAX_WRITER),
    )
    # In the OpenAPI document, this field has no type, since Java code generators create a broken
    # class for `anyOf` with an array.
    at = fields.times(
        "When the agent printed the lines, in RFC 3339: a single time for all lines, or an array "
        "of times in ascending order, one for each line. The default is the current time.",
        examples.TIME,
    )


class AnnotationsSchema(Schema):
    """The MCP tool annotations of an agent; clients treat them as hints."""

    title = fields.name("The agent's name in a list of tools.", "Sum up the mail")
    readOnlyHint = fields.StrictBoolean("Whether the agent changes nothing.", False)
    destructiveHint = fields.StrictBoolean("Whether the agent can delete or overwrite data.", True)
    idempotentHint = fields.StrictBoolean(
        "Whether a second task with the same input has no additional effect.", False
    )
    openWorldHint = fields.StrictBoolean("Whether the agent uses external systems.", True)


class ExpectSchema(Schema):
    """When tasks of an agent are expected to start, and how long they are expected to run."""

    # The rule of `check_kind`, as JSON Schema for the OpenAPI document.
    rule: ClassVar = {
        "if": {"required": ["cron"]},
        "then": {"not": {"required": ["every"]}},
        "else": {
            "not": {"required": ["timeZone"]},
            "if": {"not": {"required": ["every"]}},
            "then": {"required": ["maxDuration"], "not": {"required": ["grace"]}},
        },
    }

    every = fields.integer(
        "The maximum number of seconds from the start of a task to the start of the next task.",
        90_000,
        validate=Range(60, terms.MAX_TIMEOUT),
    )
    cron = fields.text(
        "A cron expression with five fields. A task is expected to start at each time that the "
        "expression matches.",
        "0 2 * * 1-5",
        validate=Length(1, terms.MAX_NAME),
    )
    timeZone = fields.text("The time zone of `cron`; UTC by default.", "Europe/Berlin")
    grace = fields.integer(
        "Seconds after the expected start of a task until the agent is late; 3600 by default.",
        3_600,
        validate=Range(0, 30 * 86_400),
    )
    maxDuration = fields.integer(
        "Seconds from the claim of a task until it counts as hanging; can be set alone, or with "
        "`every` or `cron`. Without `maxDuration`, a task hangs if it still runs when the next "
        "task is overdue, or if it is silent and runs much longer than usual.",
        7_200,
        validate=Range(terms.MIN_DURATION, terms.MAX_DURATION),
    )

    @validates_schema
    def check_kind(self, data: dict[str, Any], **kwargs: Any) -> None:
        if not data.keys() & {"every", "cron", "maxDuration"}:
            raise ValidationError(
                "At least one of `every`, `cron` and `maxDuration` is required.", "every"
            )
        if "every" in data and "cron" in data:
            raise ValidationError("Not allowed with `cron`.", "every")
        if "timeZone" in data and "cron" not in data:
            raise ValidationError("Only allowed with `cron`.", "timeZone")
        if "grace" in data and not data.keys() & {"every", "cron"}:
            raise ValidationError("Only allowed with `every` or `cron`.", "grace")

    @post_load
    def add_defaults(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        zone = {"timeZone": "UTC"} if "cron" in data else {}
        grace = {"grace": 3_600} if data.keys() & {"every", "cron"} else {}
        return {**zone, **grace, **data}


class PutAgentSchema(fields.RequestSchema):
    """An agent to register, or changes to it."""

    name = fields.name("The agent's name; by default its ID.", "Nightly summarizer")
    description = fields.text(
        "A description of the agent for people and models.",
        "Sums up the day's mail.",
        validate=Length(max=terms.MAX_DESCRIPTION),
    )
    inputSchema = _schema_field(
        "A JSON Schema (draft 2020-12) of the input. The input is checked at each rerun, and at "
        "each start unless the caller claims the task. The schema has at most 16 KiB and 16 "
        "levels. At the top level it has the type object, and no oneOf, anyOf, allOf, not, if, "
        "enum or $ref. Each $ref begins with #/ and does not refer back to itself.",
        examples.INPUT_SCHEMA,
        input_schema.check_input_schema,
        type={"const": "object"},
    )
    annotations = Nested(AnnotationsSchema())
    tool = fields.StrictBoolean(
        "Whether MCP clients get a tool for this agent. By default (null), MCP clients get the "
        "tool if a worker of the agent was seen in the last 30 days.",
        True,
    )
    expect = Nested(ExpectSchema())
    mutedUntil = fields.timestamp(
        "Until this time, people are notified only of the agent's questions: up to "
        f"{terms.MAX_MUTE_DAYS} days ahead. null ends the mute.",
        None,
    )


class CreateKeySchema(fields.RequestSchema):
    """A key to create."""

    name = fields.name("The key's name.", "laptop", required=True)
    agentId = fields.text(
        "The agent that the key is limited to; it must be registered.", "summarizer"
    )
    access = fields.choice(
        "`read` for a key that can only read; by default `full`.", terms.ACCESSES, terms.FULL
    )
    expiresAt = fields.timestamp("When the key expires; never by default.", "2126-11-24T13:36:00Z")


class CreateSignInLinkSchema(fields.RequestSchema):
    """A link that signs a person in."""

    keyName = fields.text(
        "The name of the user key whose rights the link grants; by default the key of the request.",
        "first",
    )


class CreateLinkSchema(fields.RequestSchema):
    """A link to create."""

    expiresAt = fields.timestamp(
        f"When the link expires: by default {terms.LINK_DAYS} days from now, and at most "
        f"{terms.MAX_LINK_DAYS} days from now.",
        None,
    )


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class TaskQuerySchema(Schema):
    """Which parts of a task the response contains."""

    fields_ = fields.names(
        TASK_FIELDS,
        f"The fields to return, separated by commas: {_in_words(TASK_FIELDS)}. By default, "
        "all fields are returned. With `fields`, the response is a `PartialTask`.",
        data_key="fields",
        attribute="fields",
    )
    expand = fields.names(
        TASK_EXPANSIONS, f"Objects to embed, separated by commas: {_in_words(TASK_EXPANSIONS)}."
    )


def _cursor(note: str = "", sorts: Sequence[str] = terms.SORTS, max_lines: int = 0) -> Raw:
    """A field for a cursor.

    A cursor contains the sort order, and the time and the ID of the last task on a page. The cursor
    of a search can also contain the number of the last line that was read in the task's log.
    """

    def load(text: str) -> tuple[Any, ...]:
        # A forged cursor can contain any JSON.
        with suppress(ValueError, TypeError, OverflowError):
            sort, time, task_id, *line = orjson.loads(urlsafe_b64decode(text))
            if (
                sort in sorts
                and clock.rfc3339(datetime.fromisoformat(time)) == time
                and fields.parse_id(task_id) == task_id
                and len(line) <= max_lines
                and all(type(number) is int and 0 <= number < 1 << 63 for number in line)
            ):
                return sort, time, task_id, *line
        raise ValidationError("Not a cursor of this list.")

    description = (
        f"The position where the page begins, from the previous page's `Link` header.{note}"
    )
    return fields.raw(description, post_load=load, type="string")


def dump_cursor(sort: str, *position: str | int) -> str:
    """Encode a cursor as text, which the field from `_cursor` decodes."""
    return urlsafe_b64encode(orjson.dumps((sort, *position))).decode()


class FilterQuerySchema(Schema):
    """The filters of a list."""

    status = fields.choice("Only tasks with this status.", terms.STATUSES)
    errorType = fields.choice(
        "Only tasks that ended with an error of this type.", terms.ERROR_TYPES
    )
    claimed = fields.flag("`true`: only claimed tasks; `false`: only unclaimed tasks.")
    asking = fields.flag(
        "`true`: only tasks with open questions; `false`: only tasks without open questions."
    )
    hanging = fields.flag("`true`: only tasks that hang; `false`: only tasks that don't hang.")
    agentId = fields.agent_id("Only tasks of this agent.")
    parentId = fields.uuid("Only child tasks of this task.")
    label = fields.label_texts(
        "Only tasks with this label, as `key:value`. Repeat the parameter for several labels."
    )
    q = fields.name("Only tasks whose name contains this text; case is ignored.")
    createdAfter = fields.timestamp("Only tasks started after this time.")
    createdBefore = fields.upper_bound("Only tasks started before this time.")
    finishedAfter = fields.timestamp("Only tasks that ended after this time.")


class ListQuerySchema(TaskQuerySchema, FilterQuerySchema):
    """The tasks in a list, and their order."""

    sort = fields.choice(
        "`-createdAt`: newest first; `createdAt`: oldest first; `finishedAt`: only finished tasks, "
        "in the order in which they ended.",
        terms.SORTS,
        default=terms.SORTS[0],
    )
    limit = fields.number_text(
        1,
        terms.MAX_LIMIT,
        "The maximum number of tasks on a page. Without `limit`, all tasks are streamed.",
    )
    cursor = _cursor(" Requires `limit`.")

    @validates_schema
    def check_cursor(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "cursor" not in data:
            return
        if "limit" not in data:
            raise ValidationError("Only allowed with `limit`.", "cursor")
        if data["cursor"][0] != data.get("sort", terms.SORTS[0]):
            raise ValidationError("The cursor belongs to a list with another sort order.", "cursor")


class SearchQuerySchema(FilterQuerySchema):
    """The text to search for, and filters for the tasks whose logs are searched."""

    text = fields.text(
        "The text that a line must contain; there are no wildcards.",
        "full",
        required=True,
        validate=Length(1, terms.MAX_SEARCHED_TEXT),
    )
    case = fields.flag("`true`: ASCII letters must match in case. By default, case is ignored.")
    limit = fields.number_text(
        1, terms.MAX_LIMIT, f"The maximum number of lines. Default: {terms.DEFAULT_HITS}."
    )
    cursor = _cursor(sorts=terms.SORTS[:1], max_lines=1)


class NewLinesQuerySchema(Schema):
    """The task to compare with."""

    against = fields.uuid(
        "The task to compare with; by default the agent's latest complete task that ended "
        "before this task started."
    )


class LogQuerySchema(Schema):
    """Which lines of the log the response contains."""

    after = fields.number_text(
        0, (1 << 63) - 1, "Only lines after the line with this number; by default all lines."
    )
    limit = fields.number_text(
        1,
        terms.MAX_LINES,
        f"The maximum number of lines. Default: {terms.DEFAULT_LINES:,}; for `text/plain`, all "
        "lines.",
    )
    times = fields.flag("Whether to return the time of each line.")


class FollowQuerySchema(Schema):
    """The format of the events."""

    times = fields.flag("Whether to send the time of each line.")


class AgentQuerySchema(Schema):
    """Which parts of an agent the response contains."""

    expand = fields.names(AGENT_EXPANSIONS, f"Objects to embed: {_in_words(AGENT_EXPANSIONS)}.")


class NumbersQuerySchema(Schema):
    """Which numbers the response contains."""

    path = fields.text("Only numbers at this path; by default all paths.", "usage.output_tokens")
    limit = fields.number_text(
        1, terms.MAX_LIMIT, "With `path`: how many of the newest numbers to return. Default: 100."
    )

    @validates_schema
    def check_limit(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "limit" in data and "path" not in data:
            raise ValidationError("Only allowed with `path`.", "limit")


class AppendQuerySchema(Schema):
    """Fields that a text body can't contain."""

    seq = fields.number_text(1, 1 << 53, "With `text/plain`: the same as `seq` in the JSON body.")
    writer = fields.text(
        "With `text/plain`: the same as `writer` in the JSON body.",
        validate=Length(max=terms.MAX_WRITER),
    )
    at = fields.times(
        "With `text/plain`: when the agent printed the lines, as one time for all of them.",
        examples.TIME,
        type="string",
        format="date-time",
    )
