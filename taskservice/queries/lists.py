"""Reads of many tasks: in which order, and page by page."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    bindparam,
    null,
    select,
    tuple_,
    type_coerce,
)

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import RUNNING
from taskservice.database import name_index
from taskservice.database.models import Task
from taskservice.database.rows import AnyRow, ListedTask, next_limit
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Identifier, Several, Timestamp, api_text, is_among
from taskservice.queries import candidates, selections, sql_json
from taskservice.queries.selections import (
    BY_END,
    EARLIEST,
    NEWEST_FIRST,
    OLDEST_FIRST,
    Filters,
    Selection,
    unindexed,
)
from taskservice.queries.task_json import Shape
from taskservice.queries.tasks import with_log
from taskservice.schemas.columns import LARGE_COLUMNS, TASK_COLUMNS

# How many positions of a whole list one search finds.
POSITIONS_PER_READ = 1_000
# How many tasks one read finds at most, where those before were small; and the first read.
TASKS_PER_READ = 400
TASKS_OF_FIRST_READ = 100
# How many tasks are searched for those that fit: a few first, which is enough where many fit.
# Where even LOOK are not enough, the page ends, and the next one goes on.
FIRST_LOOK = 500
LOOK = 20_000
# The number of different statements that are kept of each kind.
STATEMENTS = 256


class Position(NamedTuple):
    """The position of one task in a list; a cursor is the position of a page's last task."""

    # Its `created_at` or, by end, its `finished_at`.
    moment: str
    id: str


# Before the first task of each order.
_FIRST = Position(EARLIEST, "00000000-0000-0000-0000-000000000000")
_LAST = Position("9999-12-31T23:59:59.999Z", "ffffffff-ffff-ffff-ffff-ffffffffffff")
_START = {NEWEST_FIRST: _LAST, OLDEST_FIRST: _FIRST, BY_END: _FIRST}


class Found(NamedTuple):
    """Positions in a list; `reached` is where a search stopped before the end of the list."""

    positions: list[Position]
    reached: Position | None = None


def positions(caller: Caller, selection: Selection, after: Position | None, count: int) -> Found:
    """The next `count` positions of the list; fewer at its end, or where the search stopped."""
    if selection.sort == BY_END and selection.status == RUNNING:
        # A search for the next one would read all finished tasks.
        return Found([])
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        if tasks.are_indexed:
            return Found(tasks.read(after, None, count))
        return tasks.search(after, count)


class OrderedTasks:
    """The tasks of a selection in its order, read on one connection."""

    def __init__(self, connection: Connection, caller: Caller, selection: Selection) -> None:
        self._connection, self._sort = connection, selection.sort
        self._values = selections.values(caller, selection)
        self._filters = frozenset(self._values) - {"user_id"}
        trigrams = name_index.trigram_query((selection.name_part or "").casefold())
        if trigrams is not None:
            self._values["trigrams"] = trigrams
        # Whether the index of the order has all filters, and no task is read in vain.
        self.are_indexed = self._filters == selections.indexed(self._filters, self._sort)

    def search(self, after: Position | None, count: int) -> Found:
        """The next `count` positions; looks at a limited number of tasks."""
        found: list[Position] = []
        for number in (FIRST_LOOK, LOOK):
            end = self.position(after, number)
            found += self.read(after, end, count - len(found))
            if end is None or len(found) == count:
                return Found(found)
            after = end
            few = self.few() if number == FIRST_LOOK else None
            if few is not None:
                return Found(found + self.read(after, None, count - len(found), few))
        return Found(found, after)

    def position(self, after: Position | None, number: int) -> Position | None:
        """The position that comes `number` tasks later in the index of the order, if there is one.

        A search finds where it will stop before it starts: if a task were deleted in between, it
        would otherwise stop too late, and leave one out.
        """
        bounds = _bounds(after, None)
        statement = _position(self._filters, frozenset(bounds), self._sort)
        values = {**self._values, **bounds, "skipped": number - 1}
        row = statement.one_or_none(self._connection, **values)
        return Position(*row) if row else None

    def read(
        self, after: Position | None, end: Position | None, count: int, few: str | None = None
    ) -> list[Position]:
        """The first `count` positions from `after`, exclusive, to `end`; among `few` candidates."""
        rows = self.run(_positions, after, end, few, count=count)
        return [Position(*row) for row in rows]

    def run(
        self,
        statement: Callable[[Filters, Filters, str, str | None], Statement[AnyRow]],
        after: Position | None = None,
        end: Position | None = None,
        few: str | None = None,
        **values: Any,
    ) -> list[AnyRow]:
        """The rows of the statement that is made for these filters and bounds."""
        bounds = _bounds(after, end)
        made = statement(self._filters, frozenset(bounds), self._sort, few)
        return made.all(self._connection, **self._values, **bounds, **values)

    def listed(self, after: Position | None, count: int, shape: Shape) -> list[Any]:
        """The next tasks in the order of the index, with what a list shows."""
        # The first part needs no statement of its own, which would have to be compiled too.
        after = after or _START[self._sort]
        return self.run(partial(_listed_in_order, shape), after, count=count)

    def few(self) -> str | None:
        """The name of the smallest set of candidates, if there is one of few tasks."""
        return candidates.fewest(self._connection, self._filters, self._values)


