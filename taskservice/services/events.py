"""Records events, with their deliveries to hooks, in the transactions that cause them."""

# A transaction that concerns several agents changes the rows of all of them before it records
# events; otherwise, two transactions could deadlock.

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Text,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from taskservice import event_kinds, terms
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import (
    IS_MUTED,
    Agent,
    Delivery,
    Event,
    EventStream,
    Hook,
    Question,
    Task,
)
from taskservice.database.rows import AgentRow, HookRow
from taskservice.database.transactions import read_all, transaction
from taskservice.database.types import AnyRow, Timestamp, database_now, position_in_text
from taskservice.event_kinds import EventKind
from taskservice.schemas import strict_json
from taskservice.webhooks.circuit_breaker import host_of

KEPT_SECONDS = 7 * 86_400.0
DAY_SECONDS = 86_400.0  # people are not notified of events that are older than this
BATCH = 200  # the maximum number of events, and of deliveries, that one transaction deletes

this_agent = (Agent.user_id == bindparam("of_user_id"), Agent.id == bindparam("of_agent_id"))
_STATE = Statement[AgentRow](
    select(Agent.state, Agent.state_since, Agent.failures, Agent.told_hooks).where(*this_agent)
)
# On PostgreSQL, a task that completes takes a shared lock on its agent, and a task that fails takes
# an exclusive lock; otherwise, a completion would not see a failure that is not committed yet.
_agent_hash = func.hashtextextended(bindparam("agent"), 0)
_END_LOCKS = {
    terms.COMPLETE: Statement[Any](select(func.pg_advisory_xact_lock_shared(_agent_hash))),
    terms.ERROR: Statement[Any](select(func.pg_advisory_xact_lock(_agent_hash))),
}
_was_broken, _at = Agent.state == terms.BROKEN, bindparam("at", type_=Timestamp())
# Sets the state `broken`, and counts the failures in a row.
_BREAK = (
    update(Agent)
    .where(*this_agent)
    .values(
        state=terms.BROKEN,
        state_since=case((_was_broken, Agent.state_since), else_=_at),
        failures=case((_was_broken, Agent.failures + 1), else_=1),
    )
    .returning(Agent.state_since, Agent.failures, Agent.told_hooks)
)
_FIX = (
    update(Agent)
    .where(*this_agent, Agent.state.is_distinct_from(terms.OK))
    .values(state=terms.OK, state_since=_at, failures=0, told_hooks="[]")
)
_TOLD = update(Agent).where(*this_agent).values(told_hooks=bindparam("hook_ids"))
MUTED = Statement[AgentRow](
    select(Agent.id, Agent.muted_until, Agent.muted_by).where(
        Agent.user_id == bindparam("user_id"), IS_MUTED
    )
)
_STREAM = Statement[AnyRow](
    # Lock the row, so that no hook is deleted before its deliveries are stored.
    select(EventStream.position)
    .where(EventStream.user_id == bindparam("user_id"))
    .with_for_update()
)


@cache
def _hooks(names: tuple[str, ...]) -> Statement[HookRow]:
    """Selects the hooks of a user that are notified of events with at least one of these names."""
    # Filter by name in the query, since most hooks are not notified of any of these events.
    is_told = (position_in_text(Hook.events, literal(f'"{name}"', Text())) > 0 for name in names)
    return Statement(
        select(Hook.__table__).where(
            Hook.user_id == bindparam("user_id"),
            Hook.state == terms.ACTIVE,
            Hook.deleted_at.is_(None),
            or_(*is_told),
        )
    )


