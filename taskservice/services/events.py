"""Events: recorded in the transaction that makes them, with the deliveries of their hooks."""

# A transaction that concerns several agents changes all their rows before it records events, so
# that two transactions cannot wait for each other.

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import Connection, Integer, and_, bindparam, case, delete, insert, select, update

from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Delivery, Event, EventStream, Hook, Question, Task
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import AnyRow, AnySelect, Identifier, Timestamp, database_now
from taskservice.schemas import strict_json
from taskservice.terms import (
    ACTIVE,
    AGENT_BROKEN,
    AGENT_FIXED,
    BROKEN,
    CANCELLED,
    COMPLETE,
    OK,
    PENDING,
    TASK_ASKS,
    TASK_ENDED,
    TASK_FAILED,
)

# Events are kept for so many seconds. For so long after the last poll of an MCP client, all events
# of its user are recorded.
KEPT_SECONDS = 7 * 86_400.0
# Events that one transaction deletes.
BATCH = 200

_OF_AGENT = (
    Agent.user_id == bindparam("of_user_id", type_=Identifier),
    Agent.id == bindparam("of_agent_id"),
)
_STATE = Statement[AnyRow](select(Agent.state, Agent.state_since).where(*_OF_AGENT))
_was_broken = Agent.state == BROKEN
# One more failure, or the first of a row.
_BREAK = (
    update(Agent)
    .where(*_OF_AGENT)
    .values(
        state=BROKEN,
        state_since=case(
            (_was_broken, Agent.state_since), else_=bindparam("at", type_=Timestamp())
        ),
        failures=case((_was_broken, Agent.failures + 1), else_=1),
    )
    .returning(Agent.failures)
)
_FIX = (
    update(Agent)
    .where(*_OF_AGENT, Agent.state.is_distinct_from(OK))
    .values(state=OK, state_since=bindparam("at", type_=Timestamp()), failures=0)
)
_STREAM = Statement[AnyRow](
    # Locked, since a subscription that begins now must not miss an event.
    select(EventStream.polled_at)
    .where(EventStream.user_id == bindparam("user_id", type_=Identifier))
    .with_for_update()
)
_HOOKS = Statement[AnyRow](
    select(
        Hook.id,
        Hook.target,
        Hook.format,
        Hook.events,
        Hook.agent_id,
        Hook.task_id,
        Hook.label,
        Hook.quiet_until,
        Hook.expires_at,
    ).where(Hook.user_id == bindparam("user_id", type_=Identifier), Hook.state == ACTIVE)
)
_NEXT_POSITION = (
    update(EventStream)
    .where(EventStream.user_id == bindparam("of_user_id", type_=Identifier))
    .values(position=EventStream.position + bindparam("count", type_=Integer()))
    .returning(EventStream.position)
)
_INSERT = Statement[None](
    insert(Event),
    [column.key for column in Event.__table__.columns],
)
_quiet_until = bindparam("quiet_until", type_=Timestamp())
_ENQUEUE = Statement[None](
    insert(Delivery).values(
        state=PENDING,
        attempt_count=0,
        # Until then, a hook for people gets no other message.
        next_attempt_at=case((_quiet_until > database_now(), _quiet_until), else_=database_now()),
    ),
    ["id", "task_id", "hook_id", "event_id", "user_id", "callback_url", "host", "created_at"],
)


# Events with what their messages tell of the agent, the task and the question.
WITH_TASKS: AnySelect = (
    select(
        *Event.__table__.columns,
        Agent.name.label("agent_name"),
        Task.name.label("task_name"),
        Task.status,
        Task.labels,
        Task.created_at,
        Task.claimed_at,
        Task.finished_at,
        Task.ended_by,
        Task.error_type,
        Task.error_message,
        Question.message.label("question"),
        Question.schema.label("question_schema"),
        Question.state.label("question_state"),
        Question.expires_at.label("question_expires_at"),
    )
    .outerjoin(Agent, and_(Agent.user_id == Event.user_id, Agent.id == Event.agent_id))
    .outerjoin(Task, Task.id == Event.task_id)
    .outerjoin(Question, Question.id == Event.question_id)
    .order_by(Event.position)
)


class NewEvent(NamedTuple):
    """An event to record; `labels` are its task's, as they are stored."""

    name: str
    at: str
    agent_id: str
    task_id: str | None = None
    labels: str = "{}"
    question_id: str | None = None
    details: Mapping[str, Any] = {}


def tasks_ended(connection: Connection, tasks: Iterable[Any], is_late: bool = False) -> None:
    """Record that tasks ended, and the changed states of their agents.

    Each has the columns of a task after its end. `is_late`: this end is a late report.
    """
    made: dict[str, list[NewEvent]] = {}
    for task in sorted(tasks, key=attrgetter("user_id", "agent_id")):
        made.setdefault(task.user_id, []).extend(_events_of_end(connection, task, is_late))
    for user_id, events in made.items():
        record(connection, user_id, events)


