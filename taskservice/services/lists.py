"""Reads many tasks: whole lists, pages, the rows of a table, and counts."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from heapq import nlargest
from itertools import groupby
from operator import ge, gt, le, lt
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from marshmallow import fields
from sqlalchemy import (
    ColumnElement,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
    text,
    true,
    tuple_,
    type_coerce,
)
from sqlalchemy.orm import aliased

from taskservice.auth import Caller, tasks_of_user, visible_tasks
from taskservice.database import clock, name_index, types
from taskservice.database.connections import Statement
from taskservice.database.models import IS_ASKING, Delivery, Question, Task, TaskLabel
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import database_time, read_all, reading
from taskservice.database.types import AnyRow, AnySelect, Identifier, Timestamp
from taskservice.schemas.fields import NO_QUESTIONS, Lines, OpenQuestions, StoredJson, StoredNumber
from taskservice.schemas.tasks import TASK_COLUMNS, TaskError, TaskSchema
from taskservice.services.logs import TEXT_OF_LOG
from taskservice.services.questions import can_be_answered
from taskservice.services.task_json import Shape
from taskservice.services.tasks import with_log_id
from taskservice.terms import (
    CANCELLED,
    ERROR_TYPES,
    FAILED,
    HANGING,
    MAX_LABELS,
    PENDING,
    RUNNING,
    SORTS,
    STATUSES,
)

NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS
LATEST, HIGHEST_ID = "9999-12-31T23:59:59.999Z", "ffffffff-ffff-ffff-ffff-ffffffffffff"
# Each label of a selection is a separate filter, and a task must match all filters.
LABELS = tuple(f"label{number}" for number in range(MAX_LABELS))
_CALLBACKS = {f"callback_{state}": state for state in (PENDING, FAILED)}
_is_asking = and_(IS_ASKING, exists(select(1).where(Question.task_id == Task.id, can_be_answered)))
_delivery = select(1).where(Delivery.task_id == Task.id, Delivery.hook_id.is_(None))
_label = select(1).where(TaskLabel.task_id == Task.id)
# Running tasks that no worker has claimed, written as in the WHERE of the index `tasks_unclaimed`.
# `agent_id > ''` is always true; it makes SQLite prefer this index to the index by status.
WAITING = "waiting"
IS_WAITING: Any = text(
    "tasks.status = 'running' AND tasks.claimed_at IS NULL AND tasks.agent_id > ''"
)
# The condition of each filter.
CONDITIONS: dict[str, ColumnElement[bool]] = {
    # Together with `tasks_of_user`, this condition is equivalent to `visible_tasks`. The OR in
    # `visible_tasks` would prevent SQLite from using the index by agent.
    "own_agent_id": Task.agent_id == bindparam("own_agent_id"),
    "agentId": Task.agent_id == bindparam("agentId"),
    "errorType": Task.error_type == bindparam("errorType"),
    "status": Task.status == bindparam("status"),
    "created": and_(
        Task.created_at > bindparam("createdAfter"), Task.created_at < bindparam("createdBefore")
    ),
    "finished": Task.finished_at > bindparam("finishedAfter"),
    "claimed": Task.claimed_at.is_not(None),
    "unclaimed": Task.claimed_at.is_(None),
    WAITING: IS_WAITING,
    "asking": _is_asking,
    "not_asking": ~_is_asking,
    "hanging": Task.hanging_since.is_not(None),
    "not_hanging": Task.hanging_since.is_(None),
    "parentId": Task.parent_id == bindparam("parentId"),
    "top_level": Task.parent_id.is_(None),
    "q": types.position_in_text(Task.name_folded, bindparam("q", type_=Text())) > 0,
    **{
        name: exists(_delivery.where(Delivery.state == state)) for name, state in _CALLBACKS.items()
    },
    **{name: exists(_label.where(TaskLabel.label == bindparam(name))) for name in LABELS},
}
# The names of the given filters; a statement is compiled once for each set of names.
Filters: TypeAlias = frozenset[str]
# The filters with an index that is sorted by creation time, the most selective filter first.
_IN_AN_INDEX = ("hanging", "asking", "own_agent_id", "agentId", "errorType", "status")
# The maximum size of a candidate set: the tasks that match one filter, which are read by their IDs
# and sorted.
MAX_CANDIDATES = 5_000
_user_id = bindparam("user_id", type_=Identifier)
_deliveries = select(Delivery.task_id).where(
    Delivery.user_id == _user_id, Delivery.hook_id.is_(None)
)
_labels = select(TaskLabel.task_id).where(TaskLabel.user_id == _user_id)
# For each of these filters, a SELECT of the matching tasks that uses an index. The states of
# callbacks are literals, as in the WHERE of their indexes; otherwise no index would be used.
_SETS: dict[str, AnySelect] = {
    **{
        name: select(Task.id).where(tasks_of_user, CONDITIONS[name])
        for name in (*_IN_AN_INDEX, "parentId", "finished", "created", WAITING)
    },
    **{
        name: _deliveries.where(text(f"deliveries.state = '{state}'"))
        for name, state in _CALLBACKS.items()
    },
    **{name: _labels.where(TaskLabel.label == bindparam(name)) for name in LABELS},
}


def _by_name_statement(ids_by_name: Any, aggregate: Any) -> Statement[AnyRow]:
    """Selects the `size` of a set, counted up to a limit, and its `ids` as a JSON or SQL array."""
    ids = select(ids_by_name.subquery().c.id).limit(bindparam("maximum")).subquery().c.id
    return Statement(select(func.count().label("size"), aggregate(ids).label("ids")))


# For each dialect, a statement that selects the tasks whose names may match, and the condition that
# a task is one of these `candidates`. The candidates are row numbers on SQLite, and task IDs on
# PostgreSQL.
_BY_NAME = {
    "sqlite": (
        _by_name_statement(name_index.CANDIDATES, func.json_group_array),
        types.in_list(literal_column("tasks.rowid"), bindparam("candidates", type_=Text())),
    ),
    "postgresql": (
        _by_name_statement(
            name_index.POSTGRESQL_CANDIDATES, lambda ids: func.array_agg(cast(ids, Text()))
        ),
        types.is_among(Task.id, "candidates"),
    ),
}


class Selection(NamedTuple):
    """The filters and the order of a list, as in FilterQuerySchema; time bounds are exclusive."""

    status: str | None = None
    errorType: str | None = None
    claimed: bool | None = None
    asking: bool | None = None
    hanging: bool | None = None
    agentId: str | None = None
    parentId: str | None = None
    label: tuple[str, ...] = ()
    q: str | None = None
    createdAfter: str | None = None
    createdBefore: str | None = None
    finishedAfter: str | None = None
    # Only tasks with a delivery in this state, pending or failed.
    delivery: str | None = None
    # Only tasks without a parent.
    is_top_level: bool = False
    sort: str = NEWEST_FIRST


def _parameters(caller: Caller, selection: Selection) -> dict[str, Any]:
    """The parameters of a list's SQL, by name; a given filter that needs no value is True."""
    values = selection._asdict() | {
        "user_id": caller.user_id,
        "own_agent_id": caller.agent_id,
        "q": (selection.q or "").casefold() or None,
        "created": selection.createdAfter or selection.createdBefore,
        "createdAfter": selection.createdAfter or clock.EARLIEST,
        "createdBefore": selection.createdBefore or LATEST,
        "finished": selection.finishedAfter,
        "finishedAfter": selection.finishedAfter or clock.EARLIEST,
        "unclaimed": selection.claimed is False,
        WAITING: selection.claimed is False and selection.status == RUNNING,
        "not_asking": selection.asking is False,
        "not_hanging": selection.hanging is False,
        "top_level": selection.is_top_level,
        f"callback_{selection.delivery}": selection.delivery,
        **dict(zip(LABELS, dict.fromkeys(selection.label), strict=False)),
    }
    return {name: value for name, value in values.items() if value not in (None, False)}


