"""The schemas of users, keys, secrets and agents in responses."""

from marshmallow.fields import Nested

from taskservice import terms
from taskservice.database.models import Agent, ApiKey, CallbackSecret, SignInLink, User
from taskservice.schemas import examples, fields
from taskservice.terms import AGENT_STATES, ATTENTION, BROKEN, COMPLETE, ERROR, ERROR_TYPES


class UserSchema(fields.RowSchema):
    """The person or team that owns tasks, agents and keys."""

    model = User
    id = fields.uuid("The user's ID.", examples.USER)
    name = fields.name("The user's name.", "alice")
    createdAt = fields.time("When the user was added.", examples.TIME)


class KeySchema(fields.RowSchema):
    """An API key, without its text."""

    model = ApiKey
    id = fields.uuid("The key's ID.", examples.KEY)
    name = fields.text("The key's name.", "laptop")
    hint = fields.text("The first and last characters of the key.", "tsk_agent_…Xk2P")
    agentId = fields.text(
        "The agent that the key is limited to; null for a user key.", "summarizer"
    )
    access = fields.choice(
        "`full`, or `read` if the key can only read.", terms.ACCESSES, terms.FULL
    )
    login = fields.boolean(
        "Whether this is a login key, which has no text: it signs in a person if a proxy sends the "
        "key's name as the person's name.",
        False,
    )
    createdAt = fields.time("When the key was created.", examples.TIME)
    expiresAt = fields.time("When the key expires.", None)
    lastUsedAt = fields.time("The minute in which the key was last used.", None)
    revokedAt = fields.time("When the key was revoked.", None)


class KeyWithSecretSchema(KeySchema):
    """A new key with its text, which no other response contains."""

    key = fields.text(
        "The text of the key, for the header `apikey`.", "tsk_agent_...", attribute="text"
    )


class SignInLinkSchema(fields.RowSchema):
    """A new link that signs a person in once."""

    model = SignInLink
    url = fields.text(
        "The URL, which no other response contains.",
        "https://tasks.example.org/sign-in/q3Yz0Jt8sVn5bL",
        format="uri",
    )
    expiresAt = fields.time("When the link expires.", examples.LATER)


class CallbackSecretSchema(fields.RowSchema):
    """The secret that signs a user's webhooks."""

    model = CallbackSecret
    secret = fields.text(
        "The secret, in the format of Standard Webhooks.", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    )
    createdAt = fields.time("When the secret was created.", examples.TIME)


class WhoAmISchema(UserSchema):
    """The user and the key of the request."""

    key = Nested(KeySchema())


user_schema = UserSchema()
key_schema = KeySchema()
key_with_secret_schema = KeyWithSecretSchema()
sign_in_link_schema = SignInLinkSchema()
callback_secret_schema = CallbackSecretSchema()
# The columns that queries select.
USER_COLUMNS = tuple(user_schema.columns.values())
KEY_COLUMNS = (*key_schema.columns.values(), ApiKey.user_id)


AGENT_EXPANSIONS = ("health",)


class RecentTaskSchema(fields.ResponseSchema):
    """One of the recently finished tasks in the `health` of an agent."""

    id = fields.uuid("The task's ID.", examples.TASK)
    status = fields.choice("The status.", [COMPLETE, ERROR], COMPLETE)
    errorType = fields.choice(
        "The type of the error; null if the task is complete.", ERROR_TYPES, None
    )
    finishedAt = fields.time("When the task ended.", examples.TIME)
    seconds = fields.number("Seconds from claim to end; null for an unclaimed task.", 12.5)


