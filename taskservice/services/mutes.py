"""Mutes agents; after a mute, people are notified of states that began during it and persist."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from taskservice import terms
from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import IS_HANGING, Agent, Delivery, Event, Hook, Task
from taskservice.database.rows import AgentRow, TaskRow
from taskservice.database.transactions import current_time, read_all, transaction
from taskservice.database.types import AnySelect
from taskservice.errors import invalid
from taskservice.event_kinds import AGENT_BROKEN, AGENT_LATE, TASK_ASKS, TASK_HANGS
from taskservice.schemas import strict_json
from taskservice.services import deliveries, events
from taskservice.services.events import NewEvent, this_agent
from taskservice.services.tasks import NEWEST_FAILURE, of_this_agent

BATCH = 50  # The number of agents that one transaction changes.
DAY_SECONDS = 86_400.0

_AGENTS = select(
    Agent.user_id,
    Agent.id,
    Agent.state,
    Agent.state_since,
    Agent.failures,
    Agent.told_hooks,
    Agent.due_at,
    Agent.late_since,
    Agent.muted_at,
)
_THIS = _AGENTS.where(*this_agent).with_for_update(key_share=True)
_ENDED = (
    _AGENTS.where(Agent.muted_until <= bindparam("now"))
    .limit(BATCH)
    # A locked agent is being changed, so it is skipped until the next round.
    .with_for_update(key_share=True, skip_locked=True)
)
_HANGING = Statement[TaskRow](
    select(Task.id, Task.user_id, Task.agent_id, Task.labels)
    .add_columns(Task.hanging_since, Task.hanging_reason)
    .where(*of_this_agent, IS_HANGING, Task.hanging_since >= bindparam("muted_at"))
    .order_by(Task.hanging_since)
    .limit(BATCH)
)
_CHANGE = update(Agent).where(*this_agent)
# The pending notifications to people about an agent, except notifications about questions, to which
# a mute does not apply.
_UNTOLD: AnySelect = (
    select(Delivery.id)
    .join(Hook, Hook.id == Delivery.hook_id)
    .join(Event, Event.id == Delivery.event_id)
    .where(
        Hook.user_id == bindparam("of_user_id"),
        Hook.format.in_(terms.PEOPLE_FORMATS),
        deliveries.is_pending,
        Event.agent_id == bindparam("of_agent_id"),
        Event.name != TASK_ASKS.name,
    )
)


def of_user(caller: Caller) -> dict[str, AgentRow]:
    """The user's muted agents by ID, each with `muted_until` and `muted_by`."""
    return {agent.id: agent for agent in read_all(events.MUTED, user_id=caller.user_id)}


def sentence(agent: AgentRow) -> str:
    """A text such as `muted until 24 Nov 13:36 UTC by laptop`."""
    until = datetime.fromisoformat(str(agent.muted_until))
    return f"muted until {until.day} {until:%b %H:%M} UTC by {agent.muted_by}"


def change(connection: Connection, caller: Caller, agent_id: str, until: str | None) -> None:
    """Mute an agent until a time, or end its mute if `until` is None. Raises 422."""
    ids = {"of_user_id": caller.user_id, "of_agent_id": agent_id}
    agent = connection.execute(_THIS, ids).one()
    if until is None:
        if agent.muted_at is not None:
            _end(connection, [agent])
        return
    # The agent is locked, so no later change of its state can get an earlier time.
    now = current_time(connection)
    if not now < until <= clock.moved(now, terms.MAX_MUTE_DAYS * DAY_SECONDS):
        raise invalid({"mutedUntil": [f"Must be within the next {terms.MAX_MUTE_DAYS} days."]})
    untold = _UNTOLD.params(ids)
    is_break = Event.name == AGENT_BROKEN.name
    hooks = connection.scalars(untold.with_only_columns(Delivery.hook_id).where(is_break)).all()
    deliveries.cancel(connection, Delivery.id.in_(untold))
    told = [hook for hook in strict_json.loads(agent.told_hooks.encode()) if hook not in hooks]
    values = {"muted_until": until, "muted_at": agent.muted_at or now, "muted_by": caller.key_name}
    values["told_hooks"] = strict_json.dumps(told).decode()
    connection.execute(_CHANGE.values(values), ids)


def end_due(now: str) -> bool:
    """End a batch of mutes whose time has passed; returns whether more may remain."""
    with transaction() as connection:
        agents = sorted(connection.execute(_ENDED, {"now": now}).all(), key=itemgetter(0, 1))
        _end(connection, agents)
    return len(agents) == BATCH


def _end(connection: Connection, agents: Sequence[Any]) -> None:
    for agent in agents:
        ids = {"of_user_id": agent.user_id, "of_agent_id": agent.id}
        connection.execute(_CHANGE.values(muted_until=None, muted_at=None, muted_by=None), ids)
    now = current_time(connection)
    missed = [event for agent in agents for event in _missed(connection, agent, now)]
    events.record_events(connection, missed)


def _missed(connection: Connection, agent: AgentRow, now: str) -> Iterator[NewEvent]:
    """Events for the states of an agent that began during its mute and persist."""
    ids: dict[str, Any] = {"user_id": agent.user_id, "agent_id": agent.id}
    if not events.has_stream(connection, agent.user_id):
        return
    if agent.state == terms.BROKEN and (task := NEWEST_FAILURE.one_or_none(connection, **ids)):
        broken = NewEvent.of_task(task, now, AGENT_BROKEN, agent)
        yield broken._replace(is_for_people=True)
    if agent.late_since and agent.late_since >= str(agent.muted_at):
        late = NewEvent(AGENT_LATE, now, **ids, details={"dueAt": agent.due_at})
        yield late._replace(is_for_people=True)
    for task in _HANGING.all(connection, **ids, muted_at=agent.muted_at):
        details = {"hangingSince": task.hanging_since, "reason": task.hanging_reason}
        hangs = NewEvent.of_task(task, now, TASK_HANGS, **details)
        yield hangs._replace(is_for_people=True)


def correct_future_times(ahead: str, now: str) -> None:
    """If `muted_at` is after the future time `ahead`, set it to `now`; keep the mute's duration."""
    begun = select(Agent.user_id, Agent.id, Agent.muted_at, Agent.muted_until)
    for agent in read_all(begun.where(Agent.muted_at > ahead)):
        seconds = clock.seconds_between(agent.muted_at, agent.muted_until)
        times = {"muted_at": now, "muted_until": clock.moved(now, seconds)}
        ids = {"of_user_id": agent.user_id, "of_agent_id": agent.id}
        with transaction() as connection:
            this = _CHANGE.where(Agent.muted_at == agent.muted_at)
            connection.execute(this.values(times), ids)
