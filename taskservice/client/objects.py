"""Types for the JSON objects of the API: agents, hooks, and items that need attention."""

from typing import Any, NotRequired, TypedDict

from taskservice.client.responses import Timestamp
from taskservice.terms import ErrorType, Status


class FinishedTask(TypedDict):
    """A task in `Health.recent`; `seconds` is its duration, or None if it was never claimed."""

    id: str
    status: Status
    errorType: NotRequired[ErrorType | None]
    finishedAt: Timestamp
    seconds: float | None


class Health(TypedDict):
    """Statistics on an agent's last 30 finished tasks.

    `recent` lists these tasks, oldest first. `successRate` is from 0 to 1, and `medianSeconds` is
    the median duration; both ignore cancelled tasks. `state` is "broken" if the last task failed or
    timed out, otherwise "ok"; `stateSince` is the time when the agent entered this state.
    `workerSeenAt` is the time when a worker last asked for a task. `dueAt` is the time when the
    next task is expected to start, and `lateSince` is the time when the agent became late; see
    `Expect`. Times are RFC 3339 strings. All members except `recent` can be None.
    """

    recent: list[FinishedTask]
    successRate: float | None
    lastSuccessAt: Timestamp | None
    medianSeconds: float | None
    state: str | None
    stateSince: Timestamp | None
    workerSeenAt: Timestamp | None
    dueAt: NotRequired[Timestamp | None]
    lateSince: NotRequired[Timestamp | None]


class Attention(TypedDict):
    """An item that needs a person's attention; `text` describes it in one line.

    `kind` is "question", "broken", "late", "hanging", "no_worker", "callback_failed",
    "hook_failing", "hook_off" or "backup_old". `agentId` is None if the item concerns no
    agent, and `taskId` is None if it concerns no task. `since` is an RFC 3339 time.
    """

    kind: str
    agentId: str | None
    taskId: str | None
    since: Timestamp
    text: str


class Expect(TypedDict, total=False):
    """When tasks of an agent are expected to start (`every` or `cron`), and how long they may run.

    `every` is the maximum number of seconds from one start to the next. `cron` is a cron
    expression with five fields, and `timeZone` is the name of its time zone (default: UTC). An
    agent is late if no task has started `grace` seconds after the expected time (default: 3600). A
    task hangs if it runs for more than `maxDuration` seconds.
    """

    every: int
    cron: str
    timeZone: str
    grace: int
    maxDuration: int


class Annotations(TypedDict, total=False):
    """MCP tool hints for an agent; every key is optional."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class Agent(TypedDict):
    """An agent as the API returns it; `health` is present only if it was requested."""

    id: str
    name: str
    description: str
    userId: str
    createdAt: Timestamp
    inputSchema: dict[str, Any]
    annotations: Annotations
    tool: bool | None
    expect: NotRequired[Expect | None]
    mutedUntil: NotRequired[Timestamp | None]
    mutedBy: NotRequired[str | None]
    health: NotRequired[Health]


class Hook(TypedDict):
    """An address that is notified of events, as the API returns it; times are RFC 3339 strings."""

    id: str
    name: str
    target: str
    format: str
    events: list[str]
    agentId: str | None
    label: str | None
    answerLinks: bool
    after: NotRequired[int]
    createdAt: Timestamp
    state: str
    reason: str | None
    failingSince: NotRequired[Timestamp | None]
    lastDeliveredAt: Timestamp | None


class Attempt(TypedDict):
    message: str


class Delivery(TypedDict):
    """A delivery to a hook, with only the members that the CLI uses."""

    event: str
    agentId: str
    taskId: str | None
    state: str
    createdAt: Timestamp
    nextAttemptAt: Timestamp | None
    attempts: list[Attempt]
