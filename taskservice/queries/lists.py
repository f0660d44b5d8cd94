"""Reads of many tasks: which, in what order, place by place."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import eq, gt, lt
from typing import Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import FAILED, PENDING, RUNNING, SORTS
from taskservice.database import timestamps
from taskservice.database.models import Delivery, Identifier, Task
from taskservice.database.rows import (
    LARGE_COLUMNS,
    TASK_COLUMNS,
    AnyRow,
    AnySelect,
    TaskRow,
    next_limit,
)
from taskservice.database.transactions import has_writer_queue, reading, writer_turn
from taskservice.database.types import Timestamp
from taskservice.queries.tasks import with_log

# How many places of a list are looked up at once.
PLACES = 1_000
# Deliveries that a list can be narrowed to, spelled out as the indexes of these rows have it.
_few = {
    PENDING: text("deliveries.state = 'pending'"),
    FAILED: text("deliveries.state IN ('failed', 'cancelled') AND deliveries.state = 'failed'"),
}
NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS
# For how many seconds the oldest transaction that has begun to write has been under way.
_OLDEST_WRITE = text(
    "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float "
    "FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL"
)
_SUMMARIES = select(
    Task.id,
    Task.name,
    Task.agent_id,
    Task.status,
    Task.error_type,
    Task.created_at,
    Task.claimed_at,
    Task.finished_at,
    Task.log_count,
).where(Task.id.in_(bindparam("task_ids", expanding=True)), visible_tasks)


@dataclass(frozen=True)
class Selection:
    """Which tasks a list has, and in which order; all bounds are exclusive."""

    status: str | None = None
    agent_id: str | None = None
    name_part: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    finished_after: str | None = None
    # The state of a delivery of theirs.
    delivery: str | None = None
    sort: str = NEWEST_FIRST


@dataclass(frozen=True)
class Place:
    """The place of one task in a list: what a cursor stands for.

    By end, tasks that ended after the list was begun (`since`) count as running, so that
    none changes its place while somebody reads on; and one that was ended for silence
    before keeps that place when its late word comes. `stage` is 1 among those, else 0.
    """

    since: str
    stage: int
    moment: str
    id: str


def places(caller: Caller, selection: Selection, after: Place | None, count: int) -> list[Place]:
    """The next `count` places of the list, or fewer at its end."""
    start = after or _beginning(selection)
    found: list[Place] = []
    for stage in range(start.stage, 2 if selection.sort == BY_END else 1):
        after = start if start.id and stage == start.stage else None
        statement = _keys(caller, selection, stage, start.since, after, count - len(found))
        with reading() as connection:
            rows = connection.execute(statement).all()
        found += [Place(start.since, stage, row[0], row[1]) for row in rows]
        if len(found) == count:
            break
    return found


def tasks_at(
    caller: Caller,
    selection: Selection,
    wanted: Sequence[Place],
    large: Sequence[str] = tuple(LARGE_COLUMNS),
) -> Iterator[list[TaskRow]]:
    """The tasks at these places, in their order, in pages of bounded size.

    Of the columns that may be large their rows have those in `large` only.
    Each page is a read of its own, so that no reader, however slow, holds a transaction.
    A task that was deleted meanwhile, or that the selection no longer has, is left out.
    """
    limit = 4 if large else 32
    left_out = [column for name, column in LARGE_COLUMNS.items() if name not in large]
    columns = [column for column in TASK_COLUMNS if column not in left_out]
    fits = _checked(_conditions(caller, selection))
    while wanted:
        now, wanted = wanted[:limit], wanted[limit:]
        ids = [place.id for place in now]
        with reading() as connection:
            found = connection.execute(with_log(columns).where(Task.id.in_(ids), fits))
            rows = {row.id: row for row in found}
        page = [rows[task_id] for task_id in ids if task_id in rows]
        yield page
        limit = next_limit(len(ids), sum(_task_size(row, large) for row in page), 256)


def all_tasks(
    caller: Caller, selection: Selection, large: Sequence[str] = tuple(LARGE_COLUMNS)
) -> Iterator[list[TaskRow]]:
    """The whole list, as `tasks_at` has it."""
    after: Place | None = None
    while wanted := places(caller, selection, after, PLACES):
        yield from tasks_at(caller, selection, wanted, large)
        after = wanted[-1]


def _beginning(selection: Selection) -> Place:
    if selection.sort != BY_END:
        return Place(timestamps.now(), stage=0, moment="", id="")
    # What runs has no place by its end; to look for it there would read all that ended.
    stage = 1 if selection.status == RUNNING else 0
    return Place(_settled(), stage, moment="", id="")


def _settled() -> str:
    """A moment close to now; whatever a transaction stamps as earlier can be read already.

    Raises OperationalError when SQLite's writers do not let it come to its turn.
    """
    asked = time.monotonic()
    if has_writer_queue():
        # Once it is our turn all that came before is written.
        with writer_turn():
            age = 0.0
    else:
        with reading() as connection:
            age = connection.scalar(_OLDEST_WRITE) or 0.0
    return timestamps.now(asked - time.monotonic() - age)


def _conditions(caller: Caller, selection: Selection) -> list[ColumnElement[bool]]:
    bounds: list[tuple[Any, Any, str | None]] = [
        (Task.agent_id, eq, caller.agent_id),
        (Task.agent_id, eq, selection.agent_id),
        (Task.status, eq, selection.status),
        (Task.created_at, gt, selection.created_after),
        (Task.created_at, lt, selection.created_before),
        (Task.finished_at, gt, selection.finished_after),
    ]
    conditions: list[ColumnElement[bool]] = [Task.user_id == caller.user_id]
    conditions += [compare(column, value) for column, compare, value in bounds if value]
    if selection.name_part is not None:
        part = selection.name_part.casefold()
        conditions.append(Task.name_folded.contains(part, autoescape=True))
    if selection.delivery is not None:
        few = select(Delivery.task_id).where(_few[selection.delivery])
        conditions.append(Task.id.in_(few))
    return conditions


def _checked(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form by which SQLite looks for nothing.

    Without figures about the data it takes any index over a better one of fewer columns.
    """
    return and_(*conditions).is_(true())


