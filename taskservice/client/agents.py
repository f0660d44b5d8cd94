"""An agent as `Client.agents` reads it."""

from typing import Any, NotRequired, TypedDict

from taskservice.terms import ErrorType, Status


class FinishedTask(TypedDict):
    """One of an agent's last tasks; `seconds` is null if no agent claimed it."""

    id: str
    status: Status
    errorType: NotRequired[ErrorType | None]
    finishedAt: str
    seconds: float | None


class Health(TypedDict):
    """How an agent's last 30 tasks went, the oldest first; cancelled ones count for no rate."""

    recent: list[FinishedTask]
    successRate: float | None
    lastSuccessAt: str | None
    medianSeconds: float | None


class Annotations(TypedDict, total=False):
    """What an agent does, in the words of MCP's tools."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class Agent(TypedDict):
    """An agent's JSON; `health` is there where it was asked for."""

    id: str
    name: str
    description: str
    userId: str
    createdAt: str
    inputSchema: dict[str, Any]
    annotations: Annotations
    tool: bool
    health: NotRequired[Health]