_NEXT_POSITION = (
    update(EventStream)
    .where(EventStream.user_id == bindparam("of_user_id"))
    .values(position=EventStream.position + bindparam("count"))
    .returning(EventStream.position)
)
_INSERT = Statement[None](insert(Event), [column.key for column in Event.__table__.columns])
_ENQUEUE = Statement[None](
    insert(Delivery).values(
        state=terms.PENDING, attempt_count=0, next_attempt_at=database_now(bindparam("seconds"))
    ),
    ["id", "task_id", "hook_id", "event_id", "user_id", "callback_url", "host", "created_at"],
)
# A hook for people receives at most one message every PAUSE_SECONDS.
PAUSE_SECONDS = 30.0
# The end of a hook's pause, or the current time if there is no pause. A pause that ends too far in
# the future is ignored: it began before the clock was set back, or when the hook was for programs.
# PostgreSQL rounds the time; therefore a second is added.
_has_pause = Hook.quiet_until.between(database_now(), database_now(PAUSE_SECONDS + 1))
after_pause = case((_has_pause, Hook.quiet_until), else_=database_now())
# Schedules the next message of a hook for people, unless it is already scheduled. The UPDATE locks
# the row even if the time stays the same; otherwise, a transaction that has just sent all events
# could unset the time.
_SCHEDULE_MESSAGE = Statement[None](
    update(Hook)
    .where(Hook.id == bindparam("this_hook_id"))
    .values(
        next_attempt_at=case(
            (Hook.next_attempt_at.is_not(None), Hook.next_attempt_at), else_=after_pause
        )
    )
)

# Events, with the columns of their agent, task and question that messages need.
WITH_TASKS = (
    select(
        *Event.__table__.columns,
        Agent.name.label("agent_name"),
        Task.name.label("task_name"),
        Task.status,
        Task.labels,
        Task.created_at,
        Task.claimed_at,
        Task.finished_at,
        Task.seconds,
        Task.ended_by,
        Task.error_type,
        Task.error_message,
        Question.message.label("question"),
        Question.schema.label("question_schema"),
        Question.state.label("question_state"),
    )
    .outerjoin(Agent, (Agent.user_id == Event.user_id) & (Agent.id == Event.agent_id))
    .outerjoin(Task, Task.id == Event.task_id)
    .outerjoin(Question, Question.id == Event.question_id)
    .order_by(Event.position)
)


class NewEvent(NamedTuple):
    """An event to record; `labels` are the stored labels of its task.

    `agent` is the row of an agent that breaks or is fixed, with its `failures` and `told_hooks`.
    """

    kind: EventKind
    at: str
    user_id: str
    agent_id: str
    task_id: str | None = None
    labels: str = "{}"
    question_id: str | None = None
    details: Mapping[str, Any] = {}
    agent: Any = None
    is_for_people: bool = False  # if true, hooks for programs were already notified

    @classmethod
    def of_task(
        cls, task: Any, at: str, kind: EventKind, agent: Any = None, **details: Any
    ) -> "NewEvent":
        of_task = (task.user_id, task.agent_id, task.id, task.labels)
        return cls(kind, at, *of_task, details=details, agent=agent)


def lock_ends(connection: Connection, tasks: Iterable[Any], status: str) -> None:
    """Lock the agents of tasks that end, so that agents change in the order of `finishedAt`.

    Call this before the transaction reads the time for `finishedAt`.
    """
    if connection.dialect.name == "postgresql":
        for agent in sorted({f"{task.user_id} {task.agent_id}" for task in tasks}):
            _END_LOCKS[status].run(connection, agent=agent)


def record_ends(connection: Connection, tasks: Iterable[Any], is_late: bool = False) -> None:
    """Record that tasks ended, and the new states of their agents.

    `is_late` is true for a late report. `tasks` must contain the values of `hanging_since` and
    `hanging_reason` from before the tasks ended.
    """
    ordered = sorted(tasks, key=attrgetter("user_id", "agent_id"))
    ends = [event for task in ordered for event in _ends(connection, task, is_late)]
    recovered = [recovery(task, task.finished_at) for task in ordered if task.hanging_since]
    record_events(connection, [*ends, *recovered])


