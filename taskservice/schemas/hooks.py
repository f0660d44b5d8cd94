"""The schemas of hooks: what is told to whom, and the log of their deliveries."""

from typing import Any

from marshmallow import Schema, fields, validate

from taskservice import terms
from taskservice.database.models import Delivery, Event, Hook
from taskservice.schemas import examples
from taskservice.schemas.fields import (
    ResponseSchema,
    RowSchema,
    StoredNames,
    StrictBoolean,
    bytes_at_most,
    doc,
    id_field,
    name_field,
    text_field,
    time_field,
)
from taskservice.schemas.tasks import DeliverySchema

_TARGET = "https://ntfy.example/alerts"
_EVENT = fields.String(validate=validate.OneOf(terms.EVENTS))


class HookFieldsSchema(Schema):
    """A hook to create."""

    name = name_field("The name; by default the host or the mail address.", "Phone")
    target = fields.String(
        required=True,
        validate=bytes_at_most(terms.MAX_CALLBACK),
        metadata=doc(
            "A URL, which must be allowed as a callback's, or `mailto:ADDRESS`.",
            _TARGET,
            maxLength=terms.MAX_CALLBACK,
        ),
    )
    format = fields.String(
        validate=validate.OneOf(terms.HOOK_FORMATS),
        metadata=doc(
            "The form of the messages. By default it follows from the target: `mail` for "
            "`mailto:`, `slack` for hooks.slack.com and for paths that end in `/slack`, `ntfy` for "
            "ntfy.sh, else `standard`.",
            terms.NTFY,
        ),
    )
    events = fields.List(
        _EVENT,
        validate=validate.Length(min=1, error="Must have at least one event."),
        metadata=doc(
            "The events to tell; by default broken, fixed, asks, late and back.",
            list(terms.DEFAULT_EVENTS),
            minItems=1,
        ),
    )
    agentId = fields.String(
        allow_none=True,
        validate=validate.Regexp(f"(?:{terms.AGENT_ID.pattern})\\Z"),
        metadata=doc("Only events of this agent.", pattern=f"^{terms.AGENT_ID.pattern}$"),
    )
    label = fields.String(
        allow_none=True,
        validate=validate.Regexp(
            f"(?s){terms.LABEL_KEY.pattern}:.{{1,{terms.MAX_LABEL_VALUE}}}\\Z",
            error="Must be key:value.",
        ),
        metadata=doc(
            "Only events of tasks with this label, as `key:value`.",
            pattern=f"^{terms.LABEL_KEY.pattern}:.",
        ),
    )
    token = fields.String(
        allow_none=True,
        validate=validate.Regexp(
            r"[!-~]{1,500}\Z", error="Must have 1 to 500 printable ASCII characters, no spaces."
        ),
        metadata=doc(
            "The access token of an ntfy server. No response contains it.",
            pattern="^[!-~]{1,500}$",
        ),
    )
    answerLinks = StrictBoolean(
        metadata=doc(
            "Whether the message of a question has a link that answers it without a key.", False
        )
    )


class ChangeHookSchema(HookFieldsSchema):
    """Changes to a hook."""

    target = fields.String(
        validate=bytes_at_most(terms.MAX_CALLBACK),
        metadata=doc("As at the creation.", _TARGET, maxLength=terms.MAX_CALLBACK),
    )
    state = fields.String(
        validate=validate.OneOf(terms.HOOK_STATES),
        metadata=doc(
            "`active` also sends what has been pending for less than a day.", terms.ACTIVE
        ),
    )


class Target(fields.String):
    """A target, for MCP clients without its query, which can contain their secrets."""

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> Any:
        return value.partition("?")[0] if obj.format == terms.MCP else value


class HookSchema(RowSchema):
    """An address that is told about a user's agents."""

    id = id_field("The hook's ID.", examples.HOOK, column=Hook.id)
    name = text_field("The name.", "Phone", column=Hook.name)
    target = Target(
        metadata=doc("`mailto:`, or the URL; for `mcp` without query.", _TARGET, column=Hook.target)
    )
    format = text_field("The form; `mcp` is an MCP client.", terms.NTFY, column=Hook.format)
    events = StoredNames(
        _EVENT,
        metadata=doc("The events to tell.", list(terms.DEFAULT_EVENTS), column=Hook.events),
    )
    agentId = text_field("Only events of this agent.", None, column=Hook.agent_id, allow_none=True)
    label = text_field(
        "Only events of tasks with this label.", None, column=Hook.label, allow_none=True
    )
    answerLinks = fields.Boolean(
        metadata=doc(
            "Whether the message of a question has a link to answer it.",
            False,
            column=Hook.answer_links,
        )
    )
    createdAt = time_field("When it was created.", examples.TIME, Hook.created_at)
    expiresAt = time_field(
        "When the subscription of an MCP client expires; else null.", None, Hook.expires_at
    )
    state = text_field(
        "While it is `off`, it is told of nothing. Three deliveries in a row that failed for good "
        "turn it off, and a response of 410.",
        terms.ACTIVE,
        column=Hook.state,
        validate=validate.OneOf(terms.HOOK_STATES),
    )
    reason = text_field(
        "Why the service turned it off, in one sentence.",
        None,
        column=Hook.reason,
        allow_none=True,
    )
    lastDeliveredAt = time_field(
        "When it was last told of something.", None, Hook.last_delivered_at
    )


class HookDeliverySchema(DeliverySchema):
    """One event that a hook is told of."""

    event = text_field("The event.", terms.AGENT_BROKEN, column=Event.name)
    agentId = text_field("The agent's ID.", "summarizer", column=Event.agent_id)
    taskId = id_field("The task's ID; null for a late agent.", None, column=Event.task_id)
    createdAt = time_field("When it happened.", examples.TIME, Delivery.created_at)


class TestedHookSchema(ResponseSchema):
    """The outcome of a test message."""

    delivered = fields.Boolean(metadata=doc("Whether the receiver accepted it.", True))
    statusCode = fields.Integer(
        allow_none=True, metadata=doc("The receiver's HTTP status; null without one.", 200)
    )
    message = text_field("The outcome in one sentence.", "The receiver responded with 200 OK.")


hook_schema = HookSchema()
hook_delivery_schema = HookDeliverySchema(exclude=("callback",))
tested_hook_schema = TestedHookSchema()
HOOK_DELIVERY_COLUMNS = tuple(hook_delivery_schema.columns.values())