def _conditions(filters: Filters, by_index: Filters) -> list[ColumnElement[bool]]:
    """The conditions of these filters; SQLite may use an index only for filters in `by_index`."""
    # Without statistics, SQLite would often choose an index that is not in the order of the list.
    searched = [CONDITIONS[name] for name in CONDITIONS if name in by_index]
    checked = [CONDITIONS[name] for name in CONDITIONS if name in filters - by_index]
    return [tasks_of_user, *searched, *([unindexed(checked)] if checked else [])]


def unindexed(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form that prevents SQLite from using an index for them."""
    return and_(*conditions).is_(true())


# A search first checks FIRST_SEARCHED tasks against the filters, which is enough if many tasks
# match. If MAX_SEARCHED further tasks do not fill the page, the page ends, and the next page
# continues after these tasks.
FIRST_SEARCHED = 500
MAX_SEARCHED = 20_000
# The maximum number of tasks that one read returns; each task takes up to 100 kB.
TASKS_PER_READ = 100
# The maximum number of positions that one read of a whole list returns.
POSITIONS_PER_READ = 1_000
# The number of compiled statements of each kind that are cached.
STATEMENTS = 256


class Position(NamedTuple):
    """The position of one task in a list; a cursor is the position of a page's last task."""

    # The task's `created_at`, or its `finished_at` in a list that is sorted by this time.
    time: str
    id: str


# Positions in a list, and the position after which to continue if there may be more tasks.
Positions: TypeAlias = tuple[list[Position], Position | None]


class Scan(NamedTuple):
    """The parts of a list's SQL; without a `candidate_set`, the SQL reads the index of `sort`."""

    filters: Filters
    sort: str
    candidate_set: str | None = None


class TaskList:
    """The tasks of a selection that the caller may see, in the order of the selection.

    Each part of the list is a separate read, so that a slow reader holds no transaction open. A
    task that was deleted or no longer matches the selection is omitted.
    """

    def __init__(self, caller: Caller, selection: Selection) -> None:
        self._sort = selection.sort
        self.values = _parameters(caller, selection)
        self._all_filters = frozenset(CONDITIONS.keys() & self.values.keys())
        # The filter by the sort column bounds the part of the index that is read; all other filters
        # are in `filters`.
        bounded = "finished" if self._sort == BY_END else "created"
        self.filters = self._all_filters - {bounded}
        lowest = Position(self.values[f"{bounded}After"], HIGHEST_ID)
        highest = Position(self.values.get(f"{bounded}Before", LATEST), clock.LOWEST_ID)
        is_newest_first = self._sort == NEWEST_FIRST
        self._start, self._end = (highest, lowest) if is_newest_first else (lowest, highest)
        # Whether the index covers all filters, so that every task that is read from it matches.
        self._is_indexed = self.filters <= _indexed_filters(self.filters, self._sort)

    def all(self, shape: Shape) -> Iterator[Sequence[TaskRow]]:
        """The whole list, in parts of bounded size."""
        limit = TASKS_PER_READ if self._is_indexed else POSITIONS_PER_READ
        end: Position | None = None
        while True:
            tasks, end = self.page(end, limit, shape)
            size = 0
            for part in tasks:
                size += _size(part)
                yield part
            if end is None:
                return
            if self._is_indexed:
                limit = types.next_limit(limit, size, TASKS_PER_READ)

    def page(
        self, after: Position | None, limit: int, shape: Shape
    ) -> tuple[Iterator[Sequence[TaskRow]], Position | None]:
        """The next `limit` tasks, in parts.

        The second value is the position at which the page ended, if more tasks may follow.
        """
        if limit > TASKS_PER_READ or not self._is_indexed:
            positions, end = self.positions(after, limit)
            return self._tasks_at(positions, shape), end
        # Read one task more than the limit: it shows whether there is a next page.
        rows: list[Any] = self.run(partial(_listed_statement, shape), after, count=limit + 1)
        last = rows[limit - 1] if len(rows) > limit else None
        return self._parts(rows[:limit], shape), last and Position(last.time, str(UUID(last.id)))

    def _tasks_at(self, positions: Sequence[Position], shape: Shape) -> Iterator[Sequence[TaskRow]]:
        start, count = 0, TASKS_PER_READ
        while ids := [position.id for position in positions[start : start + count]]:
            rows = self.read(ids, partial(_tasks_at_statement, shape))
            yield from self._parts(rows, shape)
            start += len(ids)
            count = types.next_limit(len(ids), _size(rows), TASKS_PER_READ)

    def _parts(self, rows: Sequence[TaskRow], shape: Shape) -> Iterator[Sequence[TaskRow]]:
        """The tasks of `rows`, in parts; each large task is read again, in a separate part."""
        for is_small, group in groupby(rows, lambda row: row.json is not None):
            if is_small:
                yield list(group)
            else:
                statement = partial(_large_task_statement, shape)
                yield from (self.read([str(UUID(row.id))], statement) for row in group)

    def read(self, ids: Sequence[str], make_statement: Callable[[Filters], Any]) -> list[Any]:
        """The tasks with these IDs, in this order; the statement must filter by `still_match`."""
        statement = make_statement(self._all_filters)
        rows = {row.id: row for row in read_all(statement, **self.values, task_ids=ids)}
        return [rows[task_id] for task_id in ids if task_id in rows]

    def positions(self, after: Position | None, limit: int) -> Positions:
        """The next `limit` positions, or fewer if the list ended or the search stopped."""
        if self._sort == BY_END and self.values.get("status") == RUNNING:
            # A running task has no `finished_at`: a search would read all finished tasks in vain.
            return [], None
        positions, stopped = self._search(after, limit + 1)
        return (
            (positions[:limit], positions[limit - 1])
            if len(positions) > limit
            else (positions, stopped)
        )

    def _search(self, after: Position | None, count: int) -> Positions:
        """The next positions among a limited number of tasks, or in the smallest candidate set."""
        if self._is_indexed:
            return self._positions(after, None, count), None
        positions: list[Position] = []
        for number in (FIRST_SEARCHED, MAX_SEARCHED):
            end = self.position(after, number)
            positions += self._positions(after, end, count - len(positions))
            if end is None or len(positions) == count:
                return positions, None
            after = end
            candidate_set = self._smallest_set() if number == FIRST_SEARCHED else None
            if candidate_set is not None:
                return positions + self._positions(
                    after, None, count - len(positions), candidate_set
                ), None
        return positions, after

    def longest(self, count: int) -> Positions:
        """The longest runs among the newest MAX_SEARCHED tasks, or in the smallest candidate set.

        The second value is not None if older tasks were not searched.
        """
        rows, end = self.newest(_runs_statement, MAX_SEARCHED)
        now = database_time()
        longest = nlargest(
            count, rows, lambda row: clock.seconds_between(row.claimed_at, row.finished_at or now)
        )
        return [Position(row.created_at, row.id) for row in longest], end

    def newest(
        self, make_statement: Callable[[Scan], Statement[Any]], maximum: int
    ) -> tuple[list[Any], Position | None]:
        """The rows of the statement for the smallest candidate set, or for the newest `maximum`
        tasks.

        The second value is the position at which the search ended, if older tasks remain.
        """
        candidate_set = self._smallest_set()
        end = None if candidate_set else self.position(None, maximum + 1)
        return self.run(make_statement, None, end, candidate_set), end

    def position(self, after: Position | None, number: int) -> Position | None:
        """The position `number` tasks after `after` in the index; None if fewer tasks follow."""
        # A search determines its end before it reads tasks. Otherwise, a deletion could move the
        # end, and the search would skip a task.
        rows = self.run(_nth_position_statement, after, skipped=number - 1)
        return Position(*rows[0]) if rows else None

    def _positions(
        self,
        after: Position | None,
        end: Position | None,
        count: int,
        candidates: str | None = None,
    ) -> list[Position]:
        rows = self.run(_positions_statement, after, end, candidates, count=count)
        return [Position(*row) for row in rows]

    def run(
        self,
        make_statement: Callable[[Scan], Statement[Any]],
        after: Position | None = None,
        end: Position | None = None,
        candidate_set: str | None = None,
        **values: Any,
    ) -> list[Any]:
        """The rows of the statement for tasks from `after`, exclusive, to `end`, inclusive."""
        # A cursor from a list with other filters may be outside of this list's bounds.
        further = min if self._sort == NEWEST_FIRST else max
        after, end = further(after or self._start, self._start), end or self._end
        values |= {"after_time": after.time, "after_id": after.id}
        values |= {"end_time": end.time, "end_id": end.id}
        statement = make_statement(Scan(self.filters, self._sort, candidate_set))
        return list(read_all(statement, **self.values, **values))

    def _smallest_set(self) -> str | None:
        """The name of the smallest set of candidates; None if all sets are too large."""
        maximum, part = MAX_CANDIDATES + 1, self.values.get("q", "")
        sizes: dict[str, int] = {}
        if names := self.filters & frozenset(_SETS):
            [row] = read_all(_sizes_statement(names), **self.values, maximum=maximum)
            sizes = row._asdict()
        if trigrams := name_index.trigram_query(part):
            with reading() as connection:
                if name_index.is_usable(connection, part):
                    name = connection.dialect.name
                    patterns = {"trigrams": trigrams, "name_pattern": name_index.like_pattern(part)}
                    [named] = _BY_NAME[name][0].all(connection, **patterns, maximum=maximum)
                    # The candidates are stored, since a second search in names would be slow.
                    sizes[name], self.values["candidates"] = named.size, named.ids or []
        smallest = min(sizes, key=sizes.__getitem__, default=None)
        return smallest if smallest is not None and sizes[smallest] <= MAX_CANDIDATES else None


def _size(rows: Sequence[TaskRow]) -> int:
    return sum([len(row.json or b"") for row in rows])


def ids_with_prefix(caller: Caller, digits: str) -> list[str]:
    """At most two task IDs that begin with `digits`: hexadecimal digits without hyphens."""
    is_between = Task.id.between(digits.ljust(32, "0"), digits.ljust(32, "f"))
    ids = select(Task.id).where(is_between, unindexed([visible_tasks])).limit(2)
    return [row.id for row in read_all(ids, **caller.scope)]


def summaries(caller: Caller, positions: Sequence[Position]) -> list[TaskRow]:
    """The tasks at these positions, in the same order, with the columns that a table shows."""
    ids = [position.id for position in positions]
    return TaskList(caller, Selection()).read(ids, _summaries_statement)


# The maximum number of children of a task that are counted.
MAX_CHILDREN = 100


def children_of(rows: Sequence[TaskRow]) -> dict[str, AnyRow]:
    """The number of children of each task, by task ID; tasks without children are omitted.

    A row contains `count`, the number of children up to MAX_CHILDREN, and `failed`, the number of
    these children that failed or timed out.
    """
    ids = [row.id for row in rows]
    return {row.id: row for row in read_all(_CHILDREN, task_ids=ids) if row.count}


_other = aliased(Task)
_children = select(_other.error_type).where(_other.parent_id == Task.id).limit(MAX_CHILDREN)
_counted = _children.correlate(Task).subquery()
_counts = {
    "count": func.count(),
    "failed": func.count().filter(_counted.c.error_type != CANCELLED),
}
_CHILDREN = Statement[AnyRow](
    select(
        Task.id,
        *(
            select(count).select_from(_counted).scalar_subquery().label(name)
            for name, count in _counts.items()
        ),
    ).where(types.is_among(Task.id, "task_ids"))
)


def _indexed_filters(filters: Filters, sort: str) -> Filters:
    """The filter that an index with this sort order covers, as a set with one filter.

    The set is empty if there is no such index.
    """
    names = () if sort == BY_END else _IN_AN_INDEX
    return frozenset([name for name in names if name in filters][:1])


@lru_cache(maxsize=STATEMENTS)
def _sizes_statement(names: Filters) -> Statement[AnyRow]:
    """Selects the size of each candidate set in `names`, counted up to a limit."""
    sizes = []
    for name in names:
        limited = _SETS[name].limit(bindparam("maximum")).subquery()
        sizes.append(select(func.count()).select_from(limited).scalar_subquery().label(name))
    return Statement(select(*sizes))


@lru_cache(maxsize=STATEMENTS)
def _positions_statement(scan: Scan) -> Statement[AnyRow]:
    return Statement(in_order(scan).limit(bindparam("count")))


@lru_cache(maxsize=STATEMENTS)
def _nth_position_statement(scan: Scan) -> Statement[AnyRow]:
    of_index = scan._replace(filters=_indexed_filters(scan.filters, scan.sort))
    return Statement(in_order(of_index).offset(bindparam("skipped")).limit(1))


@lru_cache(maxsize=STATEMENTS)
def _listed_statement(shape: Shape, scan: Scan) -> Statement[TaskRow]:
    # The ID is read as it is stored, since converting every ID would be slow, and only a few IDs
    # are used.
    columns = (_sort_column(scan.sort).label("time"), type_coerce(Task.id, Text))
    statement = in_order(scan).with_only_columns(*columns, *_listed_columns(shape))
    return Statement(statement.limit(bindparam("count")))


@lru_cache(maxsize=STATEMENTS)
def _runs_statement(scan: Scan) -> Statement[AnyRow]:
    tasks = select(Task.created_at, Task.id, Task.claimed_at, Task.finished_at)
    return Statement(tasks.where(*_conditions_of(scan), Task.claimed_at.is_not(None)))


def in_order(scan: Scan, *conditions: ColumnElement[bool]) -> Any:
    """A SELECT of the positions of the tasks that match `scan` and `conditions`, in list order."""
    column = _sort_column(scan.sort)
    order = (column.desc(), Task.id.desc()) if scan.sort == NEWEST_FIRST else (column, Task.id)
    return select(column, Task.id).where(*_conditions_of(scan), *conditions).order_by(*order)


def _conditions_of(scan: Scan) -> list[ColumnElement[bool]]:
    """The conditions of a list; SQLite reads the index in the list's order, or a candidate set."""
    after, end = (
        tuple_(
            bindparam(f"{name}_time", type_=Timestamp()), bindparam(f"{name}_id", type_=Identifier)
        )
        for name in ("after", "end")
    )
    is_later, is_not_later = (lt, ge) if scan.sort == NEWEST_FIRST else (gt, le)
    key = tuple_(_sort_column(scan.sort), Task.id)
    between = (is_later(key, after), is_not_later(key, end))
    chosen = scan.candidate_set
    if chosen is None:
        indexed = _indexed_filters(scan.filters, scan.sort)
        return [*_conditions(scan.filters, indexed), *between]
    is_candidate = _BY_NAME[chosen][1] if chosen in _BY_NAME else Task.id.in_(_SETS[chosen])
    unchecked = scan.filters - {chosen}
    return [is_candidate, unindexed([*_conditions(unchecked, unchecked), *between])]


def _sort_column(sort: str) -> Any:
    return Task.finished_at if sort == BY_END else Task.created_at


# The database converts tasks to JSON; doing this in Python would make lists much slower.

# A task is read separately if its log has more bytes than MAX_LOG_BYTES, or if its input, output or
# error message has more characters than MAX_TEXT_LENGTH.
MAX_LOG_BYTES = 8 * 1024
MAX_TEXT_LENGTH = 4 * 1024


def _listed_columns(shape: Shape) -> list[Any]:
    """The columns of a list: a task's JSON, and the IDs of the objects that `shape` expands."""
    text = _task_as_json(shape.schema).label("json")
    return [Task.user_id, Task.agent_id, text] if shape.expand else [text]


def _task_as_json(schema: TaskSchema) -> ColumnElement[bytes | None]:
    """SQL for a task as the JSON that `schema` would dump; NULL if a field is large."""
    names = schema.dump_fields.keys()
    texts, values, are_small = zip(
        *(_value(schema, name, field) for name, field in schema.dump_fields.items()), strict=True
    )
    template = ",".join(f'"{name}":{text}' for name, text in zip(names, texts, strict=True))
    return case((and_(*are_small), types.utf8(types.formatted("{" + template + "}", *values))))


def _value(schema: TaskSchema, name: str, field: fields.Field[Any]) -> tuple[str, Any, Any]:
    """A JSON template with `%s` for the value, its SQL, and SQL that tests whether it is small."""
    if isinstance(field, Lines):
        lines = case((Task.first_log <= Task.log_count, _LINES))
        return "[%s]", lines, Task.log_bytes <= MAX_LOG_BYTES
    if isinstance(field, TaskError):
        length = func.coalesce(func.length(Task.error_message), 0)
        error = case((Task.error_type.is_(None), "null"), else_=_ERROR)
        return "%s", error, length <= MAX_TEXT_LENGTH
    column: Any = schema.columns[name]
    if isinstance(field, StoredJson):
        return "%s", column, func.length(column) <= MAX_TEXT_LENGTH
    if isinstance(field, OpenQuestions):
        # A task with questions is read separately: Python finds out which of the questions are
        # still open.
        return "%s", column, column == NO_QUESTIONS
    if isinstance(field, fields.Integer):
        return "%s", column, true()
    if isinstance(field, StoredNumber):
        return "%s", func.coalesce(column, "null"), true()
    if not isinstance(column.type, Uuid | Timestamp):
        return "%s", types.json_string(column), true()
    # All tasks of a list have the same user, so the user ID is formatted once, as a constant.
    text = types.api_text(_user_id if column is Task.user_id else column)
    # IDs and times contain no characters that JSON escapes.
    if not column.nullable:
        return '"%s"', text, true()
    return "%s", case((column.is_(None), "null"), else_=types.json_string(text)), true()


_ERROR = types.formatted(
    '{"type":%s,"message":%s}',
    types.json_string(Task.error_type),
    types.json_string(Task.error_message),
)
# The lines become one JSON string, in which each escaped line feed, `\n`, is then replaced by the
# boundary between two strings. The `\n` in `\\n` is not a line feed, so each `\\` is first replaced
# by the character U+0001, which JSON never contains.
_STRING = types.json_string(TEXT_OF_LOG)
_STRINGS = func.replace(func.replace(func.replace(_STRING, r"\\", "\1"), r"\n", '","'), "\1", r"\\")
_LINES = select(_STRINGS).scalar_subquery()


def still_match(filters: Filters) -> tuple[ColumnElement[bool], ...]:
    """The conditions for `TaskList.read`: the task has one of the IDs, and matches the filters."""
    return types.is_among(Task.id, "task_ids"), unindexed(_conditions(filters, filters))


@lru_cache(maxsize=STATEMENTS)
def _tasks_at_statement(shape: Shape, filters: Filters) -> Statement[TaskRow]:
    return Statement(select(Task.id, *_listed_columns(shape)).where(*still_match(filters)))


@lru_cache(maxsize=STATEMENTS)
def _large_task_statement(shape: Shape, filters: Filters) -> Statement[TaskRow]:
    # The input and the output can each contain a megabyte, so they are read only if they are
    # needed.
    left_out = {"input", "output"} - shape.schema.columns.keys()
    columns = [column for column in TASK_COLUMNS if column.key not in left_out]
    return Statement(with_log_id([*columns, null().label("json")]).where(*still_match(filters)))


@lru_cache(maxsize=STATEMENTS)
def _summaries_statement(filters: Filters) -> Statement[TaskRow]:
    large = {"input", "output", "error_message", "questions"}
    columns = [column for column in TASK_COLUMNS if column.key not in large]
    start = func.substr(Task.error_message, 1, 4_000).label("error_message")
    asks = (Task.questions != NO_QUESTIONS).label("asks")
    parent = select(_other.name).where(_other.id == Task.parent_id).correlate(Task)
    names = parent.scalar_subquery().label("parent_name")
    return Statement(select(*columns, start, asks, names).where(*still_match(filters)))


# The maximum number of tasks, newest first, that are checked against the filters and counted.
MAX_COUNTED = 5_000
CLAIMED = "claimed"
# The condition of each state: a status, an error type, or waiting, claimed or hanging.
STATES: dict[str, ColumnElement[bool]] = {
    **{status: Task.status == status for status in STATUSES},
    WAITING: IS_WAITING,
    CLAIMED: and_(Task.status == RUNNING, Task.claimed_at.is_not(None)),
    HANGING: CONDITIONS[HANGING],
    **{error_type: Task.error_type == error_type for error_type in ERROR_TYPES},
}


def count_by_state(
    caller: Caller, selection: Selection, maximum: int
) -> tuple[dict[str, int], bool]:
    """The number of tasks in each state; the selection's filters by state are ignored.

    Without other filters, each count stops at `maximum`, and only claimed tasks among the first
    `maximum` running tasks are counted. With other filters, the newest MAX_COUNTED tasks, or the
    tasks in the smallest candidate set, are counted. The second value is false if older tasks were
    not counted.
    """
    of_all_states = selection._replace(
        status=None, errorType=None, claimed=None, hanging=None, sort=NEWEST_FIRST
    )
    tasks, end = TaskList(caller, of_all_states), None
    if tasks.filters:
        [row], end = tasks.newest(_counts_statement, MAX_COUNTED)
    else:
        [row] = read_all(_LIMITED_COUNTS, **tasks.values, maximum=maximum)
    return dict(zip(STATES, row, strict=True)), end is None


def _limited_count(state: str) -> Any:
    # The index of waiting tasks is sorted by agent first, so it can't find tasks by creation time.
    created = CONDITIONS["created"] if state != WAITING else unindexed([CONDITIONS["created"]])
    # No index contains only claimed tasks, so the running tasks are searched for them.
    counted, among = (Task.claimed_at, RUNNING) if state == CLAIMED else (Task.id, state)
    is_found = STATES[among]
    rows = select(counted).where(tasks_of_user, created, is_found).limit(bindparam("maximum"))
    return select(func.count(rows.subquery().c[0])).scalar_subquery()


_LIMITED_COUNTS = Statement[Any](select(*map(_limited_count, STATES)))


@lru_cache(maxsize=STATEMENTS)
def _counts_statement(scan: Scan) -> Statement[AnyRow]:
    # With GROUP BY, SQLite would read all tasks of the user in the order of their status.
    counts = [func.count().filter(is_in_state) for is_in_state in STATES.values()]
    return Statement(select(*counts).where(*_conditions_of(scan)))
