"""The tasks of a list in its order: their positions, and the search for those that fit."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, bindparam, select, tuple_

from taskservice.auth import Caller
from taskservice.database import name_index
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.connections import Statement
from taskservice.database.models import Task
from taskservice.database.types import AnyRow, Identifier, Timestamp
from taskservice.queries import candidates, selections
from taskservice.queries.selections import (
    BY_END,
    NEWEST_FIRST,
    OLDEST_FIRST,
    Filters,
    Selection,
    unindexed,
)

# How many tasks are searched for those that fit: a few first, which is enough where many fit. If
# MAX_SEARCHED more are not enough either, the page ends, and the next one goes on from there.
FIRST_SEARCHED = 500
MAX_SEARCHED = 20_000
# The number of different statements that are kept of each kind.
STATEMENTS = 256

# The names of the parameters of the bounds that are given: of `after_...`, `end_...`, or both.
Bounds: TypeAlias = frozenset[str]
# Bound -> the filter that it supersedes, since it is narrower: SQLite must search the index by it.
_SUPERSEDED = {
    NEWEST_FIRST: {"after_id": "created_before", "end_id": "created_after"},
    OLDEST_FIRST: {"after_id": "created_after", "end_id": "created_before"},
    BY_END: {"after_id": "finished_after"},
}


class Position(NamedTuple):
    """The position of one task in a list; a cursor is the position of a page's last task."""

    # Its `created_at` or, by end, its `finished_at`.
    moment: str
    id: str


# Before the first task of each order.
_FIRST = Position(EARLIEST, LOWEST_ID)
_LAST = Position("9999-12-31T23:59:59.999Z", "ffffffff-ffff-ffff-ffff-ffffffffffff")
START = {NEWEST_FIRST: _LAST, OLDEST_FIRST: _FIRST, BY_END: _FIRST}


class Found(NamedTuple):
    """Positions in a list; `reached` is where a search stopped before the end of the list."""

    positions: list[Position]
    reached: Position | None = None


class Scan(NamedTuple):
    """What the SQL of a statement on a list depends on; each is compiled once.

    With a `candidate_set`, its tasks are read and sorted, in place of the index of the order.
    """

    filters: Filters
    bounds: Bounds
    sort: str
    candidate_set: str | None = None


class OrderedTasks:
    """The tasks of a selection in its order, read on one connection."""

    def __init__(self, connection: Connection, caller: Caller, selection: Selection) -> None:
        self._connection, self._sort = connection, selection.sort
        self._values = selections.values(caller, selection)
        self._filters = frozenset(self._values) - {"user_id"}
        name_part = self._values.get("name_part", "")
        trigrams = name_index.trigram_query(name_part)
        if trigrams is not None:
            self._values["trigrams"] = trigrams
            self._values["name_pattern"] = name_index.like_pattern(name_part)
        # Whether the index of the order has all filters, and no task is read in vain.
        self.are_indexed = self._filters == selections.indexed(self._filters, self._sort)

    def search(self, after: Position | None, count: int) -> Found:
        """The next `count` positions among a limited number of tasks, or among few candidates."""
        found: list[Position] = []
        for number in (FIRST_SEARCHED, MAX_SEARCHED):
            end = self.position(after, number)
            found += self.positions(after, end, count - len(found))
            if end is None or len(found) == count:
                return Found(found)
            after = end
            candidate_set = self.smallest_set() if number == FIRST_SEARCHED else None
            if candidate_set is not None:
                rest = self.positions(after, None, count - len(found), candidate_set)
                return Found(found + rest)
        return Found(found, after)

    def position(self, after: Position | None, number: int) -> Position | None:
        """The position that comes `number` tasks later in the index of the order, if there is one.

        A search finds where it will stop before it starts: if a task were deleted in between, it
        would otherwise stop too late, and leave one out.
        """
        bounds = _bounds(after, None)
        statement = _nth_position_statement(Scan(self._filters, frozenset(bounds), self._sort))
        values = {**self._values, **bounds, "skipped": number - 1}
        row = statement.one_or_none(self._connection, **values)
        return Position(*row) if row else None

    def positions(
        self,
        after: Position | None,
        end: Position | None,
        count: int,
        candidate_set: str | None = None,
    ) -> list[Position]:
        """The first `count` positions from `after`, exclusive, to `end`, inclusive."""
        rows = self.run(_positions_statement, after, end, candidate_set, count=count)
        return [Position(*row) for row in rows]

    def run(
        self,
        make_statement: Callable[[Scan], Statement[AnyRow]],
        after: Position | None = None,
        end: Position | None = None,
        candidate_set: str | None = None,
        **values: Any,
    ) -> list[AnyRow]:
        """The rows of the statement that is made for these filters, bounds and candidates."""
        bounds = _bounds(after, end)
        scan = Scan(self._filters, frozenset(bounds), self._sort, candidate_set)
        return make_statement(scan).all(self._connection, **self._values, **bounds, **values)

    def smallest_set(self) -> str | None:
        """The name of the smallest set of candidates; None if all sets are too large."""
        return candidates.smallest_set(self._connection, self._filters, self._values)


