"""Reads of many tasks: which, in what order, and page by page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import eq, gt, lt
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    func,
    literal,
    select,
    text,
    true,
    tuple_,
)

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import FAILED, PENDING, RUNNING, SORTS
from taskservice.database.models import Delivery, Identifier, Task
from taskservice.database.rows import AnyRow, TaskRow, next_limit
from taskservice.database.transactions import reading
from taskservice.database.types import Timestamp
from taskservice.queries.tasks import with_log
from taskservice.schemas.columns import LARGE_COLUMNS, TASK_COLUMNS

# How many positions of a whole list one read finds.
POSITIONS_PER_READ = 1_000
# Written as in the indexes of these rows, so that they are used.
_DELIVERY_STATES = {
    PENDING: text("deliveries.state = 'pending'"),
    FAILED: text("deliveries.state IN ('failed', 'cancelled') AND deliveries.state = 'failed'"),
}
NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS
EARLIEST = "0001-01-01T00:00:00.000Z"
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
    """Which tasks a list has, and in which order; the bounds are exclusive."""

    status: str | None = None
    agent_id: str | None = None
    name_part: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    finished_after: str | None = None
    # Only tasks with a delivery in this state.
    delivery: str | None = None
    sort: str = NEWEST_FIRST


class Position(NamedTuple):
    """The position of one task in a list; a cursor is the position of a page's last task."""

    # Its `created_at` or, by end, its `finished_at`.
    moment: str
    id: str


def positions(
    caller: Caller, selection: Selection, after: Position | None, count: int
) -> list[Position]:
    """The next `count` positions of the list, or fewer at its end."""
    conditions = _conditions(caller, selection)
    column: Any = Task.created_at
    if selection.sort == BY_END:
        if selection.status == RUNNING:
            # A search for the next one would read all finished tasks.
            return []
        column = Task.finished_at
        conditions = [Task.user_id == caller.user_id, _unindexed(conditions)]
        if after is None:
            conditions.append(column > (selection.finished_after or EARLIEST))
    newest_first = selection.sort == NEWEST_FIRST
    if after is not None:
        key = tuple_(column, Task.id)
        last = tuple_(literal(after.moment, Timestamp()), literal(after.id, Identifier))
        conditions.append(key < last if newest_first else key > last)
    order = (column.desc(), Task.id.desc()) if newest_first else (column, Task.id)
    statement = select(column, Task.id).where(*conditions).order_by(*order).limit(count)
    with reading() as connection:
        return [Position(*row) for row in connection.execute(statement)]


def tasks_at(
    caller: Caller,
    selection: Selection,
    wanted: Sequence[Position],
    large: Sequence[str] = tuple(LARGE_COLUMNS),
) -> Iterator[list[TaskRow]]:
    """The tasks at these positions, in their order, in pages of bounded size.

    Of the columns that may be large, their rows have only those in `large`.
    Each page is a read of its own, so that a slow reader holds no transaction.
    A task that was deleted meanwhile, or that the selection no longer has, is left out.
    """
    limit = 4 if large else 32
    left_out = [column for name, column in LARGE_COLUMNS.items() if name not in large]
    columns = [column for column in TASK_COLUMNS if column not in left_out]
    fits = _unindexed(_conditions(caller, selection))
    while wanted:
        now, wanted = wanted[:limit], wanted[limit:]
        ids = [position.id for position in now]
        with reading() as connection:
            found = connection.execute(with_log(columns).where(Task.id.in_(ids), fits))
            rows = {row.id: cast(TaskRow, row) for row in found}
        page = [rows[task_id] for task_id in ids if task_id in rows]
        yield page
        limit = next_limit(len(ids), sum(_task_size(row, large) for row in page), 256)


def all_tasks(
    caller: Caller, selection: Selection, large: Sequence[str] = tuple(LARGE_COLUMNS)
) -> Iterator[list[TaskRow]]:
    """The whole list, in pages as `tasks_at` yields them."""
    after: Position | None = None
    while wanted := positions(caller, selection, after, POSITIONS_PER_READ):
        yield from tasks_at(caller, selection, wanted, large)
        after = wanted[-1]


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
    conditions += [compare(column, value) for column, compare, value in bounds if value is not None]
    if selection.name_part is not None:
        part = selection.name_part.casefold()
        conditions.append(Task.name_folded.contains(part, autoescape=True))
    if selection.delivery is not None:
        fitting = select(Delivery.task_id).where(_DELIVERY_STATES[selection.delivery])
        conditions.append(Task.id.in_(fitting))
    return conditions


def _unindexed(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form for which SQLite uses no index.

    Without statistics SQLite would prefer their index to the one in the list's order.
    """
    return and_(*conditions).is_(true())


def summaries(caller: Caller, wanted: Sequence[Position]) -> list[AnyRow]:
    """The tasks at these positions, in their order, with the columns that a table shows."""
    ids = [position.id for position in wanted]
    with reading() as connection:
        found = connection.execute(_SUMMARIES, {"task_ids": ids, **caller.scope})
        rows = {row.id: row for row in found}
    return [rows[task_id] for task_id in ids if task_id in rows]


def counts(
    caller: Caller, selection: Selection, statuses: Sequence[str], maximum: int
) -> dict[str, int]:
    """Status -> how many tasks of the selection have it, counted up to `maximum`."""
    counted = {
        status: select(func.count()).select_from(
            select(Task.id)
            .where(*_conditions(caller, replace(selection, status=status)))
            .limit(maximum)
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
    """For each of `statuses`: how many tasks were started between each two moments in a row."""
    fits = _conditions(caller, selection)
    # Each count reads a part of one index.
    counts = [
        select(func.count())
        .where(*fits, Task.status == status)
        .where(Task.created_at >= since, Task.created_at < until)
        .scalar_subquery()
        for status in statuses
        for since, until in pairwise(moments)
    ]
    with reading() as connection:
        row = connection.execute(select(*counts)).one()
    intervals = len(moments) - 1
    return [list(row[start : start + intervals]) for start in range(0, len(row), intervals)]


def _task_size(row: TaskRow, large: Sequence[str]) -> int:
    return sum(len(getattr(row, name)) for name in large) + 500
