"""Expected runs: when the next task of an agent is due, and whether the agent is late."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any

from sqlalchemy import Connection, bindparam, exists, literal_column, select, update

from taskservice.auth import is_of_agent
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import current_time, read_all, transaction
from taskservice.database.types import AnyRow
from taskservice.errors import invalid
from taskservice.event_kinds import AGENT_BACK, AGENT_LATE
from taskservice.schemas import strict_json
from taskservice.services import events
from taskservice.services.events import NewEvent, this_agent
from taskservice.terms import RUNNING

BATCH = 50  # the maximum number of agents in one transaction

# Lock the row, so that only one of several tasks that start at the same time records that the agent
# is no longer late.
_EXPECTED = Statement[AnyRow](
    select(Agent.expect, Agent.due_at, Agent.late_at, Agent.late_since)
    .where(*this_agent, Agent.expect.is_not(None))
    .with_for_update(key_share=True)
)
_SET = update(Agent).where(*this_agent)
_NEXT = select(Agent.user_id, Agent.id, Agent.expect, Agent.due_at).where(
    Agent.due_at > bindparam("now"), Agent.late_since.is_(None)
)
_is_running = Task.status == literal_column(f"'{RUNNING}'")
# Skip an agent whose row is locked, since it is being changed; the next round checks it.
_LATE = (
    select(Agent.user_id, Agent.id, Agent.due_at)
    .where(
        Agent.late_at <= bindparam("now"),
        Agent.late_since.is_(None),
        ~exists().where(is_of_agent, _is_running, Task.claimed_at.is_not(None)),
    )
    .limit(BATCH)
    .with_for_update(key_share=True, skip_locked=True)
)


def columns(expect: Mapping[str, Any] | None, since: str) -> dict[str, str | None]:
    """The columns of an agent that is not late and expects a run after `since`. Raises 422."""
    due_at = late_at = None
    if expect is not None and expect.keys() & {"every", "cron"}:
        due_at = due_times(expect, since, 1)[0]
        late_at = clock.moved(due_at, expect["grace"])
    return {"due_at": due_at, "late_at": late_at, "late_since": None}


def due_times(expect: Mapping[str, Any], since: str, count: int) -> list[str]:
    """The times of the next `count` runs after `since`. Raises 422 if there are none."""
    if "every" in expect:
        return [clock.moved(since, expect["every"] * number) for number in range(1, count + 1)]
    # Imported here, since few agents need these modules.
    from zoneinfo import ZoneInfo

    from cronsim import CronSim, CronSimError

    if expect["timeZone"] not in _time_zones():
        problem = "Unknown time zone; use a name such as Europe/Berlin."
        raise invalid({"expect": {"timeZone": [problem]}})
    start = datetime.fromisoformat(since)
    try:
        # CronSim accepts a sixth field for seconds.
        if len(expect["cron"].split()) != 5:
            raise CronSimError("Wrong number of fields")
        ticks = CronSim(expect["cron"], start.astimezone(ZoneInfo(expect["timeZone"])))
    except CronSimError as error:
        reason = f"Not a cron expression of five fields: {error}."
        raise invalid({"expect": {"cron": [reason]}}) from None
    # When clocks are set back in autumn, one hour occurs twice. If `since` is in the second of
    # these hours, CronSim starts with times in the first.
    later = (tick for tick in ticks if tick.astimezone(UTC) > start)
    times = [clock.rfc3339(tick) for tick in islice(later, count)]
    if not times:
        raise invalid({"expect": {"cron": ["No date matches."]}})
    return times


@cache
def _time_zones() -> frozenset[str]:
    """The names of all time zones, from the package tzdata, which is the same on all machines."""
    return frozenset(resources.files("tzdata").joinpath("zones").read_text().split())


def run_started(connection: Connection, task: TaskRow) -> None:
    """Count the start of a task as the expected run of its agent, which is then no longer late."""
    ids = {"of_user_id": task.user_id, "of_agent_id": task.agent_id}
    agent = _EXPECTED.one_or_none(connection, **ids)
    if agent is None:
        return
    expect = strict_json.loads(agent.expect.encode())
    connection.execute(_SET, ids | columns(expect, task.created_at))
    if agent.late_since is not None:
        on_time = task.claimed_at is not None and task.claimed_at < agent.late_at
        details = {"dueAt": agent.due_at, "onTime": on_time}
        back = NewEvent.of_task(task, task.created_at, AGENT_BACK, **details)
        events.record_events(connection, [back])


def correct_future_times(now: str) -> None:
    """Schedule the next expected run from `now` if it was computed from a time in the future.

    This happens if the clock was set back.
    """
    for agent in read_all(_NEXT, now=now):
        from_now = columns(strict_json.loads(agent.expect.encode()), now)
        # If `due_at` is later than this, it was computed from a time in the future.
        if agent.due_at > str(from_now["due_at"]):
            ids = {"of_user_id": agent.user_id, "of_agent_id": agent.id}
            with transaction() as connection:
                connection.execute(_SET.where(Agent.due_at == agent.due_at), ids | from_now)


def find_late(now: str) -> bool:
    """Record a batch of overdue, idle agents as late; returns whether more may remain."""
    with transaction() as connection:
        late_agents = sorted(connection.execute(_LATE, {"now": now}).all())
        late = []
        # The time is read while the agents are locked, since a mute applies only to later events.
        at = current_time(connection)
        for user_id, agent_id, due_at in late_agents:
            ids = {"of_user_id": user_id, "of_agent_id": agent_id}
            connection.execute(_SET, ids | {"late_since": at})
            late.append(NewEvent(AGENT_LATE, at, user_id, agent_id, details={"dueAt": due_at}))
        events.record_events(connection, late)
    return len(late_agents) == BATCH
