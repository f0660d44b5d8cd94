"""The schemas of query strings."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from taskservice.database import clock
from taskservice.schemas.answers.agents import AGENT_EXPANSIONS
from taskservice.schemas.fields import (
    EXAMPLE_MOMENT,
    FlagText,
    Id,
    LabelTexts,
    Moment,
    Names,
    NumberText,
    Times,
    doc,
    parse_id,
)
from taskservice.schemas.tasks import TASK_EXPANSIONS, TASK_FIELDS
from taskservice.terms import (
    AGENT_ID,
    DEFAULT_LINES,
    ERROR_TYPES,
    MAX_LIMIT,
    MAX_LINES,
    MAX_NAME,
    MAX_WRITER,
    SORTS,
    STATUSES,
)


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
            if type(task_id) is not str or sort not in SORTS or parse_id(task_id) != task_id:
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
        validate=validate.OneOf(STATUSES),
        metadata=doc("Only tasks with this status."),
    )
    errorType = fields.String(
        validate=validate.OneOf(ERROR_TYPES),
        metadata=doc("Only tasks that ended as `error` of this type."),
    )
    claimed = FlagText("Only tasks that an agent has claimed, or that none has.")
    agentId = fields.String(
        validate=validate.Regexp(AGENT_ID.pattern + r"\Z"),
        metadata=doc("Only tasks of this agent.", pattern=f"^{AGENT_ID.pattern}$"),
    )
    parentId = Id(metadata=doc("Only tasks that this one started.", format="uuid"))
    label = LabelTexts("Only tasks with this label, `key:value`; several must all fit.")
    q = fields.String(
        validate=validate.Length(1, MAX_NAME),
        metadata=doc("Only tasks with this text in their name, in upper or lower case."),
    )
    createdAfter = Moment("Only tasks started after this moment.")
    createdBefore = Moment("Only tasks started before this moment.", round_up=True)
    finishedAfter = Moment("Only tasks that ended after this moment.")
    sort = fields.String(
        validate=validate.OneOf(SORTS),
        metadata=doc(
            "`-createdAt`: newest first; `createdAt`: oldest first; `finishedAt`: finished tasks "
            "only, the first to end first.",
            default=SORTS[0],
        ),
    )
    limit = NumberText(1, MAX_LIMIT, "Tasks on a page; without it all are streamed.")
    cursor = CursorField()

    @validates_schema
    def check_cursor(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "cursor" not in data:
            return
        if "limit" not in data:
            raise ValidationError("Only allowed with limit.", "cursor")
        if data["cursor"][0] != data.get("sort", SORTS[0]):
            raise ValidationError("Belongs to a list in another order.", "cursor")


class LogQuerySchema(Schema):
    """The lines of a log in the answer."""

    after = NumberText(0, (1 << 63) - 1, "Only lines after this number; from the first by default.")
    limit = NumberText(
        1,
        MAX_LINES,
        f"Maximum number of lines. Default: {DEFAULT_LINES:,}; as `text/plain`, all of them.",
    )
    times = FlagText("Whether the answer has the time of each line.")


class FollowQuerySchema(Schema):
    """The form of the events."""

    times = FlagText("Whether each line comes with its time.")


class AgentQuerySchema(Schema):
    """The parts of an agent in the answer."""

    expand = Names(AGENT_EXPANSIONS, f"What to embed: {_in_words(AGENT_EXPANSIONS)}.")


class AppendQuerySchema(Schema):
    """The fields of a JSON body, for a text body."""

    seq = NumberText(1, 1 << 53, "With `text/plain`: as `seq` in the JSON body.")
    writer = fields.String(
        validate=validate.Length(max=MAX_WRITER),
        metadata=doc("With `text/plain`: as `writer` in the JSON body."),
    )
    at = Times(
        metadata=doc(
            "With `text/plain`: when the agent printed the lines, one time for all.",
            EXAMPLE_MOMENT,
            type="string",
            format="date-time",
        )
    )
