"""An agent as it is answered, and its health."""

from marshmallow import fields, validate

from taskservice.database.models import Agent
from taskservice.schemas.fields import (
    EXAMPLE_INPUT_SCHEMA,
    EXAMPLE_MOMENT,
    EXAMPLE_TASK,
    EXAMPLE_USER,
    doc,
    id_field,
    moment_field,
)
from taskservice.schemas.rows import AnswerSchema, RowSchema, StoredJson
from taskservice.terms import COMPLETE, ERROR, ERROR_TYPES

AGENT_EXPANSIONS = ("health",)


class RecentTaskSchema(AnswerSchema):
    """A finished task in the health of its agent."""

    id = id_field("The task's id.", EXAMPLE_TASK, required=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf([COMPLETE, ERROR]),
        metadata=doc("Its status.", COMPLETE),
    )
    errorType = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf(ERROR_TYPES),
        metadata=doc("The type of its error; null if it is complete.", None),
    )
    finishedAt = fields.String(
        required=True, metadata=doc("When it ended.", EXAMPLE_MOMENT, format="date-time")
    )
    seconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Its duration since it was claimed; null if it never was.", 12.5, minimum=0),
    )


class HealthOfAgentSchema(AnswerSchema):
    """How an agent has done lately, over its last 30 finished tasks."""

    recent = fields.List(
        fields.Nested(RecentTaskSchema()),
        required=True,
        metadata=doc("Those tasks, the first to end first."),
    )
    successRate = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc(
            "The share of them that are complete, cancelled ones left out.",
            0.97,
            minimum=0,
            maximum=1,
        ),
    )
    lastSuccessAt = fields.String(
        required=True,
        allow_none=True,
        metadata=doc("When the last complete one ended.", EXAMPLE_MOMENT, format="date-time"),
    )
    medianSeconds = fields.Float(
        required=True,
        allow_none=True,
        metadata=doc("Their median duration in seconds, cancelled ones left out.", 12.5, minimum=0),
    )


class AgentOfTaskSchema(RowSchema):
    """The agent of a task."""

    id = fields.String(
        metadata=doc("The agent's id, chosen by its user.", "summarizer", column=Agent.id)
    )
    name = fields.String(metadata=doc("Its name.", "Nightly summarizer", column=Agent.name))
    description = fields.String(
        metadata=doc("What it does.", "Sums up the day's mail.", column=Agent.description)
    )
    userId = id_field("The user that it belongs to.", EXAMPLE_USER, column=Agent.user_id)
    createdAt = moment_field("When it was registered.", EXAMPLE_MOMENT, Agent.created_at)


class AgentSchema(AgentOfTaskSchema):
    """A program that works on tasks; `health` only if `expand` asks for it."""

    expansions = AGENT_EXPANSIONS

    inputSchema = StoredJson(
        metadata=doc(
            "The JSON Schema of its input, by which each unclaimed start and rerun is checked.",
            EXAMPLE_INPUT_SCHEMA,
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

# For the documentation only.
expanded_agent_schema = AgentSchema()
