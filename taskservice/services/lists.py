"""Reads of many tasks: whole lists, pages, and the rows of a table."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, func, null, select, type_coerce

from taskservice.auth import Caller, visible_tasks
from taskservice.database.connections import Statement
from taskservice.database.models import Task
from taskservice.database.transactions import reading
from taskservice.database.types import (
    AnyRow,
    Identifier,
    ListedTask,
    Several,
    api_text,
    is_among,
    next_limit,
)
from taskservice.queries import selections, sql_json
from taskservice.queries.ordered_tasks import (
    START,
    STATEMENTS,
    Found,
    OrderedTasks,
    Position,
    Scan,
    conditions_of,
    in_order,
    sort_column,
)
from taskservice.queries.selections import BY_END, Filters, Selection, unindexed
from taskservice.queries.tasks import with_log
from taskservice.schemas.columns import LARGE_COLUMNS, TASK_COLUMNS
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.services.task_json import Shape
from taskservice.terms import RUNNING

# How many positions of a whole list one search finds.
POSITIONS_PER_READ = 1_000
# How many tasks one read finds at most, where those before were small; and the first read.
TASKS_PER_READ = 400
TASKS_OF_FIRST_READ = 100
# How many characters of an error's message a table gets.
MAX_REASON = 4_000


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


def _next_tasks(
    caller: Caller, selection: Selection, after: Position | None, count: int, shape: Shape
) -> list[Any] | None:
    """The next `count` tasks, by one statement; None if they must be searched for."""
    # The first part needs no statement of its own, which would have to be compiled too.
    after = after or START[selection.sort]
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        if not tasks.are_indexed:
            return None
        return tasks.run(partial(_listed_statement, shape), after, count=count)


@lru_cache(maxsize=STATEMENTS)
def _listed_statement(shape: Shape, scan: Scan) -> Statement[AnyRow]:
    # The id is as the database stores it: only that of the last task is used, in its position.
    moment = api_text(sort_column(scan.sort)).label("moment")
    columns = (moment, type_coerce(Task.id, Text), *_listed_columns(shape))
    found = in_order(conditions_of(scan), scan.sort).with_only_columns(*columns)
    return Statement(found.limit(bindparam("count")))


def _position_of(row: Any) -> Position:
    """The position of a row of `_listed_statement`."""
    return Position(row.moment, str(UUID(row.id)))


def page_positions(
    caller: Caller, selection: Selection, after: Position | None, limit: int
) -> Found:
    """The next `limit` positions; `reached` is the end of the page, if there is a next one."""
    wanted, reached = positions(caller, selection, after, limit + 1)
    if len(wanted) > limit:
        return Found(wanted[:limit], wanted[limit - 1])
    return Found(wanted, reached)


def positions(caller: Caller, selection: Selection, after: Position | None, count: int) -> Found:
    """The next `count` positions of the list; fewer at its end, or where the search stopped."""
    if selection.sort == BY_END and selection.status == RUNNING:
        # A search for the next one would read all finished tasks.
        return Found([])
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        if tasks.are_indexed:
            return Found(tasks.positions(after, None, count))
        return tasks.search(after, count)


def tasks_at(
    caller: Caller, selection: Selection, wanted: Sequence[Position], shape: Shape
) -> Iterator[Sequence[ListedTask]]:
    """The tasks at these positions, in their order, in parts of bounded size.

    Each part is a read of its own, so that a slow reader holds no transaction.
    A task that was deleted meanwhile, or that the selection no longer has, is left out.
    """
    values = selections.values(caller, selection)
    statement = _tasks_at_statement(frozenset(values) - {"user_id"}, shape)
    start, count = 0, min(TASKS_OF_FIRST_READ, TASKS_PER_READ)
    while start < len(wanted):
        ids = [position.id for position in wanted[start : start + count]]
        with reading() as connection:
            found = statement.all(connection, **values, task_ids=ids)
        rows = {row.id: row for row in found}
        left = [rows[task_id] for task_id in ids if task_id in rows]
        yield from _parts(caller, selection, left, shape)
        start += len(ids)
        count = next_limit(len(ids), _size(found), TASKS_PER_READ)


def _size(rows: Sequence[ListedTask]) -> int:
    """The bytes of JSON that were read of these tasks."""
    return sum([len(row.json or b"") for row in rows])


@lru_cache(maxsize=STATEMENTS)
def _tasks_at_statement(filters: Filters, shape: Shape) -> Statement[ListedTask]:
    fits = unindexed(selections.conditions(filters))
    return Statement(select(Task.id, *_listed_columns(shape)).where(_IS_WANTED, fits))


def _listed_columns(shape: Shape) -> list[Any]:
    """What a list selects of each task: its JSON, and the ids of what `shape` embeds."""
    text = sql_json.of_task(shape.schema).label("json")
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
    statement = _large_task_statement(frozenset(values) - {"user_id"}, shape)
    with reading() as connection:
        return statement.all(connection, **values, task_ids=[task_id])


@lru_cache(maxsize=STATEMENTS)
def _large_task_statement(filters: Filters, shape: Shape) -> Statement[ListedTask]:
    left_out = LARGE_COLUMNS.keys() - shape.schema.columns.keys()
    columns = [column for column in TASK_COLUMNS if column.key not in left_out]
    fits = unindexed(selections.conditions(filters))
    return Statement(with_log([*columns, null().label("json")]).where(_IS_WANTED, fits))


_IS_WANTED: Any = is_among(Task.id, bindparam("task_ids", type_=Several(Identifier)))
_SUMMARIES = Statement[AnyRow](
    select(
        Task.id,
        Task.name,
        Task.agent_id,
        Task.status,
        Task.error_type,
        func.substr(Task.error_message, 1, MAX_REASON).label("error_message"),
        Task.progress,
        Task.note,
        Task.labels,
        (Task.questions != NO_QUESTIONS).label("asks"),
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