def recovery(task: Any, at: str) -> NewEvent:
    """The event for a task that no longer hangs; `task` still contains its `hanging_since`."""
    since, reason = task.hanging_since, task.hanging_reason
    details = {"hangingSince": since, "reason": reason}
    # The difference can be negative, if the clock was set back.
    details["seconds"] = max(0.0, clock.seconds_between(since, at))
    return NewEvent.of_task(task, at, event_kinds.TASK_RECOVERED, **details)


def _ends(connection: Connection, task: Any, is_late: bool) -> list[NewEvent]:
    event = partial(NewEvent.of_task, task, task.finished_at)
    ended = event(event_kinds.TASK_ENDED)
    if task.error_type == terms.CANCELLED:
        return [ended]
    agent_ids = {"of_user_id": task.user_id, "of_agent_id": task.agent_id}
    at = {"at": task.finished_at}
    if task.status == terms.COMPLETE:
        [before] = _STATE.all(connection, **agent_ids)
        is_changed = before.state != terms.OK and connection.execute(_FIX, agent_ids | at).rowcount
        if not is_changed or before.state is None:
            return [ended]
        return [ended, event(event_kinds.AGENT_FIXED, before, brokenSince=before.state_since)]
    failed = [ended, event(event_kinds.TASK_FAILED)]
    if is_late and _STATE.scalar(connection, **agent_ids) == terms.BROKEN:
        # This failure was counted when the task timed out.
        return failed
    agent = connection.execute(_BREAK, agent_ids | at).one()
    return [*failed, event(event_kinds.AGENT_BROKEN, agent)]


def record_events(connection: Connection, events: Iterable[NewEvent]) -> None:
    """Record the events of which at least one hook of the user is notified."""
    of_user = attrgetter("user_id")
    for user_id, events_of_user in groupby(sorted(events, key=of_user), of_user):
        if not has_stream(connection, user_id):
            continue
        happened = list(events_of_user)
        names = tuple(sorted({event.kind.name for event in happened}))
        hooks = _hooks(names).all(connection, user_id=user_id)
        with_hooks = _with_hooks(connection, happened, hooks)
        if with_hooks:
            _store_events(connection, user_id, with_hooks)


def has_stream(connection: Connection, user_id: str) -> bool:
    """Whether the user has, or had, a hook. If so, locks the event stream of the user."""
    return _STREAM.one_or_none(connection, user_id=user_id) is not None


def _with_hooks(
    connection: Connection, events: Sequence[NewEvent], hooks: Sequence[HookRow]
) -> list[tuple[NewEvent, list[HookRow]]]:
    """The events of which at least one hook is notified, each with its hooks."""
    with_hooks = []
    muted: set[str] | None = None
    told: dict[str, list[str]] = {}
    for event in events:
        if event.agent is not None and event.agent_id not in told:
            told[event.agent_id] = strict_json.loads(event.agent.told_hooks.encode())
        told_hooks = told.get(event.agent_id, [])
        concerned = [hook for hook in hooks if _concerns(hook, event, told_hooks)]
        if muted is None and any(hook.format in terms.PEOPLE_FORMATS for hook in concerned):
            muted = {agent.id for agent in MUTED.all(connection, user_id=event.user_id)}
        if event.agent_id in (muted or ()) and event.kind != event_kinds.TASK_ASKS:
            concerned = [hook for hook in concerned if hook.format not in terms.PEOPLE_FORMATS]
        if concerned:
            with_hooks.append((event, concerned))
        if concerned and event.kind == event_kinds.AGENT_BROKEN:
            told_hooks += [hook.id for hook in concerned]
            values = {"of_user_id": event.user_id, "of_agent_id": event.agent_id}
            values["hook_ids"] = strict_json.dumps(told_hooks).decode()
            connection.execute(_TOLD, values)
    return with_hooks


