"""Users, their keys and their secrets as they are answered."""

from marshmallow import fields, validate

from taskservice.database.models import Agent, ApiKey, CallbackSecret, User
from taskservice.schemas import examples
from taskservice.schemas.fields import (
    AnswerSchema,
    RowSchema,
    StoredJson,
    doc,
    id_field,
    moment_field,
    text_field,
)
from taskservice.terms import COMPLETE, ERROR, ERROR_TYPES


class UserSchema(RowSchema):
    """The person or team that owns tasks, agents and keys."""

    id = id_field("The user's id.", examples.USER, column=User.id)
    name = text_field("The user's name.", "alice", column=User.name)
    createdAt = moment_field("When the user was added.", examples.MOMENT, User.created_at)


class KeySchema(RowSchema):
    """An API key, without its text."""

    id = id_field("The key's id.", examples.KEY, column=ApiKey.id)
    name = text_field("The key's name.", "laptop", column=ApiKey.name)
    hint = text_field(
        "The first and last characters of its text.", "tsk_agent_…Xk2P", column=ApiKey.hint
    )
    agentId = text_field(
        "The agent that it is limited to; null for a user key.",
        "summarizer",
        column=ApiKey.agent_id,
        allow_none=True,
    )
    createdAt = moment_field("When it was created.", examples.MOMENT, ApiKey.created_at)
    expiresAt = moment_field("When it expires.", None, ApiKey.expires_at)
    lastUsedAt = moment_field("The minute in which it was last used.", None, ApiKey.last_used_at)
    revokedAt = moment_field("When it was revoked.", None, ApiKey.revoked_at)


class KeyWithSecretSchema(KeySchema):
    """A new key, with its text: no other answer has the text."""

    key = fields.String(
        attribute="text",
        metadata=doc("The text of the key, for the header `apikey`.", "tsk_agent_..."),
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    secret = text_field(
        "The secret, in the format of Standard Webhooks.",
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        column=CallbackSecret.secret,
    )
    createdAt = moment_field("When it was created.", examples.MOMENT, CallbackSecret.created_at)


class WhoAmISchema(UserSchema):
    """A user, and the key of the request."""

    key = fields.Nested(KeySchema())


user_schema = UserSchema()
key_schema = KeySchema()
key_with_secret_schema = KeyWithSecretSchema()
callback_secret_schema = CallbackSecretSchema()
who_am_i_schema = WhoAmISchema()
# The columns that reads select.
USER_COLUMNS = tuple(user_schema.columns.values())
KEY_COLUMNS = (*key_schema.columns.values(), ApiKey.user_id)


# An agent as it is answered, and its health.

AGENT_EXPANSIONS = ("health",)


class RecentTaskSchema(AnswerSchema):
    """A finished task in the health of its agent."""

    id = id_field("The task's id.", examples.TASK)
    status = text_field("Its status.", COMPLETE, validate=validate.OneOf([COMPLETE, ERROR]))
    errorType = text_field(
        "The type of its error; null if it is complete.",
        None,
        allow_none=True,
        validate=validate.OneOf(ERROR_TYPES),
    )
    finishedAt = text_field("When it ended.", examples.MOMENT, format="date-time")
    seconds = fields.Float(
        allow_none=True,
        metadata=doc("Its duration since it was claimed; null if it never was.", 12.5, minimum=0),
    )


class HealthOfAgentSchema(AnswerSchema):
    """How an agent has done lately, over its last 30 finished tasks."""

    recent = fields.List(
        fields.Nested(RecentTaskSchema()),
        metadata=doc("Those tasks, the first to end first."),
    )
    successRate = fields.Float(
        allow_none=True,
        metadata=doc(
            "The share of them that are complete, cancelled ones left out.",
            0.97,
            minimum=0,
            maximum=1,
        ),
    )
    lastSuccessAt = text_field(
        "When the last complete one ended.", examples.MOMENT, format="date-time", allow_none=True
    )
    medianSeconds = fields.Float(
        allow_none=True,
        metadata=doc("Their median duration in seconds, cancelled ones left out.", 12.5, minimum=0),
    )


class AgentOfTaskSchema(RowSchema):
    """The agent of a task."""

    id = text_field("The agent's id, chosen by its user.", "summarizer", column=Agent.id)
    name = text_field("Its name.", "Nightly summarizer", column=Agent.name)
    description = text_field("What it does.", "Sums up the day's mail.", column=Agent.description)
    userId = id_field("The user that it belongs to.", examples.USER, column=Agent.user_id)
    createdAt = moment_field("When it was registered.", examples.MOMENT, Agent.created_at)


class AgentSchema(AgentOfTaskSchema):
    """A program that works on tasks; `health` only if `expand` asks for it."""

    optional = AGENT_EXPANSIONS

    inputSchema = StoredJson(
        metadata=doc(
            "The JSON Schema of its input, by which each unclaimed start and rerun is checked.",
            examples.INPUT_SCHEMA,
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


agent_schema = AgentSchema(exclude=AGENT_EXPANSIONS)
agent_of_task_schema = AgentOfTaskSchema()
AGENT_COLUMNS = tuple(agent_schema.columns.values())
AGENT_OF_TASK_COLUMNS = tuple(agent_of_task_schema.columns.values())
# For the documentation only.
expanded_agent_schema = AgentSchema()
