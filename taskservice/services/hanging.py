"""Hanging tasks: claimed tasks that run for too long, or report nothing for too long."""

from collections.abc import Callable
from datetime import datetime
from functools import cache, partial

from sqlalchemy import BigInteger, and_, bindparam, case, literal, or_, select, update

from taskservice.auth import is_of_agent
from taskservice.database import clock
from taskservice.database.models import IS_CLAIMED, IS_HANGING, Agent, Task
from taskservice.database.transactions import transaction
from taskservice.database.types import AnyRow, Timestamp
from taskservice.event_kinds import TASK_HANGS
from taskservice.quantities import seconds_text
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.services import agents, events
from taskservice.services.events import NewEvent

BATCH = 50  # the maximum number of tasks in one transaction
SILENT_SECONDS = 600.0
# A silent task counts as hanging after this multiple of its agent's usual duration.
TIMES_AS_LONG = 3
# The longest time between two checks of a task, since its agent's usual duration may change.
MAX_WAIT_SECONDS = 600.0

# See `Task.hang_check_at`. A task that does not hang yet is checked only if it was claimed at or
# after `since`.
_DUE = (
    select(Task.id, Task.user_id, Task.agent_id, Task.labels, Task.questions, Task.claimed_at)
    .add_columns(Task.updated_at, Task.hanging_since, Task.hanging_reason)
    .add_columns(Agent.expect, Agent.due_at, Agent.late_at)
    .join(Agent, is_of_agent)
    .where(
        IS_CLAIMED,
        Task.hang_check_at <= bindparam("now"),
        or_(
            and_(Task.hanging_since.is_(None), Task.claimed_at >= bindparam("since")),
            Task.hang_check_at > Task.hanging_since,
            Task.updated_at > Task.hanging_since,
        ),
    )
    .order_by(Task.hang_check_at)
    .limit(BATCH)
    # A task whose row is locked is being changed; it is checked in the next round.
    .with_for_update(skip_locked=True, of=Task)
)
_CHANGE = (
    update(Task)
    .where(Task.id == bindparam("of_task_id"))
    .values(
        hanging_since=bindparam("since"),
        hanging_reason=bindparam("reason"),
        hang_check_at=bindparam("check_at"),
        version=Task.version + bindparam("changes", type_=BigInteger()),
    )
)


def check(now: str, since: str) -> bool:
    """Check a batch of due tasks, and record which of them hang or no longer hang.

    A task that was claimed before `since` is not marked as hanging, since it may have been unable
    to report. Returns whether more tasks may be due.
    """
    with transaction() as connection:
        due = connection.execute(_DUE, {"now": now, "since": since}).all()
        usual = cache(partial(agents.usual_seconds, connection))
        changes, happened = [], []
        for task in due:
            reason, check_at = _state(task, now, usual)
            is_changed = (reason is None) != (task.hanging_since is None)
            hanging_since = (reason and now) if is_changed else task.hanging_since
            change = {"of_task_id": task.id, "since": hanging_since, "reason": reason}
            changes.append({**change, "check_at": check_at, "changes": int(is_changed)})
            if is_changed:
                hangs = NewEvent.of_task(task, now, TASK_HANGS, hangingSince=now, reason=reason)
                happened.append(hangs if reason else events.recovery(task, now))
        if changes:
            connection.execute(_CHANGE, changes)
        events.record_events(connection, happened)
    return len(due) == BATCH


def _state(
    task: AnyRow, now: str, usual_seconds: Callable[[str, str], float | None]
) -> tuple[str | None, str | None]:
    """The reason why a task hangs, or None if it does not, and its next `hang_check_at`."""
    times = [clock.moved(now, MAX_WAIT_SECONDS)]
    if task.questions != NO_QUESTIONS:
        return None, times[0]
    ran = clock.seconds_between(task.claimed_at, now)
    runs = f"runs for {seconds_text(ran)}"
    expect = strict_json.loads((task.expect or "{}").encode())
    longest = expect.get("maxDuration")
    if longest is not None:
        if ran >= longest:
            return f"{runs}, longer than its maximum of {_length(longest)}", None
        return None, min(*times, clock.moved(task.claimed_at, longest))
    if task.late_at is not None and task.late_at > task.claimed_at:
        if task.late_at <= now:
            due_at = datetime.fromisoformat(task.due_at)
            return f"the next run was due at {due_at:%H:%M} UTC, and this run has not ended", None
        times.append(task.late_at)
    silent_at = clock.moved(task.updated_at, SILENT_SECONDS)
    if silent_at > now:
        return None, min(*times, silent_at)
    usual = usual_seconds(task.user_id, task.agent_id)
    if usual is None:
        return None, min(times)
    if ran >= TIMES_AS_LONG * usual:
        silence = seconds_text(clock.seconds_between(task.updated_at, now))
        factor = int(ran / max(usual, 0.1))
        reason = f"{runs}, {factor:,} times as long as usual; no line for {silence}"
        return reason, task.hanging_since or now
    return None, min(*times, clock.moved(task.claimed_at, TIMES_AS_LONG * usual))


def _length(seconds: int) -> str:
    return seconds_text(seconds).removesuffix(" 0 s")


def correct_future_times(ahead: str, now: str) -> None:
    """In claimed and hanging tasks, replace times after `ahead` with `now`."""
    latest = clock.moved(ahead, MAX_WAIT_SECONDS)
    times = (Task.claimed_at, Task.updated_at, Task.hanging_since, Task.hang_check_at)
    values = {time: case((time > ahead, literal(now, Timestamp())), else_=time) for time in times}
    corrected = update(Task).values(values | {Task.version: Task.version + 1})
    with transaction() as connection:
        connection.execute(corrected.where(IS_CLAIMED, Task.hang_check_at > latest))
        connection.execute(corrected.where(IS_HANGING, Task.hanging_since > ahead))