def _store_events(
    connection: Connection, user_id: str, with_hooks: Sequence[tuple[NewEvent, Sequence[HookRow]]]
) -> None:
    """Store events of one user, each with a delivery to each notified hook."""
    next_positions = {"of_user_id": user_id, "count": len(with_hooks)}
    last = connection.execute(_NEXT_POSITION, next_positions).scalar_one()
    for position, (event, hooks) in enumerate(with_hooks, last - len(with_hooks) + 1):
        columns = event._asdict() | {"id": clock.new_id(), "position": position}
        columns["name"] = columns.pop("kind").name
        del columns["agent"], columns["is_for_people"]
        columns["details"] = strict_json.dumps(event.details).decode()
        _INSERT.run(connection, **columns)
        for hook in hooks:
            _enqueue_for_hook(connection, hook, columns["id"], event)


def _enqueue_for_hook(
    connection: Connection, hook: HookRow, event_id: str, event: NewEvent
) -> None:
    is_for_people = hook.format in terms.PEOPLE_FORMATS
    if is_for_people:
        _SCHEDULE_MESSAGE.run(connection, this_hook_id=hook.id)
    _ENQUEUE.run(
        connection,
        id=clock.new_id(),
        task_id=event.task_id,
        hook_id=hook.id,
        event_id=event_id,
        user_id=hook.user_id,
        callback_url=hook.target,
        host=host_of(hook.target),
        created_at=event.at,
        # A delivery to people expires at its `next_attempt_at`.
        seconds=DAY_SECONDS if is_for_people else 0.0,
    )


def lock_stream(connection: Connection, user_id: str) -> None:
    """Prevent other transactions from recording events of the user.

    Events of the user are recorded only after the first call, which creates the event stream.
    """
    if _STREAM.one_or_none(connection, user_id=user_id) is None:
        connection.execute(insert(EventStream), {"user_id": user_id, "position": 0})


def _concerns(hook: HookRow, event: NewEvent, told_hooks: Sequence[str]) -> bool:
    """Whether a hook is notified of an event.

    `told_hooks` contains the IDs of the hooks that were notified that the agent broke.
    """
    key, _, value = (hook.label or "").partition(":")
    return (
        f'"{event.kind.name}"' in hook.events
        and hook.agent_id in (None, event.agent_id)
        and (not key or strict_json.loads(event.labels.encode()).get(key) == value)
        and (hook.format in terms.PEOPLE_FORMATS or not event.is_for_people)
        and (event.kind != event_kinds.AGENT_BROKEN or _is_new_break(hook, event, told_hooks))
        and (event.kind != event_kinds.AGENT_FIXED or _knows_break(hook, event, told_hooks))
    )


def _is_new_break(hook: HookRow, event: NewEvent, told_hooks: Sequence[str]) -> bool:
    failures, since = event.agent.failures, event.agent.state_since
    # The agent broke before the hook was created.
    is_old = failures > hook.after and since <= hook.created_at
    return failures >= hook.after and hook.id not in told_hooks and not is_old


def _knows_break(hook: HookRow, event: NewEvent, told_hooks: Sequence[str]) -> bool:
    """Whether the hook was notified that the agent broke.

    A hook without the event AGENT_BROKEN counts as notified if the agent failed `after` times.
    """
    if f'"{event_kinds.AGENT_BROKEN.name}"' in hook.events:
        return hook.id in told_hooks
    return bool(event.agent.failures >= hook.after)


def prune(now: str) -> bool:
    """Delete a batch of old events with their deliveries; returns whether more may remain."""
    old = select(Event.id).where(Event.at < clock.moved(now, -KEPT_SECONDS)).limit(BATCH)
    ids = [row.id for row in read_all(old)]
    if not ids:
        return False
    # Delete deliveries in batches too, since an event has a delivery for each notified hook.
    is_told = (Delivery.event_id.in_(ids), Delivery.hook_id.is_not(None))
    with transaction() as connection:
        told = connection.scalars(select(Delivery.id).where(*is_told).limit(BATCH)).all()
        connection.execute(delete(Delivery).where(Delivery.id.in_(told)))
        if len(told) < BATCH:
            connection.execute(delete(Event).where(Event.id.in_(ids)))
    return BATCH in (len(ids), len(told))
