"""The schemas of hooks, and of the log of their deliveries."""

from marshmallow import Schema, validate
from marshmallow.fields import String

from taskservice import event_kinds, terms
from taskservice.database.models import Event, Hook
from taskservice.schemas import examples, fields
from taskservice.schemas.tasks import DeliverySchema


class HookFieldsSchema(Schema):
    """A hook to create."""

    name = fields.name(
        "The hook's name; by default the target without its secret part, such as `ntfy.sh/alerts`.",
        "Phone",
    )
    target = fields.text(
        "A URL that is allowed as a callback URL, or `mailto:ADDRESS`.",
        "https://ntfy.example/alerts",
        required=True,
        **fields.bytes_at_most(terms.MAX_CALLBACK),
        pattern="^([Hh][Tt][Tt][Pp][Ss]?://|[Mm][Aa][Ii][Ll][Tt][Oo]:).",
    )
    format = fields.choice(
        "The format of the messages. The default depends on the target: `mail` for `mailto:`, "
        "`slack` for hooks.slack.com and for paths that end in `/slack`, `ntfy` for ntfy.sh, "
        "`standard` for any other target.",
        terms.HOOK_FORMATS,
        terms.NTFY,
    )
    events = fields.StoredNames(
        "The events that the hook is notified of; by default "
        f"{', '.join(event_kinds.DEFAULT_EVENTS)}.",
        list(event_kinds.DEFAULT_EVENTS),
        items=String(validate=validate.OneOf(event_kinds.EVENTS)),
        validate=validate.Length(min=1, error="Must have at least one event."),
        minItems=1,
    )
    agentId = fields.agent_id("Only events of this agent.", None)
    label = fields.text(
        "Only events of tasks with this label, as `key:value`.",
        None,
        validate=validate.Regexp(
            f"(?s){terms.LABEL_KEY.pattern}:.{{1,{terms.MAX_LABEL_VALUE}}}\\Z",
            error="Must be key:value.",
        ),
        pattern=f"^{terms.LABEL_KEY.pattern}:.",
    )
    token = fields.text(
        "The access token of an ntfy server. No response contains it.",
        allow_none=True,
        validate=validate.Regexp(
            r"[!-~]{1,500}\Z", error="Must have 1 to 500 printable ASCII characters without spaces."
        ),
        pattern="^[!-~]{1,500}$",
    )
    answerLinks = fields.StrictBoolean(
        "Whether messages about questions contain a link to answer them without a key.", False
    )
    after = fields.integer(
        "The number of failures in a row after which `agent.broken` is sent; by default 1. "
        "`agent.fixed` is then sent when the agent works again.",
        1,
        validate=validate.Range(1, terms.MAX_AFTER),
    )


class ChangeHookSchema(HookFieldsSchema):
    """Changes to a hook."""

    state = fields.choice(
        "`active` turns the hook on, and sends deliveries that have been pending for less than a "
        "day.",
        terms.HOOK_STATES,
        terms.ACTIVE,
    )


class HookSchema(HookFieldsSchema, fields.RowSchema):
    """An address to which the service sends the events of a user's agents."""

    model = Hook

    class Meta(fields.RowSchema.Meta):
        # Responses omit the token.
        fields = (
            "id", "name", "target", "format", "events", "agentId", "label", "answerLinks",
            "after", "createdAt", "state", "reason", "failingSince", "lastDeliveredAt",
        )  # fmt: skip

    id = fields.uuid("The hook's ID.", examples.HOOK)
    createdAt = fields.time("When the hook was created.", examples.TIME)
    state = fields.choice(
        "While the hook is `off`, nothing is sent. The service turns the hook off after three "
        "deliveries in a row have failed permanently, or after a response with status 410.",
        terms.HOOK_STATES,
        terms.ACTIVE,
    )
    reason = fields.text(
        "Why the hook is failing, or why the service turned it off.",
        None,
        **fields.bytes_at_most(terms.MAX_MESSAGE),
    )
    failingSince = fields.time(
        "While the hook is failing, the time of the first failed attempt since the last delivery. "
        "A hook counts as failing after two failed attempts, the first at least two minutes ago.",
        None,
        attribute="failing_since",
        allow_none=True,
    )
    lastDeliveredAt = fields.time("When an event was last delivered.", None)


class HookDeliverySchema(DeliverySchema):
    """One event that a hook is notified of."""

    event = fields.text("The event.", event_kinds.AGENT_BROKEN.name, column=Event.name)
    agentId = fields.text("The agent's ID.", "summarizer", column=Event.agent_id)
    taskId = fields.uuid("The task's ID; null if an agent is late.", None, column=Event.task_id)
    createdAt = fields.time("When the event happened.", examples.TIME)


class TestedHookSchema(fields.ResponseSchema):
    """The outcome of a test message."""

    delivered = fields.boolean("Whether the receiver accepted the message.", True)
    statusCode = fields.integer(
        "The status of the receiver's HTTP response; null without a response.",
        200,
        attribute="status_code",
        allow_none=True,
    )
    message = fields.text("A human-readable outcome.", "The receiver responded with 200 OK.")


create_hook_schema = HookFieldsSchema()
change_hook_schema = ChangeHookSchema(partial=True)
hook_schema = HookSchema()
hook_delivery_schema = HookDeliverySchema(exclude=("callback",))
tested_hook_schema = TestedHookSchema()
HOOK_DELIVERY_COLUMNS = tuple(hook_delivery_schema.columns.values())