def _bounds(after: Position | None, end: Position | None) -> dict[str, str]:
    bounds: dict[str, str] = {}
    if after is not None:
        bounds |= {"after_moment": after.moment, "after_id": after.id}
    if end is not None:
        bounds |= {"end_moment": end.moment, "end_id": end.id}
    return bounds


@lru_cache(maxsize=STATEMENTS)
def _positions(filters: Filters, bounds: Filters, sort: str, few: str | None) -> Statement[AnyRow]:
    conditions = conditions_of(filters, bounds, sort, few)
    return Statement(_in_order(conditions, sort).limit(bindparam("count")))


@lru_cache(maxsize=STATEMENTS)
def _listed_in_order(
    shape: Shape, filters: Filters, bounds: Filters, sort: str, few: str | None
) -> Statement[AnyRow]:
    found = _in_order(conditions_of(filters, bounds, sort, few), sort)
    # The id is as the database stores it: only that of the last task is used, in its position.
    moment = api_text(_moment(sort)).label("moment")
    found = found.with_only_columns(moment, type_coerce(Task.id, Text), *_listed(shape))
    return Statement(found.limit(bindparam("count")))


def conditions_of(
    filters: Filters, bounds: Filters, sort: str, few: str | None
) -> list[ColumnElement[bool]]:
    """The conditions of a list, written so that SQLite reads its index, or the `few` candidates."""
    if few is None:
        indexed = selections.indexed(filters, sort) - _superseded(bounds, sort)
        return [*selections.conditions(filters, indexed), *_between(bounds, sort)]
    others = filters - candidates.implied(few)
    fitting = [*selections.conditions(others), *_between(bounds, sort)]
    return [candidates.are_among(few, filters), unindexed(fitting)]


@lru_cache(maxsize=STATEMENTS)
def _position(filters: Filters, bounds: Filters, sort: str) -> Statement[AnyRow]:
    conditions = conditions_of(selections.indexed(filters, sort), bounds, sort, None)
    return Statement(_in_order(conditions, sort).offset(bindparam("skipped")).limit(1))


def _superseded(bounds: Filters, sort: str) -> set[str]:
    """The filters for which SQLite would use the index, in place of the narrower `bounds`."""
    first, last = ("created_before", "created_after")[:: 1 if sort == NEWEST_FIRST else -1]
    if sort == BY_END:
        first = "finished_after"
    return {name for name, bound in ((first, "after_id"), (last, "end_id")) if bound in bounds}


def _in_order(conditions: Sequence[ColumnElement[bool]], sort: str) -> Any:
    column = _moment(sort)
    order = (column.desc(), Task.id.desc()) if sort == NEWEST_FIRST else (column, Task.id)
    return select(column, Task.id).where(*conditions).order_by(*order)


def _moment(sort: str) -> Any:
    return Task.finished_at if sort == BY_END else Task.created_at


def _between(bounds: Filters, sort: str) -> Iterator[ColumnElement[bool]]:
    key = tuple_(_moment(sort), Task.id)
    for name in ("after", "end"):
        if f"{name}_id" in bounds:
            moment = bindparam(f"{name}_moment", type_=Timestamp())
            bound = tuple_(moment, bindparam(f"{name}_id", type_=Identifier))
            is_newest_first = sort == NEWEST_FIRST
            if name == "after":
                yield key < bound if is_newest_first else key > bound
            else:
                yield key >= bound if is_newest_first else key <= bound


def tasks_at(
    caller: Caller, selection: Selection, wanted: Sequence[Position], shape: Shape
) -> Iterator[Sequence[ListedTask]]:
    """The tasks at these positions, in their order, in parts of bounded size.

    Each part is a read of its own, so that a slow reader holds no transaction.
    A task that was deleted meanwhile, or that the selection no longer has, is left out.
    """
    values = selections.values(caller, selection)
    statement = _tasks(frozenset(values) - {"user_id"}, shape)
    start, count = 0, min(TASKS_OF_FIRST_READ, TASKS_PER_READ)
    while start < len(wanted):
        ids = [position.id for position in wanted[start : start + count]]
        with reading() as connection:
            found = statement.all(connection, **values, task_ids=ids)
        rows = {row.id: row for row in found}
        in_order = [rows[task_id] for task_id in ids if task_id in rows]
        yield from _parts(caller, selection, in_order, shape)
        start += len(ids)
        count = next_limit(len(ids), _size(found), TASKS_PER_READ)