class HealthOfAgentSchema(fields.ResponseSchema):
    """The health of an agent, based mostly on its last 30 finished tasks."""

    recent = fields.array(
        "The last 30 finished tasks, in the order in which they ended.",
        items=Nested(RecentTaskSchema()),
    )
    successRate = fields.number(
        "The share of `complete` tasks, not counting cancelled tasks.", 0.97, maximum=1
    )
    lastSuccessAt = fields.time(
        "When a task last ended with the status `complete`.", examples.TIME, allow_none=True
    )
    medianSeconds = fields.number("Median duration in seconds, not counting cancelled tasks.", 12.5)
    dueAt = fields.time(
        "When the next task is expected to start or, if the agent is late, when the missing task "
        "was expected.",
        None,
    )
    lateSince = fields.time("When the agent became late.", None)
    state = fields.choice(
        "`broken` if the last finished task failed or timed out, `ok` if it completed; cancelled "
        "tasks do not count.",
        AGENT_STATES,
        BROKEN,
        allow_none=True,
    )
    stateSince = fields.time("When the state began: the end of the task that caused it.", None)
    workerSeenAt = fields.time("The minute in which a worker last asked for a task.", None)


class AgentOfTaskSchema(fields.RowSchema):
    """The agent of a task."""

    model = Agent
    id = fields.agent_id("The agent's ID, chosen by its user.", "summarizer")
    name = fields.text("The agent's name.", "Nightly summarizer")
    description = fields.text("The agent's purpose.", "Sums up the day's mail.")
    userId = fields.uuid("The ID of the user that owns the agent.", examples.USER)
    createdAt = fields.time("When the agent was registered.", examples.TIME)


class AgentSchema(AgentOfTaskSchema):
    """A named program or workflow; `health` is present only if `expand` names it."""

    optional = AGENT_EXPANSIONS

    inputSchema = fields.StoredJson(
        "A JSON Schema that the input must match at each rerun, and at each start of a task that "
        "the caller does not claim.",
        examples.INPUT_SCHEMA,
    )
    annotations = fields.StoredJson(
        "The agent's MCP tool annotations.",
        {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
    )
    tool = fields.boolean(
        "Whether MCP clients get a tool for this agent. With null, they get the tool if a worker "
        "of the agent was seen in the last 30 days.",
        None,
    )
    expect = fields.StoredJson(
        "When tasks are expected to start and end; null if nothing is expected.",
        None,
        anyOf=[{"$ref": "#/components/schemas/Expect"}, {"type": "null"}],
    )
    mutedUntil = fields.time(
        "Until this time, people are notified only of the agent's questions.", None
    )
    mutedBy = fields.key_name("The name of the key that muted the agent.", None)
    health = Nested(HealthOfAgentSchema())


class NumberPathSchema(fields.ResponseSchema):
    """A path at which an agent's outputs contain numbers."""

    path = fields.text(
        "A key of the output, or two nested keys with a dot between them.", "usage.output_tokens"
    )
    last = fields.StoredNumber("The newest number at this path.", 1843)
    count = fields.integer("How many outputs have a number at this path.", 100, minimum=1)


class NumberPathsSchema(fields.ResponseSchema):
    """The paths at which an agent's outputs contain numbers."""

    paths = fields.array(
        "At most 50 paths, the most frequent first.", items=Nested(NumberPathSchema())
    )


class OutputNumberSchema(fields.ResponseSchema):
    """A number in the output of a task."""

    taskId = fields.uuid("The task.", examples.TASK)
    finishedAt = fields.time("When the task ended.", examples.LATER)
    value = fields.StoredNumber("The number, exactly as in the output.", 1843)


class AttentionSchema(fields.ResponseSchema):
    """An item that needs a person's attention."""

    kind = fields.choice("The kind.", ATTENTION, BROKEN)
    agentId = fields.text(
        "The agent's ID; null for a backup, and for a hook that covers all agents.",
        "summarizer",
        allow_none=True,
    )
    taskId = fields.text("The task.", examples.TASK, format="uuid", allow_none=True)
    since = fields.time("When the problem began.", examples.TIME)
    text = fields.text("A description of the problem in one line.", "Failed 5 times in a row")


agent_schema = AgentSchema(exclude=AGENT_EXPANSIONS)
# Used only in the OpenAPI document.
expanded_agent_schema = AgentSchema()
agent_of_task_schema = AgentOfTaskSchema()
# The columns that queries select, for responses and to compute the health.
AGENT_COLUMNS = tuple(Agent.__table__.columns)
AGENT_OF_TASK_COLUMNS = tuple(agent_of_task_schema.columns.values())
