"""Responses about users, their keys and secrets, and agents."""

from marshmallow import fields

from taskservice import terms
from taskservice.database.models import Agent, ApiKey, CallbackSecret, User
from taskservice.schemas import examples
from taskservice.schemas.fields import (
    ResponseSchema,
    RowSchema,
    StoredJson,
    StoredNumber,
    boolean_field,
    choice_field,
    float_field,
    id_field,
    integer_field,
    list_field,
    text_field,
    time_field,
)
from taskservice.terms import AGENT_STATES, ATTENTION, BROKEN, COMPLETE, ERROR, ERROR_TYPES


class UserSchema(RowSchema):
    """The person or team that owns tasks, agents and keys."""

    model = User
    id = id_field("The user's ID.", examples.USER)
    name = text_field("The user's name.", "alice")
    createdAt = time_field("When the user was added.", examples.TIME)


class KeySchema(RowSchema):
    """An API key, without its text."""

    model = ApiKey
    id = id_field("The key's ID.", examples.KEY)
    name = text_field("The key's name.", "laptop")
    hint = text_field("The first and last characters of the key.", "tsk_agent_…Xk2P")
    agentId = text_field("The agent that the key is limited to; null for a user key.", "summarizer")
    access = choice_field("`full`, or `read` if the key can only read.", terms.ACCESSES, terms.FULL)
    login = boolean_field(
        "Whether the key has no text, but signs in the person whom a proxy calls by its name.",
        False,
    )
    createdAt = time_field("When the key was created.", examples.TIME)
    expiresAt = time_field("When the key expires.", None)
    lastUsedAt = time_field("The minute of the last use.", None)
    revokedAt = time_field("When the key was revoked.", None)


class KeyWithSecretSchema(KeySchema):
    """A new key with its text, which no other response contains."""

    key = text_field(
        "The text of the key, for the header `apikey`.", "tsk_agent_...", attribute="text"
    )


class CallbackSecretSchema(RowSchema):
    """The secret that signs a user's webhooks."""

    model = CallbackSecret
    secret = text_field(
        "The secret, in the format of Standard Webhooks.", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    )
    createdAt = time_field("When it was created.", examples.TIME)


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


# Agents and their health.

AGENT_EXPANSIONS = ("health",)


class RecentTaskSchema(ResponseSchema):
    """A finished task in the health of its agent."""

    id = id_field("The task's ID.", examples.TASK)
    status = choice_field("The status.", [COMPLETE, ERROR], COMPLETE)
    errorType = choice_field(
        "The type of the error; null if the task is complete.", ERROR_TYPES, None, allow_none=True
    )
    finishedAt = time_field("When the task ended.", examples.TIME)
    seconds = float_field(
        "Seconds from claim to end; null if never claimed.", 12.5, allow_none=True, minimum=0
    )


class HealthOfAgentSchema(ResponseSchema):
    """The health of an agent, mostly from its last 30 finished tasks."""

    recent = list_field("These tasks, earliest end first.", items=fields.Nested(RecentTaskSchema()))
    successRate = float_field(
        "The share of complete tasks, not counting cancelled ones.",
        0.97,
        allow_none=True,
        minimum=0,
        maximum=1,
    )
    lastSuccessAt = time_field("When the last complete task ended.", examples.TIME, allow_none=True)
    medianSeconds = float_field(
        "Median duration in seconds, not counting cancelled tasks.",
        12.5,
        allow_none=True,
        minimum=0,
    )
    dueAt = time_field("When the next run is expected; while late, the missed one.", None)
    lateSince = time_field("Since when the agent is late.", None)
    state = choice_field(
        "`broken` if the last task failed or timed out, `ok` if it completed, not counting "
        "cancelled tasks.",
        AGENT_STATES,
        BROKEN,
        allow_none=True,
    )
    stateSince = time_field("When the first task of this state ended.", None)
    workerSeenAt = time_field("The minute in which a worker last asked for a task.", None)


class AgentOfTaskSchema(RowSchema):
    """The agent of a task."""

    model = Agent
    id = text_field("The agent's ID, chosen by its user.", "summarizer")
    name = text_field("The agent's name.", "Nightly summarizer")
    description = text_field("The purpose.", "Sums up the day's mail.")
    userId = id_field("The user that owns the agent.", examples.USER)
    createdAt = time_field("When the agent was registered.", examples.TIME)


class AgentSchema(AgentOfTaskSchema):
    """A program that works on tasks; `health` is present only if `expand` names it."""

    optional = AGENT_EXPANSIONS

    inputSchema = StoredJson(
        "JSON Schema that the input of each unclaimed start and each rerun must match.",
        examples.INPUT_SCHEMA,
    )
    annotations = StoredJson(
        "The MCP tool annotations.",
        {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
    )
    tool = boolean_field("Whether MCP clients get a tool for this agent.", True)
    expect = StoredJson(
        "When a task is expected to start; null if none is.",
        None,
        anyOf=[{"$ref": "#/components/schemas/Expect"}, {"type": "null"}],
    )
    health = fields.Nested(HealthOfAgentSchema())


class NumberPathSchema(ResponseSchema):
    """A place in the outputs of an agent that has numbers."""

    path = text_field("The key, or two keys with a dot between them.", "usage.output_tokens")
    last = StoredNumber("The newest number.", 1843)
    count = integer_field("The number of outputs that have it.", 100, minimum=1)


class NumberPathsSchema(ResponseSchema):
    """The paths of the numbers in the outputs of an agent."""

    paths = list_field(
        "The most frequent first, at most 50.", items=fields.Nested(NumberPathSchema())
    )


class OutputNumberSchema(ResponseSchema):
    """A number in the output of a task."""

    taskId = id_field("The task.", examples.TASK)
    finishedAt = time_field("When the task ended.", examples.LATER)
    value = StoredNumber("The number, exactly as in the output.", 1843)


class AttentionSchema(ResponseSchema):
    """One thing that needs a person's attention."""

    kind = choice_field("The kind.", ATTENTION, BROKEN)
    agentId = text_field("The agent; null for a hook of all agents.", "summarizer", allow_none=True)
    taskId = text_field("The task.", examples.TASK, format="uuid", allow_none=True)
    since = time_field("The start of the trouble.", examples.TIME)
    text = text_field("One line for a person.", "Failed 5 times in a row")


agent_schema = AgentSchema(exclude=AGENT_EXPANSIONS)
agent_of_task_schema = AgentOfTaskSchema()
attention_schema = AttentionSchema()
# For the documentation only.
number_paths_schema = NumberPathsSchema()
output_number_schema = OutputNumberSchema()
# The columns that reads select: for responses, and for the health.
AGENT_COLUMNS = (
    *agent_schema.columns.values(),
    Agent.state,
    Agent.state_since,
    Agent.failures,
    Agent.due_at,
    Agent.late_since,
    Agent.worker_seen_at,
)
AGENT_OF_TASK_COLUMNS = tuple(agent_of_task_schema.columns.values())
# For the documentation only.
expanded_agent_schema = AgentSchema()