def _bounds(after: Position | None, end: Position | None) -> dict[str, str]:
    """The values of the bounds that are given, under their parameters' names."""
    bounds: dict[str, str] = {}
    if after is not None:
        bounds |= {"after_moment": after.moment, "after_id": after.id}
    if end is not None:
        bounds |= {"end_moment": end.moment, "end_id": end.id}
    return bounds


@lru_cache(maxsize=STATEMENTS)
def _positions_statement(scan: Scan) -> Statement[AnyRow]:
    return Statement(in_order(conditions_of(scan), scan.sort).limit(bindparam("count")))


@lru_cache(maxsize=STATEMENTS)
def _nth_position_statement(scan: Scan) -> Statement[AnyRow]:
    of_index = scan._replace(filters=selections.indexed(scan.filters, scan.sort))
    found = in_order(conditions_of(of_index), scan.sort)
    return Statement(found.offset(bindparam("skipped")).limit(1))


def conditions_of(scan: Scan) -> list[ColumnElement[bool]]:
    """The conditions of a list, so that SQLite reads the index of its order, or the candidates."""
    filters, between = scan.filters, _between(scan.bounds, scan.sort)
    if scan.candidate_set is None:
        superseded = _SUPERSEDED[scan.sort]
        wider = {superseded[name] for name in scan.bounds if name in superseded}
        indexed = selections.indexed(filters, scan.sort) - wider
        return [*selections.conditions(filters, indexed), *between]
    unchecked = filters - candidates.implied(scan.candidate_set)
    fitting = unindexed([*selections.conditions(unchecked), *between])
    return [candidates.are_among(scan.candidate_set, filters), fitting]


def in_order(conditions: Sequence[ColumnElement[bool]], sort: str) -> Any:
    """SELECT the positions of the tasks that fit, in their order."""
    column = sort_column(sort)
    order = (column.desc(), Task.id.desc()) if sort == NEWEST_FIRST else (column, Task.id)
    return select(column, Task.id).where(*conditions).order_by(*order)


def sort_column(sort: str) -> Any:
    return Task.finished_at if sort == BY_END else Task.created_at


def _between(bounds: Bounds, sort: str) -> Iterator[ColumnElement[bool]]:
    """The conditions that a task comes after `after`, and not after `end`."""
    key = tuple_(sort_column(sort), Task.id)
    for name in ("after", "end"):
        if f"{name}_id" in bounds:
            moment = bindparam(f"{name}_moment", type_=Timestamp())
            bound = tuple_(moment, bindparam(f"{name}_id", type_=Identifier))
            is_newest_first = sort == NEWEST_FIRST
            if name == "after":
                yield key < bound if is_newest_first else key > bound
            else:
                yield key >= bound if is_newest_first else key <= bound