def _size(rows: Sequence[ListedTask]) -> int:
    return sum([len(row.json or b"") for row in rows])


@lru_cache(maxsize=STATEMENTS)
def _tasks(filters: Filters, shape: Shape) -> Statement[ListedTask]:
    fits = unindexed(selections.conditions(filters))
    return Statement(select(Task.id, *_listed(shape)).where(_IS_WANTED, fits))


def _listed(shape: Shape) -> list[Any]:
    """The columns of a listed task."""
    text = sql_json.task_json(shape.schema).label("json")
    return [Task.user_id, Task.agent_id, text] if shape.expand else [text]


def _parts(
    caller: Caller, selection: Selection, rows: Sequence[ListedTask], shape: Shape
) -> Iterator[Sequence[ListedTask]]:
    """The same tasks; each large one is read again, alone."""
    for is_small, group in groupby(rows, lambda row: row.json is not None):
        if is_small:
            yield list(group)
        else:
            yield from (_large_task(caller, selection, row.id, shape) for row in group)


def _large_task(
    caller: Caller, selection: Selection, task_id: str, shape: Shape
) -> Sequence[ListedTask]:
    values = selections.values(caller, selection)
    statement = _row(frozenset(values) - {"user_id"}, shape)
    with reading() as connection:
        return statement.all(connection, **values, task_ids=[task_id])


@lru_cache(maxsize=STATEMENTS)
def _row(filters: Filters, shape: Shape) -> Statement[ListedTask]:
    left_out = LARGE_COLUMNS.keys() - shape.schema.columns.keys()
    columns = [column for column in TASK_COLUMNS if column.key not in left_out]
    fits = unindexed(selections.conditions(filters))
    return Statement(with_log([*columns, null().label("json")]).where(_IS_WANTED, fits))


def all_tasks(caller: Caller, selection: Selection, shape: Shape) -> Iterator[Sequence[ListedTask]]:
    """The whole list, in parts as `tasks_at` yields them."""
    after: Position | None = None
    count = min(TASKS_OF_FIRST_READ, TASKS_PER_READ)
    while True:
        rows = _next_tasks(caller, selection, after, count, shape)
        if rows is None:
            wanted, reached = positions(caller, selection, after, POSITIONS_PER_READ)
            yield from tasks_at(caller, selection, wanted, shape)
            after = reached or (wanted[-1] if wanted else None)
        else:
            yield from _parts(caller, selection, rows, shape)
            after = _position_of(rows[-1]) if rows else None
            count = next_limit(count, _size(rows), TASKS_PER_READ)
        if after is None:
            return


def page(
    caller: Caller, selection: Selection, after: Position | None, limit: int, shape: Shape
) -> tuple[Iterator[Sequence[ListedTask]], Position | None]:
    """The next `limit` tasks, in parts as `tasks_at` yields them; and the end of the page.

    The end is None if there is no next page.
    """
    # One task more than fits shows whether there is a next page.
    count = limit + 1
    is_small = count <= TASKS_OF_FIRST_READ + 1
    rows = _next_tasks(caller, selection, after, count, shape) if is_small else None
    if rows is None:
        wanted, end = page_positions(caller, selection, after, limit)
        return tasks_at(caller, selection, wanted, shape), end
    end = _position_of(rows[limit - 1]) if len(rows) > limit else None
    return _parts(caller, selection, rows[:limit], shape), end


def page_positions(
    caller: Caller, selection: Selection, after: Position | None, limit: int
) -> Found:
    """The next `limit` positions; `reached` is the end of the page, if there is a next one."""
    wanted, reached = positions(caller, selection, after, limit + 1)
    return (
        Found(wanted[:limit], wanted[limit - 1]) if len(wanted) > limit else Found(wanted, reached)
    )


def _next_tasks(
    caller: Caller, selection: Selection, after: Position | None, count: int, shape: Shape
) -> list[Any] | None:
    """The next `count` tasks; None if they must be searched for."""
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        return tasks.listed(after, count, shape) if tasks.are_indexed else None


def _position_of(row: Any) -> Position:
    return Position(row.moment, str(UUID(row.id)))


_IS_WANTED: Any = is_among(Task.id, bindparam("task_ids", type_=Several(Identifier)))
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
    ).where(_IS_WANTED, unindexed([visible_tasks]))
)


def summaries(caller: Caller, wanted: Sequence[Position]) -> list[AnyRow]:
    """The tasks at these positions, in their order, with the columns that a table shows."""
    ids = [position.id for position in wanted]
    if not ids:
        return []
    with reading() as connection:
        rows = {row.id: row for row in _SUMMARIES.all(connection, task_ids=ids, **caller.scope)}
    return [rows[task_id] for task_id in ids if task_id in rows]
