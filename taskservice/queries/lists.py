"""Reads of many tasks: which, in what order, and page by page."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    func,
    select,
    text,
    true,
    tuple_,
)

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import FAILED, PENDING, RUNNING, SORTS
from taskservice.database.models import Delivery, Task
from taskservice.database.rows import AnyRow, TaskRow, next_limit
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Identifier, Several, Timestamp, is_among
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
# The number of different statements that are kept of each kind.
STATEMENTS = 256
# The signs that mean something in a pattern of LIKE.
_LIKE_SIGNS = re.compile("[%_/]")
_OF_USER: ColumnElement[bool] = Task.user_id == bindparam("user_id", type_=Identifier)
# Filter, under the name of its parameter -> its condition; the bounds are exclusive.
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "own_agent_id": Task.agent_id == bindparam("own_agent_id"),
    "agent_id": Task.agent_id == bindparam("agent_id"),
    "status": Task.status == bindparam("status"),
    "created_after": Task.created_at > bindparam("created_after", type_=Timestamp()),
    "created_before": Task.created_at < bindparam("created_before", type_=Timestamp()),
    "finished_after": Task.finished_at > bindparam("finished_after", type_=Timestamp()),
    "name_part": Task.name_folded.contains(bindparam("name_part"), escape="/"),
}
# The names of the filters that are given: with them a statement is compiled once.
Filters: TypeAlias = frozenset[str]


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
    if selection.sort == BY_END and selection.status == RUNNING:
        # A search for the next one would read all finished tasks.
        return []
    filters = _filters(caller, selection)
    if after is not None:
        filters |= {"after_moment": after.moment, "after_id": after.id}
    elif selection.sort == BY_END:
        filters["finished_after"] = selection.finished_after or EARLIEST
    statement = _positions(frozenset(filters), selection.delivery, selection.sort)
    with reading() as connection:
        found = statement.all(connection, **filters, user_id=caller.user_id, count=count)
    return [Position(*row) for row in found]


@lru_cache(maxsize=STATEMENTS)
def _positions(filters: Filters, delivery: str | None, sort: str) -> Statement[AnyRow]:
    conditions = _conditions(filters, delivery)
    column: Any = Task.created_at
    if sort == BY_END:
        column = Task.finished_at
        conditions = [_OF_USER, _unindexed(conditions)]
        if "after_id" not in filters:
            conditions.append(column > bindparam("finished_after", type_=Timestamp()))
    if "after_id" in filters:
        key = tuple_(column, Task.id)
        last = tuple_(
            bindparam("after_moment", type_=Timestamp()), bindparam("after_id", type_=Identifier)
        )
        conditions.append(key < last if sort == NEWEST_FIRST else key > last)
    order = (column.desc(), Task.id.desc()) if sort == NEWEST_FIRST else (column, Task.id)
    found = select(column, Task.id).where(*conditions).order_by(*order)
    return Statement(found.limit(bindparam("count")))


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
    filters = _filters(caller, selection)
    statement = _tasks(frozenset(filters), selection.delivery, tuple(large))
    while wanted:
        now, wanted = wanted[:limit], wanted[limit:]
        ids = [position.id for position in now]
        with reading() as connection:
            found = statement.all(connection, **filters, user_id=caller.user_id, task_ids=ids)
        rows = {row.id: row for row in found}
        page = [rows[task_id] for task_id in ids if task_id in rows]
        yield page
        limit = next_limit(len(ids), sum(_task_size(row, large) for row in page), 256)


@lru_cache(maxsize=STATEMENTS)
def _tasks(filters: Filters, delivery: str | None, large: tuple[str, ...]) -> Statement[TaskRow]:
    left_out = [column for name, column in LARGE_COLUMNS.items() if name not in large]
    columns = [column for column in TASK_COLUMNS if column not in left_out]
    is_wanted = is_among(Task.id, bindparam("task_ids", type_=Several(Identifier)))
    fits = _unindexed(_conditions(filters, delivery))
    return Statement(with_log(columns).where(is_wanted, fits))


def all_tasks(
    caller: Caller, selection: Selection, large: Sequence[str] = tuple(LARGE_COLUMNS)
) -> Iterator[list[TaskRow]]:
    """The whole list, in pages as `tasks_at` yields them."""
    after: Position | None = None
    while wanted := positions(caller, selection, after, POSITIONS_PER_READ):
        yield from tasks_at(caller, selection, wanted, large)
        after = wanted[-1]


def _filters(caller: Caller, selection: Selection) -> dict[str, Any]:
    """The values of the filters that are given, under the names of their parameters."""
    values = {
        "own_agent_id": caller.agent_id,
        "agent_id": selection.agent_id,
        "status": selection.status,
        "created_after": selection.created_after,
        "created_before": selection.created_before,
        "finished_after": selection.finished_after,
        "name_part": _escaped(selection.name_part),
    }
    return {name: value for name, value in values.items() if value is not None}


def _escaped(part: str | None) -> str | None:
    return None if part is None else _LIKE_SIGNS.sub(r"/\g<0>", part.casefold())


def _conditions(filters: Filters, delivery: str | None) -> list[ColumnElement[bool]]:
    conditions = [_OF_USER, *(_CONDITIONS[name] for name in _CONDITIONS if name in filters)]
    if delivery is not None:
        fitting = select(Delivery.task_id).where(_DELIVERY_STATES[delivery])
        conditions.append(Task.id.in_(fitting))
    return conditions


def _unindexed(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form for which SQLite uses no index.

    Without statistics SQLite would prefer their index to the one in the list's order.
    """
    return and_(*conditions).is_(true())


