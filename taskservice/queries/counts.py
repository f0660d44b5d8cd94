"""Counts of tasks by status, for the tabs and the chart of a list; they stop at a limit."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import bindparam, func, select

from taskservice.auth.caller import Caller
from taskservice.database import timestamps
from taskservice.database.models import Task
from taskservice.database.rows import AnyRow
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Timestamp
from taskservice.queries import selections
from taskservice.queries.lists import OrderedTasks, conditions_of
from taskservice.queries.selections import NEWEST_FIRST, Filters, Selection, of_user

T = TypeVar("T")
# How many of the newest tasks are searched for those that fit: for the tabs, which are counted for
# each page, and for the chart, which is cached.
LOOK = 5_000
CHART_LOOK = 10_000
# The filters that the index by status has too.
CREATION = frozenset({"created_after", "created_before"})
MILLISECOND = 0.001


class Counted(NamedTuple, Generic[T]):
    """Counts; unless they are complete, the search stopped early, and there may be more."""

    counts: T
    are_complete: bool = True


def by_status(
    caller: Caller, selection: Selection, statuses: tuple[str, ...], maximum: int
) -> Counted[dict[str, int]]:
    """Status -> how many tasks of the selection have it; its own status is ignored.

    Where that is quick, they are counted up to `maximum` only.
    """
    selection = replace(selection, status=None, sort=NEWEST_FIRST)
    values = selections.values(caller, selection)
    with reading() as connection:
        filters = frozenset(values) - {"user_id"}
        if filters <= CREATION:
            statement = _up_to_maximum(statuses, filters)
            row: Any = statement.all(connection, **values, maximum=maximum)[0]
            return Counted(dict(zip(statuses, row, strict=True)))
        tasks = OrderedTasks(connection, caller, selection)
        few = tasks.few()
        end = None if few else tasks.position(None, LOOK)
        row = tasks.run(partial(_counted, statuses), None, end, few)[0]
        return Counted(dict(zip(statuses, row, strict=True)), end is None)


@lru_cache
def _up_to_maximum(statuses: tuple[str, ...], filters: Filters) -> Statement[AnyRow]:
    of_status = [[*selections.conditions(filters), Task.status == status] for status in statuses]
    limited = [select(Task.id).where(*fits).limit(bindparam("maximum")) for fits in of_status]
    counts = [select(func.count()).select_from(each.subquery()) for each in limited]
    return Statement(select(*(each.scalar_subquery() for each in counts)))


@lru_cache(maxsize=256)
def _counted(
    statuses: tuple[str, ...], filters: Filters, bounds: Filters, sort: str, few: str | None
) -> Statement[AnyRow]:
    # With GROUP BY, SQLite would read all tasks of the user in the order of their status.
    counts = [func.count().filter(Task.status == status) for status in statuses]
    return Statement(select(*counts).where(*conditions_of(filters, bounds, sort, few)))


def by_start(
    caller: Caller, selection: Selection, moments: Sequence[str], statuses: tuple[str, ...]
) -> Counted[list[list[int]]]:
    """For each of `statuses`: how many tasks were started between each two moments in a row."""
    with reading() as connection:
        wanted = replace(selection, created_after=None, created_before=None, sort=NEWEST_FIRST)
        values = selections.values(caller, wanted)
        if values.keys() <= {"user_id", "status"}:
            bounds = {f"moment{number}": moment for number, moment in enumerate(moments)}
            row: Any = _between(statuses, len(moments)).all(connection, **values, **bounds)[0]
            intervals = len(moments) - 1
            parts = range(0, len(row), intervals)
            return Counted([list(row[start : start + intervals]) for start in parts])
        # The bounds of a selection are exclusive.
        since = timestamps.moved(moments[0], -MILLISECOND)
        wanted = replace(wanted, created_after=since, created_before=moments[-1])
        tasks = OrderedTasks(connection, caller, wanted)
        few = tasks.few()
        end = None if few else tasks.position(None, CHART_LOOK)
        counts = {status: [0] * (len(moments) - 1) for status in statuses}
        for row in tasks.run(_starts, None, end, few):
            counts[row.status][bisect_right(moments, row.created_at) - 1] += 1
        return Counted(list(counts.values()), end is None)


@lru_cache
def _between(statuses: tuple[str, ...], moments: int) -> Statement[AnyRow]:
    bounds = [bindparam(f"moment{number}", type_=Timestamp()) for number in range(moments)]
    # Each count reads a part of one index.
    counts = [
        select(func.count())
        .where(of_user, Task.status == status)
        .where(Task.created_at >= since, Task.created_at < until)
        .scalar_subquery()
        for status in statuses
        for since, until in pairwise(bounds)
    ]
    return Statement(select(*counts))


@lru_cache(maxsize=256)
def _starts(filters: Filters, bounds: Filters, sort: str, few: str | None) -> Statement[AnyRow]:
    found = select(Task.created_at, Task.status)
    return Statement(found.where(*conditions_of(filters, bounds, sort, few)))
