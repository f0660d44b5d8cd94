"""Counts of tasks by status, for the tabs and the chart of a list; they stop at a limit."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, and_, bindparam, func, select

from taskservice.auth import Caller, tasks_of_user
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Task
from taskservice.database.transactions import reading
from taskservice.database.types import AnyRow, Timestamp
from taskservice.services import lists
from taskservice.terms import ERROR_TYPES, RUNNING, STATUSES

T = TypeVar("T")
# How many of the newest tasks are checked against the filters: for the tabs, which are counted for
# each page, and for the chart, which is cached.
MAX_SEARCHED = 5_000
MAX_SEARCHED_FOR_CHART = 10_000
# The filters that the index by status also covers.
CREATION = frozenset({"created_after", "created_before"})
MILLISECOND = 0.001
CLAIMED = "claimed"
# A status, an error's type, or whether an agent has claimed a running task -> its condition.
STATES: dict[str, ColumnElement[bool]] = {
    **{status: Task.status == status for status in STATUSES},
    lists.WAITING: lists.IS_WAITING,
    CLAIMED: and_(Task.status == RUNNING, Task.claimed_at.is_not(None)),
    **{error_type: Task.error_type == error_type for error_type in ERROR_TYPES},
}


class Counts(NamedTuple, Generic[T]):
    """Counts; unless they are complete, the search stopped early and there may be more tasks."""

    counts: T
    are_complete: bool = True


def by_state(caller: Caller, selection: lists.Selection, maximum: int) -> Counts[dict[str, int]]:
    """State -> the number of tasks in it; the selection's own filter by state is ignored.

    If an index covers the filters, a count stops at `maximum`; claimed tasks are counted among
    `maximum` running ones. Other filters are applied to the newest MAX_SEARCHED tasks, or to a set
    of candidates.
    """
    selection = selection._replace(
        status=None, error_type=None, is_claimed=None, sort=lists.NEWEST_FIRST
    )
    values = lists.parameters(caller, selection)
    with reading() as connection:
        filters = frozenset(values) - {"user_id"}
        if filters <= CREATION:
            statement = _limited_counts_statement(filters)
            row: Any = statement.all(connection, **values, maximum=maximum)[0]
            return Counts(dict(zip(STATES, row, strict=True)))
        ordered = lists.OrderedTasks(connection, caller, selection)
        [row], end = ordered.newest(_count_statement, MAX_SEARCHED)
        return Counts(dict(zip(STATES, row, strict=True)), end is None)


@lru_cache
def _limited_counts_statement(filters: lists.Filters) -> Statement[AnyRow]:
    counts = []
    for state, is_in_state in STATES.items():
        # The index of waiting tasks is not ordered by creation over all agents.
        by_index = frozenset() if state == lists.WAITING else filters
        # No index contains claimed tasks only: they are counted among the running ones.
        counted, is_found = (
            (Task.claimed_at, STATES[RUNNING]) if state == CLAIMED else (Task.id, is_in_state)
        )
        fits = [*lists.conditions(filters, by_index), is_found]
        limited = select(counted).where(*fits).limit(bindparam("maximum")).subquery()
        counts.append(select(func.count(limited.c[0])).scalar_subquery())
    return Statement(select(*counts))


@lru_cache(maxsize=256)
def _count_statement(scan: lists.Scan) -> Statement[AnyRow]:
    # With GROUP BY, SQLite would read all tasks of the user in the order of their status.
    counts = [func.count().filter(is_in_state) for is_in_state in STATES.values()]
    return Statement(select(*counts).where(*lists.conditions_of(scan)))


def by_start(
    caller: Caller, selection: lists.Selection, times: Sequence[str], statuses: tuple[str, ...]
) -> Counts[list[list[int]]]:
    """For each of `statuses`: how many tasks were started in each interval between `times`."""
    with reading() as connection:
        wanted = selection._replace(
            created_after=None, created_before=None, sort=lists.NEWEST_FIRST
        )
        values = lists.parameters(caller, wanted)
        if values.keys() <= {"user_id", "status"}:
            bounds = {f"time{number}": time for number, time in enumerate(times)}
            statement = _interval_counts_statement(statuses, len(times))
            row: Any = statement.all(connection, **values, **bounds)[0]
            intervals = len(times) - 1
            parts = range(0, len(row), intervals)
            return Counts([list(row[start : start + intervals]) for start in parts])
        # The bounds of a selection are exclusive.
        since = clock.moved(times[0], -MILLISECOND)
        wanted = wanted._replace(created_after=since, created_before=times[-1])
        ordered = lists.OrderedTasks(connection, caller, wanted)
        rows, end = ordered.newest(_starts_statement, MAX_SEARCHED_FOR_CHART)
        counts = {status: [0] * (len(times) - 1) for status in statuses}
        for row in rows:
            counts[row.status][bisect_right(times, row.created_at) - 1] += 1
        return Counts(list(counts.values()), end is None)


@lru_cache
def _interval_counts_statement(statuses: tuple[str, ...], times: int) -> Statement[AnyRow]:
    bounds = [bindparam(f"time{number}", type_=Timestamp()) for number in range(times)]
    # Each count reads a part of one index.
    counts = [
        select(func.count())
        .where(tasks_of_user, Task.status == status)
        .where(Task.created_at >= since, Task.created_at < until)
        .scalar_subquery()
        for status in statuses
        for since, until in pairwise(bounds)
    ]
    return Statement(select(*counts))


@lru_cache(maxsize=256)
def _starts_statement(scan: lists.Scan) -> Statement[AnyRow]:
    found = select(Task.created_at, Task.status)
    return Statement(found.where(*lists.conditions_of(scan)))
