"""Reads of many tasks: in which order, and page by page."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, bindparam, select, tuple_

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import RUNNING
from taskservice.database.models import Task
from taskservice.database.rows import AnyRow, TaskRow, next_limit
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Identifier, Several, Timestamp, is_among
from taskservice.queries import candidates, selections
from taskservice.queries.selections import BY_END, NEWEST_FIRST, Filters, Selection, unindexed
from taskservice.queries.tasks import with_log
from taskservice.schemas.columns import LARGE_COLUMNS, TASK_COLUMNS

# How many positions of a whole list one read finds.
POSITIONS_PER_READ = 1_000
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

    def few(self) -> str | None:
        """The name of the smallest set of candidates, if there is one of few tasks."""
        return candidates.fewest(self._connection, self._values)


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


def conditions_of(
    filters: Filters, bounds: Filters, sort: str, few: str | None
) -> list[ColumnElement[bool]]:
    """The conditions of a list, written so that SQLite reads its index, or the `few` candidates."""
    if few is None:
        indexed = selections.indexed(filters, sort)
        return [*selections.conditions(filters, indexed), *_between(bounds, sort)]
    fitting = [*selections.conditions(filters), *_between(bounds, sort)]
    return [candidates.are_among(few, filters), unindexed(fitting)]


@lru_cache(maxsize=STATEMENTS)
def _position(filters: Filters, bounds: Filters, sort: str) -> Statement[AnyRow]:
    indexed = selections.indexed(filters, sort)
    conditions = [*selections.conditions(indexed, indexed), *_between(bounds, sort)]
    return Statement(_in_order(conditions, sort).offset(bindparam("skipped")).limit(1))


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
    values = selections.values(caller, selection)
    statement = _tasks(frozenset(values) - {"user_id"}, tuple(large))
    while wanted:
        now, wanted = wanted[:limit], wanted[limit:]
        ids = [position.id for position in now]
        with reading() as connection:
            found = statement.all(connection, **values, task_ids=ids)
        rows = {row.id: row for row in found}
        page = [rows[task_id] for task_id in ids if task_id in rows]
        yield page
        limit = next_limit(len(ids), sum(_task_size(row, large) for row in page), 256)


@lru_cache(maxsize=STATEMENTS)
def _tasks(filters: Filters, large: tuple[str, ...]) -> Statement[TaskRow]:
    left_out = [column for name, column in LARGE_COLUMNS.items() if name not in large]
    columns = [column for column in TASK_COLUMNS if column not in left_out]
    fits = unindexed(selections.conditions(filters))
    return Statement(with_log(columns).where(_IS_WANTED, fits))


def all_tasks(
    caller: Caller, selection: Selection, large: Sequence[str] = tuple(LARGE_COLUMNS)
) -> Iterator[list[TaskRow]]:
    """The whole list, in pages as `tasks_at` yields them."""
    after: Position | None = None
    while True:
        wanted, reached = positions(caller, selection, after, POSITIONS_PER_READ)
        yield from tasks_at(caller, selection, wanted, large)
        after = reached or (wanted[-1] if wanted else None)
        if after is None:
            return


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


def _task_size(row: TaskRow, large: Sequence[str]) -> int:
    return sum(len(getattr(row, name)) for name in large) + 500