_SUMMARIES = Statement[AnyRow](
    select(
        Task.id,
        Task.name,
        Task.agent_id,
        Task.status,
        Task.error_type,
        Task.created_at,
        Task.claimed_at,
        Task.finished_at,
        Task.log_count,
    ).where(
        is_among(Task.id, bindparam("task_ids", type_=Several(Identifier))),
        _unindexed([visible_tasks]),
    )
)


def summaries(caller: Caller, wanted: Sequence[Position]) -> list[AnyRow]:
    """The tasks at these positions, in their order, with the columns that a table shows."""
    ids = [position.id for position in wanted]
    if not ids:
        return []
    with reading() as connection:
        rows = {row.id: row for row in _SUMMARIES.all(connection, task_ids=ids, **caller.scope)}
    return [rows[task_id] for task_id in ids if task_id in rows]


def counts(
    caller: Caller, selection: Selection, statuses: Sequence[str], maximum: int
) -> dict[str, int]:
    """Status -> how many tasks of the selection have it, counted up to `maximum`."""
    filters = _filters(caller, replace(selection, status=None))
    fits = _conditions(frozenset(filters), selection.delivery)
    counted = {
        status: select(func.count()).select_from(
            select(Task.id).where(*fits, Task.status == status).limit(maximum).subquery()
        )
        for status in statuses
    }
    statement = select(*(one.scalar_subquery() for one in counted.values()))
    with reading() as connection:
        row = connection.execute(statement, filters | {"user_id": caller.user_id})
        return dict(zip(statuses, row.one(), strict=True))


def starts(
    caller: Caller, selection: Selection, moments: Sequence[str], statuses: Sequence[str]
) -> list[list[int]]:
    """For each of `statuses`: how many tasks were started between each two moments in a row."""
    filters = _filters(caller, selection)
    fits = _conditions(frozenset(filters), selection.delivery)
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
        row = connection.execute(select(*counts), filters | {"user_id": caller.user_id}).one()
    intervals = len(moments) - 1
    return [list(row[start : start + intervals]) for start in range(0, len(row), intervals)]


def _task_size(row: TaskRow, large: Sequence[str]) -> int:
    return sum(len(getattr(row, name)) for name in large) + 500