def _events_of_end(connection: Connection, task: Any, is_late: bool) -> list[NewEvent]:
    def event(name: str, **details: Any) -> NewEvent:
        of_task = (task.agent_id, task.id, task.labels)
        return NewEvent(name, task.finished_at, *of_task, details=details)

    ended = event(TASK_ENDED)
    if task.error_type == CANCELLED:
        return [ended]
    here = {"of_user_id": task.user_id, "of_agent_id": task.agent_id}
    at = {"at": task.finished_at}
    if task.status == COMPLETE:
        [before] = _STATE.all(connection, **here)
        is_changed = before.state != OK and connection.execute(_FIX, here | at).rowcount
        if not is_changed or before.state is None:
            return [ended]
        return [ended, event(AGENT_FIXED, brokenSince=before.state_since)]
    failed = [ended, event(TASK_FAILED)]
    if is_late and _STATE.scalar(connection, **here) == BROKEN:
        # This failure was counted when the task timed out.
        return failed
    is_first = connection.scalar(_BREAK, here | at) == 1
    return [*failed, event(AGENT_BROKEN)] if is_first else failed


def task_asks(connection: Connection, task: Any, question: Mapping[str, Any]) -> None:
    """Record that a task opened a question."""
    asks = NewEvent(TASK_ASKS, question["asked_at"], task.agent_id, task.id, task.labels)
    record(connection, task.user_id, [asks._replace(question_id=question["id"])])


def record(connection: Connection, user_id: str, events: Sequence[NewEvent]) -> None:
    """Record the events that a hook of the user or an MCP client is told of."""
    stream = _STREAM.one_or_none(connection, user_id=user_id)
    if stream is None:
        return
    now = clock.now()
    hooks = [
        hook
        for hook in _HOOKS.all(connection, user_id=user_id)
        if hook.expires_at is None or hook.expires_at > now
    ]
    is_polled = (stream.polled_at or "") > clock.moved(now, -KEPT_SECONDS)
    concerned = [(event, [hook for hook in hooks if _concerns(hook, event)]) for event in events]
    told = [(event, hooks) for event, hooks in concerned if hooks or is_polled]
    if told:
        store(connection, user_id, told)


def store(
    connection: Connection, user_id: str, told: Sequence[tuple[NewEvent, Sequence[AnyRow]]]
) -> None:
    """Store events, each with the hooks that are told of it."""
    wanted = {"of_user_id": user_id, "count": len(told)}
    last = connection.execute(_NEXT_POSITION, wanted).scalar_one()
    for position, (event, hooks) in enumerate(told, last - len(told) + 1):
        event_id = clock.new_id()
        details = strict_json.dumps(event.details).decode()
        columns = {**event._asdict(), "id": event_id, "user_id": user_id, "details": details}
        _INSERT.run(connection, **columns, position=position)
        for hook in hooks:
            enqueue(connection, user_id, hook, event_id, event)


def enqueue(connection: Connection, user_id: str, hook: AnyRow, event_id: str, event: Any) -> None:
    """Let the loop tell a hook of a stored event."""
    _ENQUEUE.run(
        connection,
        id=clock.new_id(),
        task_id=event.task_id,
        hook_id=hook.id,
        event_id=event_id,
        user_id=user_id,
        callback_url=hook.target,
        host=urlsplit(hook.target).netloc.lower(),
        created_at=event.at,
        quiet_until=hook.quiet_until,
    )


def open_stream(connection: Connection, user_id: str) -> None:
    """From now on, record this user's events; call it before the first hook or poll."""
    if _STREAM.one_or_none(connection, user_id=user_id) is None:
        connection.execute(insert(EventStream), {"user_id": user_id, "position": 0})


def _concerns(hook: AnyRow, event: NewEvent) -> bool:
    """Whether the hook is told of the event."""
    return (
        f'"{event.name}"' in hook.events
        and hook.agent_id in (None, event.agent_id)
        and hook.task_id in (None, event.task_id)
        and (hook.label is None or has_label(event.labels, hook.label))
    )


def has_label(labels: str, label: str) -> bool:
    """Whether a task with these stored labels has `label`, which is `key:value`."""
    key, _, value = label.partition(":")
    return bool(strict_json.loads(labels.encode()).get(key) == value)


def prune(now: str) -> bool:
    """Delete some old events with their deliveries; returns whether there may be more."""
    old = select(Event.id).where(Event.at < clock.moved(now, -KEPT_SECONDS)).limit(BATCH)
    with reading() as connection:
        ids = connection.scalars(old).all()
    if ids:
        with transaction() as connection:
            connection.execute(delete(Event).where(Event.id.in_(ids)))
    return len(ids) == BATCH