def _keys(
    caller: Caller, selection: Selection, stage: int, since: str, after: Place | None, count: int
) -> AnySelect:
    """The select of the moments and ids of this stage's next places."""
    conditions = _conditions(caller, selection)
    if selection.sort != BY_END:
        return _next_keys(Task.created_at, conditions, after, count, selection.sort == NEWEST_FIRST)
    beginning = selection.finished_after if after is None else None
    return _keys_by_end(caller, conditions, stage, since, after, beginning, count)


def _keys_by_end(
    caller: Caller,
    conditions: list[ColumnElement[bool]],
    stage: int,
    since: str,
    after: Place | None,
    beginning: str | None,
    count: int,
) -> AnySelect:
    own, ended_since = Task.user_id == caller.user_id, Task.finished_at >= since
    # What ended since has its place by another moment than its end: it comes from a select
    # of its own, by the index of ends, and there are few.
    if stage == 0:
        ended = [own, Task.finished_at < since, _checked(conditions)]
        if beginning is not None:
            ended.append(Task.finished_at > beginning)
        others = [*conditions, Task.timed_out_at < since]
        moment: Any = Task.timed_out_at
        most = _next_keys(Task.finished_at, ended, after, count)
    else:
        running = [own, Task.status == RUNNING, _checked(conditions)]
        others = [*conditions, or_(Task.timed_out_at.is_(None), Task.timed_out_at >= since)]
        moment = Task.created_at
        most = _next_keys(moment, running, after, count)
    if after is not None:
        others.append(_beyond(moment, after))
    few = select(moment, Task.id).where(own, ended_since, _checked(others))
    both = union_all(select(most.subquery()), few).subquery()
    return select(both).order_by(*both.c).limit(count)


def _next_keys(
    column: Any,
    conditions: Sequence[ColumnElement[bool]],
    after: Place | None,
    count: int,
    newest_first: bool = False,
) -> AnySelect:
    statement: AnySelect = select(column, Task.id).where(*conditions).limit(count)
    if after is not None:
        statement = statement.where(_beyond(column, after, newest_first))
    if newest_first:
        return statement.order_by(column.desc(), Task.id.desc())
    return statement.order_by(column, Task.id)


def _beyond(column: Any, place: Place, newest_first: bool = False) -> ColumnElement[bool]:
    key = tuple_(column, Task.id)
    here = tuple_(literal(place.moment, Timestamp()), literal(place.id, Identifier))
    beyond: ColumnElement[bool] = key < here if newest_first else key > here
    return beyond


def summaries(caller: Caller, wanted: Sequence[Place]) -> list[AnyRow]:
    """What a list shows of the tasks at these places, in their order: nothing that is large."""
    ids = [place.id for place in wanted]
    with reading() as connection:
        found = connection.execute(_SUMMARIES, {"task_ids": ids, **caller.scope})
        rows = {row.id: row for row in found}
    return [rows[task_id] for task_id in ids if task_id in rows]


def counts(
    caller: Caller, selection: Selection, statuses: Sequence[str], most: int
) -> dict[str, int]:
    """How many tasks stand so, for each of `statuses`; `most` where there are more."""
    counted = {
        status: select(func.count()).select_from(
            select(Task.id)
            .where(*_conditions(caller, replace(selection, status=status)))
            .limit(most)
            .subquery()
        )
        for status in statuses
    }
    with reading() as connection:
        row = connection.execute(select(*(one.scalar_subquery() for one in counted.values())))
        return dict(zip(statuses, row.one(), strict=True))


def starts(
    caller: Caller, selection: Selection, moments: Sequence[str], statuses: Sequence[str]
) -> list[list[int]]:
    """For each of `statuses`: how many tasks were started from each of `moments` to the next."""
    fit = _conditions(caller, selection)
    # Each count is of a part of one index.
    counts = [
        select(func.count())
        .where(*fit, Task.status == status)
        .where(Task.created_at >= since, Task.created_at < until)
        .scalar_subquery()
        for status in statuses
        for since, until in pairwise(moments)
    ]
    with reading() as connection:
        row = connection.execute(select(*counts)).one()
    places = len(moments) - 1
    return [list(row[start : start + places]) for start in range(0, len(row), places)]


def _task_size(row: TaskRow, large: Sequence[str]) -> int:
    return sum(len(getattr(row, name)) for name in large) + 500
