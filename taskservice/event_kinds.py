"""The kinds of events of which hooks are notified, with their texts and properties."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from taskservice.terms import COMPLETE, ERROR, RUNNING, Status

# The reason in the sample event that tests a hook.
SAMPLE_TEXT = "This is a test: nothing happened."


class EventKind(NamedTuple):
    """The texts and properties of a kind of event; `services/events.py` records events."""

    name: str
    # Titles of messages for people. In the title for one event, {} is the agent's name; in the
    # title for several events, {} is the number of events.
    title: str
    several: str
    tag: str  # the ntfy tag, which ntfy shows as an emoji
    # In the form for a new hook: the name of the event, and a description of when it happens.
    label: str
    when: str
    is_default: bool = True  # whether a hook is notified of this event by default
    is_urgent: bool = False  # for ntfy
    # Whether the event reports a new state of an agent or of a task. The data of such an event
    # contains the agent, and a message for people lists only the latest state of each agent and
    # task.
    is_of_agent: bool = False
    is_of_task: bool = False
    # `since` is the field of the event's data that contains the time at which the state began.
    # `since_line` is the line of a message that contains this time and the duration of the state.
    since: str | None = None
    since_line: str = ""
    # For the sample event that tests a hook: the status of its task (None for an event without a
    # task), and additional members of its data.
    sample_status: Status | None = COMPLETE
    sample_data: Mapping[str, Any] = {}

    @property
    def has_agent(self) -> bool:
        return self.is_of_agent or self.is_of_task


KINDS: dict[str, EventKind] = {}


def _add(kind: EventKind) -> EventKind:
    KINDS[kind.name] = kind
    return kind


# The most important kinds are first; messages for people use the same order.

TASK_ASKS = _add(
    EventKind(
        "task.asks",
        title="{} asks",
        several="{} questions",
        tag="question",
        label="task asks",
        when="a question waits for an answer",
        is_urgent=True,
        sample_status=RUNNING,
    )
)
AGENT_BROKEN = _add(
    EventKind(
        "agent.broken",
        title="{} failed",
        several="{} agents broke",
        tag="warning",
        label="agent breaks",
        when="its task fails, and its previous task did not",
        is_urgent=True,
        is_of_agent=True,
        sample_status=ERROR,
    )
)
TASK_FAILED = _add(
    EventKind(
        "task.failed",
        title="{} failed",
        several="{} tasks failed",
        tag="warning",
        label="task fails",
        when="every time",
        is_default=False,
        is_urgent=True,
        sample_status=ERROR,
    )
)
AGENT_LATE = _add(
    EventKind(
        "agent.late",
        title="{} is late",
        several="{} agents are late",
        tag="hourglass",
        label="agent is late",
        when="an expected run did not start",
        is_urgent=True,
        is_of_agent=True,
        since="dueAt",
        since_line="Due {since}, {length} late",
        sample_status=None,
    )
)
TASK_HANGS = _add(
    EventKind(
        "task.hangs",
        title="{} hangs",
        several="{} tasks hang",
        tag="hourglass_flowing_sand",
        label="task hangs",
        when="it runs for too long, or is silent for too long",
        is_urgent=True,
        is_of_task=True,
        since="hangingSince",
        sample_status=RUNNING,
        sample_data={"reason": SAMPLE_TEXT},
    )
)
AGENT_FIXED = _add(
    EventKind(
        "agent.fixed",
        title="{} works again",
        several="{} agents work again",
        tag="white_check_mark",
        label="agent works again",
        when="after it was broken",
        is_of_agent=True,
        since="brokenSince",
        since_line="Was broken for {length}, from {since}",
    )
)
AGENT_BACK = _add(
    EventKind(
        "agent.back",
        title="{} ran again",
        several="{} agents ran again",
        tag="white_check_mark",
        label="late agent runs",
        when="the expected run has started",
        is_of_agent=True,
        since="dueAt",
        since_line="Due {since}, {length} late",
        sample_status=RUNNING,
        sample_data={"onTime": False},
    )
)
TASK_RECOVERED = _add(
    EventKind(
        "task.recovered",
        title="{} no longer hangs",
        several="{} tasks no longer hang",
        tag="white_check_mark",
        label="hanging task recovers",
        when="it printed a line, asked a question or ended",
        is_of_task=True,
        since="hangingSince",
        since_line="Hung for {length}, from {since}",
        sample_data={**TASK_HANGS.sample_data, "seconds": 3_600.0},
    )
)
TASK_ENDED = _add(
    EventKind(
        "task.ended",
        title="{} ended",
        several="{} tasks ended",
        tag="checkered_flag",
        label="task ends",
        when="with any outcome",
        is_default=False,
    )
)

EVENTS = tuple(KINDS)
DEFAULT_EVENTS = tuple(name for name, kind in KINDS.items() if kind.is_default)
