"""Reads of many tasks: whole lists, pages, the rows of a table, and counts."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from heapq import nlargest
from itertools import groupby, pairwise
from operator import ge, gt, le, lt
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from marshmallow import fields
from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    TextualSelect,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    not_,
    null,
    select,
    text,
    true,
    tuple_,
    type_coerce,
)

from taskservice.auth import Caller, tasks_of_user, visible_tasks
from taskservice.database import clock, name_index
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.connections import Statement
from taskservice.database.models import Delivery, Question, Task, TaskLabel
from taskservice.database.transactions import current_time, read_all, reading
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    ListedTask,
    Timestamp,
    api_text,
    formatted,
    in_list,
    is_among,
    json_string,
    next_limit,
    position_in_text,
    utf8,
)
from taskservice.schemas.fields import NO_QUESTIONS, Lines, OpenQuestions, StoredJson, StoredNumber
from taskservice.schemas.tasks import TASK_COLUMNS, TaskError, TaskSchema
from taskservice.services.logs import TEXT_OF_LOG
from taskservice.services.questions import can_be_answered
from taskservice.services.task_json import Shape
from taskservice.services.tasks import with_log
from taskservice.terms import ERROR_TYPES, FAILED, MAX_LABELS, PENDING, RUNNING, SORTS, STATUSES

T = TypeVar("T")

# The conditions of a list as SQL, and which of its filters an index in its order covers.

NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS
# Each label of a selection is a filter of its own, and all must match.
LABELS = tuple(f"label{number}" for number in range(MAX_LABELS))
# The text repeats the WHERE of the index `tasks_asking`.
_is_asking = and_(
    text("tasks.questions <> '[]'"),
    exists(select(1).where(Question.task_id == Task.id, can_be_answered)),
)
_of_callback = (Delivery.task_id == Task.id, Delivery.hook_id.is_(None))
# Filter, under the name of its parameter -> its condition; the bounds are exclusive.
CONDITIONS: dict[str, ColumnElement[bool]] = {
    # Together with `tasks_of_user` the same as `visible_tasks`, whose OR would keep SQLite from
    # using the index of an agent.
    "own_agent_id": Task.agent_id == bindparam("own_agent_id"),
    "agent_id": Task.agent_id == bindparam("agent_id"),
    "error_type": Task.error_type == bindparam("error_type"),
    "status": Task.status == bindparam("status"),
    "created_after": Task.created_at > bindparam("created_after", type_=Timestamp()),
    "created_before": Task.created_at < bindparam("created_before", type_=Timestamp()),
    "finished_after": Task.finished_at > bindparam("finished_after", type_=Timestamp()),
    "claimed": Task.claimed_at.is_not(None),
    "unclaimed": Task.claimed_at.is_(None),
    "asking": _is_asking,
    "not_asking": not_(_is_asking),
    "parent_id": Task.parent_id == bindparam("parent_id", type_=Identifier),
    "name_part": position_in_text(Task.name_folded, bindparam("name_part", type_=Text())) > 0,
    "delivery": exists(select(1).where(*_of_callback, Delivery.state == bindparam("delivery"))),
} | {
    name: exists(select(1).where(TaskLabel.task_id == Task.id, TaskLabel.label == bindparam(name)))
    for name in LABELS
}
# The names of the given filters; a statement is compiled once for each set of them.
Filters: TypeAlias = frozenset[str]
# The filters with an index of their own in the order of creation; the most selective first.
_IN_AN_INDEX = ("asking", "own_agent_id", "agent_id", "error_type", "status")


class Selection(NamedTuple):
    """The filters and the order of a list; the bounds are exclusive."""

    status: str | None = None
    error_type: str | None = None
    is_claimed: bool | None = None
    is_asking: bool | None = None
    agent_id: str | None = None
    parent_id: str | None = None
    # Each as `key:value`.
    labels: tuple[str, ...] = ()
    name_part: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    finished_after: str | None = None
    # Only tasks with a delivery in this state.
    delivery: str | None = None
    sort: str = NEWEST_FIRST


def parameters(caller: Caller, selection: Selection) -> dict[str, Any]:
    """Parameter -> value, for the user and the given filters."""
    values = selection._asdict() | {"user_id": caller.user_id, "own_agent_id": caller.agent_id}
    sort, labels, is_claimed, is_asking = (
        values.pop(name) for name in ("sort", "labels", "is_claimed", "is_asking")
    )
    values |= dict(zip(LABELS, dict.fromkeys(labels), strict=False))
    if is_claimed is not None:
        values["claimed" if is_claimed else "unclaimed"] = True
    if is_asking is not None:
        values["asking" if is_asking else "not_asking"] = True
    if sort == BY_END and selection.finished_after is None:
        # This list contains finished tasks only.
        values["finished_after"] = EARLIEST
    if selection.name_part:
        values["name_part"] = selection.name_part.casefold()
    return {name: value for name, value in values.items() if value is not None}


def indexed_filters(filters: Filters, sort: str) -> Filters:
    """The filters that one index in this order covers: it skips the tasks that do not match."""
    if sort == BY_END:
        return filters & {"finished_after"}
    # Each of these has an index of its own.
    first = next((name for name in _IN_AN_INDEX if name in filters), "")
    return filters & (CREATION | {first})


def conditions(filters: Filters, by_index: Filters | None = None) -> list[ColumnElement[bool]]:
    """The conditions of these filters; SQLite may use an index only for those in `by_index`.

    The default is all filters. Without statistics, SQLite would often prefer another index to the
    one in the list's order.
    """
    by_index = filters if by_index is None else by_index
    searched = [CONDITIONS[name] for name in CONDITIONS if name in by_index]
    checked = [CONDITIONS[name] for name in CONDITIONS if name in filters - by_index]
    return [tasks_of_user, *searched, *([unindexed(checked)] if checked else [])]


def unindexed(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form for which SQLite uses no index."""
    return and_(*conditions).is_(true())


# Candidates: the tasks that match one filter, if they are few enough to be read and sorted.

# The maximum number of tasks that are read by their ids, and sorted, for one page.
MAX_CANDIDATES = 5_000
# Written as in the conditions of the indexes, so that the database uses them.
_DELIVERY_STATES = {state: text(f"deliveries.state = '{state}'") for state in (PENDING, FAILED)}
# The sets that the index of names finds: on SQLite by row number, on PostgreSQL by id.
ROWS_BY_NAME, BY_NAME = "rows by name", "name"
# The filters that each index in the order of creation also covers.
CREATION = frozenset({"created_after", "created_before"})
# A set of candidates -> the filters of its index. One of these filters selects the set.
_SETS: dict[str, Filters] = {
    name: frozenset({name}) for name in (*_IN_AN_INDEX, "parent_id", "finished_after")
} | {"creation": CREATION}
# Tasks that no agent has claimed. The text repeats the WHERE of the index `tasks_unclaimed`.
# `agent_id > ''` is always true; it makes SQLite prefer that index to the index by status.
WAITING = "waiting"
IS_WAITING: Any = text(
    "tasks.status = 'running' AND tasks.claimed_at IS NULL AND tasks.agent_id > ''"
)


def _sizes(connection: Connection, filters: Filters, values: Mapping[str, Any]) -> dict[str, int]:
    """The size of each set that an index of tasks or deliveries gives, counted up to a limit."""
    names = tuple(name for name, of_index in _SETS.items() if of_index & filters)
    names += tuple(name for name in LABELS if name in filters)
    if "delivery" in filters:
        names += (values["delivery"],)
    if "unclaimed" in filters and values.get("status") == RUNNING:
        names += (WAITING,)
    if not names:
        return {}
    statement = _sizes_statement(names, filters)
    sizes: Any = statement.all(connection, **values, maximum=MAX_CANDIDATES + 1)[0]
    return dict(zip(names, sizes, strict=True))


@lru_cache(maxsize=256)
def _sizes_statement(names: tuple[str, ...], filters: Filters) -> Statement[AnyRow]:
    limited = [_ids(name, filters).limit(bindparam("maximum")).subquery() for name in names]
    sizes = [select(func.count()).select_from(each).scalar_subquery() for each in limited]
    return Statement(select(*(size.label(f"size{i}") for i, size in enumerate(sizes))))


def _by_name_statement(candidates: TextualSelect, aggregate: Any) -> Statement[AnyRow]:
    """The `size` of a set, counted up to a limit, and its `ids`, as one value."""
    ids = select(candidates.subquery().c.id).limit(bindparam("maximum")).subquery().c.id
    return Statement(select(func.count().label("size"), aggregate(ids).label("ids")))


_BY_NAME = {
    ROWS_BY_NAME: _by_name_statement(name_index.CANDIDATES, func.json_group_array),
    BY_NAME: _by_name_statement(
        name_index.POSTGRESQL_CANDIDATES, lambda ids: func.array_agg(cast(ids, Text()))
    ),
}


def implied(name: str) -> Filters:
    """The filters that all candidates of this set match, so that they need no second check."""
    if name in _DELIVERY_STATES:
        return frozenset({"delivery"})
    if name == WAITING:
        return frozenset({"status", "unclaimed"})
    return frozenset({name}) if name in LABELS else _SETS.get(name, frozenset())


def are_among(name: str, filters: Filters) -> ColumnElement[bool]:
    """The condition that a task is one of the candidates of this set."""
    if name == ROWS_BY_NAME:
        return in_list(literal_column("tasks.rowid"), bindparam("candidates", type_=Text()))
    if name == BY_NAME:
        return is_among(Task.id, "candidates")
    return Task.id.in_(_ids(name, filters))


def _ids(name: str, filters: Filters) -> AnySelect:
    if name in _DELIVERY_STATES:
        has_same_user = Delivery.user_id == bindparam("user_id", type_=Identifier)
        of_callbacks = (has_same_user, Delivery.hook_id.is_(None))
        return select(Delivery.task_id).where(*of_callbacks, _DELIVERY_STATES[name])
    if name in LABELS:
        has_same_user = TaskLabel.user_id == bindparam("user_id", type_=Identifier)
        return select(TaskLabel.task_id).where(has_same_user, TaskLabel.label == bindparam(name))
    if name == WAITING:
        return select(Task.id).where(tasks_of_user, IS_WAITING)
    matching = (CONDITIONS[each] for each in _SETS[name] & filters)
    return select(Task.id).where(tasks_of_user, *matching)


# The tasks of a list in its order: their positions, and the search for matching tasks.

# How many tasks are checked against the filters: first a few, which is enough if many match. If
# MAX_SEARCHED more are not enough either, the page ends, and the next page continues from there.
FIRST_SEARCHED = 500
MAX_SEARCHED = 20_000
# The number of compiled statements that are kept of each kind.
STATEMENTS = 256

# The parameters of the given bounds: `after_...`, `end_...`, or both.
Bounds: TypeAlias = frozenset[str]
# Bound -> the filter that it replaces: it is narrower, and SQLite must search the index by it.
_SUPERSEDED = {
    NEWEST_FIRST: {"after_id": "created_before", "end_id": "created_after"},
    OLDEST_FIRST: {"after_id": "created_after", "end_id": "created_before"},
    BY_END: {"after_id": "finished_after"},
}


class Position(NamedTuple):
    """The position of one task in a list; a cursor is the position of a page's last task."""

    # The task's `created_at`; `finished_at` if the list is sorted by it.
    moment: str
    id: str


# Before the first task of each order.
_FIRST = Position(EARLIEST, LOWEST_ID)
_LAST = Position("9999-12-31T23:59:59.999Z", "ffffffff-ffff-ffff-ffff-ffffffffffff")
START = {NEWEST_FIRST: _LAST, OLDEST_FIRST: _FIRST, BY_END: _FIRST}


class SearchResult(NamedTuple):
    """Positions in a list; `reached` is set if the search stopped before the end of the list."""

    positions: list[Position]
    reached: Position | None = None


class Scan(NamedTuple):
    """All that the SQL of a list depends on: the key under which a compiled statement is kept.

    With a `candidate_set`, its tasks are read and sorted; else an index in this order is read.
    """

    filters: Filters
    bounds: Bounds
    sort: str
    candidate_set: str | None = None


class OrderedTasks:
    """The tasks of a selection in its order, read on one connection."""

    def __init__(self, connection: Connection, caller: Caller, selection: Selection) -> None:
        self._connection, self._sort = connection, selection.sort
        self._values = parameters(caller, selection)
        self._filters = frozenset(self._values) - {"user_id"}
        name_part = self._values.get("name_part", "")
        trigrams = name_index.trigram_query(name_part)
        if trigrams is not None:
            self._values["trigrams"] = trigrams
            self._values["name_pattern"] = name_index.like_pattern(name_part)
        # Whether the index in this order covers all filters, so that each task read is listed.
        self.are_indexed = self._filters == indexed_filters(self._filters, self._sort)

    def search(self, after: Position | None, count: int) -> SearchResult:
        """The next `count` positions among a limited number of tasks, or among few candidates."""
        found: list[Position] = []
        for number in (FIRST_SEARCHED, MAX_SEARCHED):
            end = self.position(after, number)
            found += self.positions(after, end, count - len(found))
            if end is None or len(found) == count:
                return SearchResult(found)
            after = end
            candidate_set = self.smallest_set() if number == FIRST_SEARCHED else None
            if candidate_set is not None:
                rest = self.positions(after, None, count - len(found), candidate_set)
                return SearchResult(found + rest)
        return SearchResult(found, after)

    def position(self, after: Position | None, number: int) -> Position | None:
        """The position `number` tasks later in the index in this order, if there is one.

        A search finds its end before it starts: if a task were deleted in between, it would
        otherwise stop too late, and skip a task.
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
        candidates: str | None = None,
    ) -> list[Position]:
        """The first `count` positions from `after`, exclusive, to `end`, inclusive."""
        rows = self.run(_positions_statement, after, end, candidates, count=count)
        return [Position(*row) for row in rows]

    def run(
        self,
        make_statement: Callable[[Scan], Statement[AnyRow]],
        after: Position | None = None,
        end: Position | None = None,
        candidate_set: str | None = None,
        **values: Any,
    ) -> list[AnyRow]:
        """The rows of the statement for these filters, bounds and candidates."""
        bounds = _bounds(after, end)
        scan = Scan(self._filters, frozenset(bounds), self._sort, candidate_set)
        return make_statement(scan).all(self._connection, **self._values, **bounds, **values)

    def newest(
        self, make_statement: Callable[[Scan], Statement[AnyRow]], maximum: int
    ) -> tuple[list[AnyRow], Position | None]:
        """The rows for few candidates, or for the newest `maximum` tasks, and where these end."""
        candidate_set = self.smallest_set()
        end = None if candidate_set else self.position(None, maximum)
        return self.run(make_statement, None, end, candidate_set), end

    def smallest_set(self) -> str | None:
        """The name of the smallest set of candidates; None if all sets are too large.

        Stores the result of the name search in the values, since searching again is slow.
        """
        connection, values = self._connection, self._values
        sizes = _sizes(connection, self._filters, values)
        if "trigrams" in values and name_index.is_usable(connection, values["name_part"]):
            name = ROWS_BY_NAME if connection.dialect.name == "sqlite" else BY_NAME
            row: Any = _BY_NAME[name].all(connection, **values, maximum=MAX_CANDIDATES + 1)[0]
            sizes[name], values["candidates"] = row.size, row.ids or []
        smallest = min(sizes, key=sizes.__getitem__, default=None)
        return smallest if smallest is not None and sizes[smallest] <= MAX_CANDIDATES else None


def _bounds(after: Position | None, end: Position | None) -> dict[str, str]:
    bounds = {"after_time": after.moment, "after_id": after.id} if after else {}
    return bounds | ({"end_time": end.moment, "end_id": end.id} if end else {})


@lru_cache(maxsize=STATEMENTS)
def _positions_statement(scan: Scan) -> Statement[AnyRow]:
    return Statement(in_order(conditions_of(scan), scan.sort).limit(bindparam("count")))


@lru_cache(maxsize=STATEMENTS)
def _nth_position_statement(scan: Scan) -> Statement[AnyRow]:
    of_index = scan._replace(filters=indexed_filters(scan.filters, scan.sort))
    found = in_order(conditions_of(of_index), scan.sort)
    return Statement(found.offset(bindparam("skipped")).limit(1))


def conditions_of(scan: Scan) -> list[ColumnElement[bool]]:
    """The conditions of a list, so that SQLite reads the index of its order, or the candidates."""
    filters, between = scan.filters, _between(scan.bounds, scan.sort)
    if scan.candidate_set is None:
        superseded = _SUPERSEDED[scan.sort]
        wider = {superseded[name] for name in scan.bounds if name in superseded}
        indexed = indexed_filters(filters, scan.sort) - wider
        return [*conditions(filters, indexed), *between]
    unchecked = filters - implied(scan.candidate_set)
    fitting = unindexed([*conditions(unchecked), *between])
    return [are_among(scan.candidate_set, filters), fitting]


def in_order(conditions: Sequence[ColumnElement[bool]], sort: str) -> Any:
    """SELECT the positions of matching tasks, in this order."""
    column = sort_column(sort)
    order = (column.desc(), Task.id.desc()) if sort == NEWEST_FIRST else (column, Task.id)
    return select(column, Task.id).where(*conditions).order_by(*order)


def sort_column(sort: str) -> Any:
    return Task.finished_at if sort == BY_END else Task.created_at


def _between(bounds: Bounds, sort: str) -> Iterator[ColumnElement[bool]]:
    """The conditions that a task comes after `after`, and not after `end`."""
    key = tuple_(sort_column(sort), Task.id)
    is_later, is_not_later = (lt, ge) if sort == NEWEST_FIRST else (gt, le)
    for name, compare in (("after", is_later), ("end", is_not_later)):
        if f"{name}_id" in bounds:
            time = bindparam(f"{name}_time", type_=Timestamp())
            yield compare(key, tuple_(time, bindparam(f"{name}_id", type_=Identifier)))


# Tasks as JSON that the database writes: Python would make lists much slower.

# A task above one of these limits is read alone: the size of its log in bytes; the length of its
# input, output or error message in characters.
MAX_LOG_BYTES = 8 * 1024
MAX_TEXT_LENGTH = 4 * 1024


def task_as_json(schema: TaskSchema) -> ColumnElement[bytes | None]:
    """SQL for a task as the JSON that `schema` would dump; NULL if a field is large."""
    values = {name: _value(name, field, schema) for name, field in schema.dump_fields.items()}
    return case((_is_small(schema), utf8(_object(values))))


def _is_small(schema: TaskSchema) -> ColumnElement[bool]:
    small: list[ColumnElement[bool]] = [true()]
    for name, field in schema.dump_fields.items():
        if isinstance(field, StoredJson):
            small.append(func.length(schema.columns[name]) <= MAX_TEXT_LENGTH)
        elif isinstance(field, OpenQuestions):
            # Python decides whether they are still open.
            small.append(Task.questions == NO_QUESTIONS)
        elif isinstance(field, Lines):
            small.append(Task.log_bytes <= MAX_LOG_BYTES)
        elif isinstance(field, TaskError):
            small.append(func.coalesce(func.length(Task.error_message), 0) <= MAX_TEXT_LENGTH)
    return and_(*small)


def _object(values: dict[str, tuple[str, Any]]) -> ColumnElement[str]:
    """SQL for a JSON object. Field -> its JSON with one `%s`, and the SQL that replaces `%s`."""
    template = ",".join(f'"{name}":{text}' for name, (text, _) in values.items())
    return formatted("{" + template + "}", *(value for _, value in values.values()))


def _value(name: str, field: fields.Field[Any], schema: TaskSchema) -> tuple[str, Any]:
    if isinstance(field, Lines):
        return "[%s]", case((Task.first_log <= Task.log_count, _LINES))
    if isinstance(field, TaskError):
        return "%s", case((Task.error_type.is_(None), "null"), else_=_ERROR)
    column: Any = schema.columns[name]
    if isinstance(field, fields.Integer | StoredJson | OpenQuestions):
        return "%s", column
    if isinstance(field, StoredNumber):
        return "%s", func.coalesce(column, "null")
    if not isinstance(column.type, Uuid | Timestamp):
        return "%s", json_string(column)
    # All tasks of a list have the same user, so this id is formatted once, as a constant.
    is_user = column is Task.user_id
    text = api_text(bindparam("user_id", type_=Identifier) if is_user else column)
    # An id or a time has no characters that JSON escapes.
    if not column.nullable:
        return '"%s"', text
    return "%s", case((column.is_(None), "null"), else_=json_string(text))


_ERROR = _object(
    {
        "type": ("%s", json_string(Task.error_type)),
        "message": ("%s", json_string(Task.error_message)),
    }
)
# All lines become one JSON string, in which the border between two strings then replaces each `\n`.
# Before that, `\1`, which JSON does not contain, replaces `\\`: `\\n` is not a line feed.
_STRING = json_string(TEXT_OF_LOG)
_STRINGS = func.replace(func.replace(func.replace(_STRING, r"\\", "\1"), r"\n", '","'), "\1", r"\\")
_LINES = select(_STRINGS).scalar_subquery()


# How many positions of a whole list one search finds.
POSITIONS_PER_READ = 1_000
# Maximum number of tasks of one read, if the tasks before were small; and of the first read.
TASKS_PER_READ = 400
TASKS_OF_FIRST_READ = 100
# How many characters of an error message a table shows.
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
    """The next `limit` tasks, as `tasks_at` yields them, and the end of the page if more follow."""
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
    # With a bound, the first page runs the same compiled statement as the others.
    after = after or START[selection.sort]
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        if not tasks.are_indexed:
            return None
        return tasks.run(partial(_listed_statement, shape), after, count=count)


@lru_cache(maxsize=STATEMENTS)
def _listed_statement(shape: Shape, scan: Scan) -> Statement[AnyRow]:
    # The id is as the database stores it: only the last task's is used, in its position.
    time = api_text(sort_column(scan.sort)).label("time")
    columns = (time, type_coerce(Task.id, Text), *_listed_columns(shape))
    found = in_order(conditions_of(scan), scan.sort).with_only_columns(*columns)
    return Statement(found.limit(bindparam("count")))


def _position_of(row: Any) -> Position:
    return Position(row.time, str(UUID(row.id)))


def page_positions(
    caller: Caller, selection: Selection, after: Position | None, limit: int
) -> SearchResult:
    """The next `limit` positions; `reached` is the end of the page, if there is a next one."""
    wanted, reached = positions(caller, selection, after, limit + 1)
    if len(wanted) > limit:
        return SearchResult(wanted[:limit], wanted[limit - 1])
    return SearchResult(wanted, reached)


def positions(
    caller: Caller, selection: Selection, after: Position | None, count: int
) -> SearchResult:
    """The next `count` positions of the list; fewer at its end, or if the search stopped."""
    if selection.sort == BY_END and selection.status == RUNNING:
        # A search for the next one would read all finished tasks.
        return SearchResult([])
    with reading() as connection:
        tasks = OrderedTasks(connection, caller, selection)
        if tasks.are_indexed:
            return SearchResult(tasks.positions(after, None, count))
        return tasks.search(after, count)


def ids_with_prefix(caller: Caller, digits: str) -> list[str]:
    """The ids, at most two, of tasks that begin with these hexadecimal digits (without hyphens)."""
    is_between = Task.id.between(digits.ljust(32, "0"), digits.ljust(32, "f"))
    found = select(Task.id).where(is_between, unindexed([visible_tasks])).limit(2)
    return [row.id for row in read_all(found, **caller.scope)]


def longest(caller: Caller, selection: Selection, count: int) -> SearchResult:
    """The positions of the tasks that ran longest, the longest first; no page follows.

    They are chosen among the newest MAX_SEARCHED tasks, of which `reached` is the oldest, or among
    few candidates.
    """
    with reading() as connection:
        ordered = OrderedTasks(connection, caller, selection)
        rows, end = ordered.newest(_runs_statement, MAX_SEARCHED)
        now = current_time(connection)

    def seconds(row: AnyRow) -> float:
        return clock.seconds_between(row.claimed_at, row.finished_at or now)

    longest = nlargest(count, rows, key=seconds)
    return SearchResult([Position(row.time, row.id) for row in longest], end)


@lru_cache(maxsize=STATEMENTS)
def _runs_statement(scan: Scan) -> Statement[AnyRow]:
    time = api_text(sort_column(scan.sort)).label("time")
    ran = Task.claimed_at.is_not(None)
    return Statement(
        select(time, Task.id, Task.claimed_at, Task.finished_at).where(*conditions_of(scan), ran)
    )


def tasks_at(
    caller: Caller, selection: Selection, wanted: Sequence[Position], shape: Shape
) -> Iterator[Sequence[ListedTask]]:
    """The tasks at these positions, in their order, in parts of bounded size.

    Each part is a read of its own, so that a slow reader holds no transaction.
    A task that was deleted or no longer matches the selection is left out.
    """
    start, count = 0, min(TASKS_OF_FIRST_READ, TASKS_PER_READ)
    while start < len(wanted):
        ids = [position.id for position in wanted[start : start + count]]
        found = read(caller, selection, ids, partial(_tasks_at_statement, shape))
        rows = {row.id: row for row in found}
        left = [rows[task_id] for task_id in ids if task_id in rows]
        yield from _parts(caller, selection, left, shape)
        start += len(ids)
        count = next_limit(len(ids), _size(found), TASKS_PER_READ)


def _size(rows: Sequence[ListedTask]) -> int:
    return sum([len(row.json or b"") for row in rows])


@lru_cache(maxsize=STATEMENTS)
def _tasks_at_statement(shape: Shape, filters: Filters) -> Statement[ListedTask]:
    return Statement(select(Task.id, *_listed_columns(shape)).where(*still_matches(filters)))


def _listed_columns(shape: Shape) -> list[Any]:
    """The columns of a list: a task's JSON, and the ids of the objects that `shape` embeds."""
    text = task_as_json(shape.schema).label("json")
    return [Task.user_id, Task.agent_id, text] if shape.expand else [text]


def _parts(
    caller: Caller, selection: Selection, rows: Sequence[ListedTask], shape: Shape
) -> Iterator[Sequence[ListedTask]]:
    """The same tasks; each large one is read again, alone."""
    for is_small, group in groupby(rows, lambda row: row.json is not None):
        if is_small:
            yield list(group)
        else:
            statement = partial(_large_task_statement, shape)
            yield from (read(caller, selection, [row.id], statement) for row in group)


def read(
    caller: Caller,
    selection: Selection,
    task_ids: Sequence[str],
    make_statement: Callable[[Filters], Statement[ListedTask]],
) -> Sequence[ListedTask]:
    """The tasks that still match the selection, read by the statement for its filters."""
    values = parameters(caller, selection)
    statement = make_statement(frozenset(values) - {"user_id"})
    return read_all(statement, **values, task_ids=task_ids)


def still_matches(filters: Filters) -> tuple[ColumnElement[bool], ...]:
    """The conditions that `read` needs: it has found a task before, and its filters match still."""
    return _IS_WANTED, unindexed(conditions(filters))


@lru_cache(maxsize=STATEMENTS)
def _large_task_statement(shape: Shape, filters: Filters) -> Statement[ListedTask]:
    # Without the texts, of up to a megabyte, that this shape leaves out.
    left_out = {"input", "output"} - shape.schema.columns.keys()
    columns = [column for column in TASK_COLUMNS if column.key not in left_out]
    return Statement(with_log([*columns, null().label("json")]).where(*still_matches(filters)))


_IS_WANTED: Any = is_among(Task.id, "task_ids")
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
    rows = {row.id: row for row in read_all(_SUMMARIES, task_ids=ids, **caller.scope)}
    return [rows[task_id] for task_id in ids if task_id in rows]


# Counts of tasks by status, for the tabs and the chart of a list; they stop at a limit.

# How many of the newest tasks are checked against the filters: for the tabs, which are counted for
# each page, and for the chart, which is cached.
MAX_COUNTED = 5_000
MAX_COUNTED_FOR_CHART = 10_000
MILLISECOND = 0.001
CLAIMED = "claimed"
# A status, an error's type, or whether an agent has claimed a running task -> its condition.
STATES: dict[str, ColumnElement[bool]] = {
    **{status: Task.status == status for status in STATUSES},
    WAITING: IS_WAITING,
    CLAIMED: and_(Task.status == RUNNING, Task.claimed_at.is_not(None)),
    **{error_type: Task.error_type == error_type for error_type in ERROR_TYPES},
}


class Counts(NamedTuple, Generic[T]):
    """Counts; unless they are complete, the search stopped early and there may be more tasks."""

    counts: T
    are_complete: bool = True


def count_by_state(caller: Caller, selection: Selection, maximum: int) -> Counts[dict[str, int]]:
    """State -> the number of tasks in it; the selection's own filter by state is ignored.

    If an index covers the filters, a count stops at `maximum`; claimed tasks are counted among
    `maximum` running ones. Other filters are applied to the newest MAX_COUNTED tasks, or to a set
    of candidates.
    """
    selection = selection._replace(status=None, error_type=None, is_claimed=None, sort=NEWEST_FIRST)
    values = parameters(caller, selection)
    with reading() as connection:
        filters = frozenset(values) - {"user_id"}
        if filters <= CREATION:
            statement = _limited_counts_statement(filters)
            row: Any = statement.all(connection, **values, maximum=maximum)[0]
            return Counts(dict(zip(STATES, row, strict=True)))
        ordered = OrderedTasks(connection, caller, selection)
        [row], end = ordered.newest(_count_statement, MAX_COUNTED)
        return Counts(dict(zip(STATES, row, strict=True)), end is None)


@lru_cache
def _limited_counts_statement(filters: Filters) -> Statement[AnyRow]:
    counts = []
    for state, is_in_state in STATES.items():
        # The index of waiting tasks is not ordered by creation over all agents.
        by_index = frozenset() if state == WAITING else filters
        # No index contains claimed tasks only: they are counted among the running ones.
        counted, is_found = (
            (Task.claimed_at, STATES[RUNNING]) if state == CLAIMED else (Task.id, is_in_state)
        )
        fits = [*conditions(filters, by_index), is_found]
        limited = select(counted).where(*fits).limit(bindparam("maximum")).subquery()
        counts.append(select(func.count(limited.c[0])).scalar_subquery())
    return Statement(select(*counts))


@lru_cache(maxsize=STATEMENTS)
def _count_statement(scan: Scan) -> Statement[AnyRow]:
    # With GROUP BY, SQLite would read all tasks of the user in the order of their status.
    counts = [func.count().filter(is_in_state) for is_in_state in STATES.values()]
    return Statement(select(*counts).where(*conditions_of(scan)))


def count_by_start(
    caller: Caller, selection: Selection, times: Sequence[str], statuses: tuple[str, ...]
) -> Counts[list[list[int]]]:
    """For each of `statuses`: how many tasks were started in each interval between `times`."""
    with reading() as connection:
        wanted = selection._replace(created_after=None, created_before=None, sort=NEWEST_FIRST)
        values = parameters(caller, wanted)
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
        ordered = OrderedTasks(connection, caller, wanted)
        rows, end = ordered.newest(_starts_statement, MAX_COUNTED_FOR_CHART)
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


@lru_cache(maxsize=STATEMENTS)
def _starts_statement(scan: Scan) -> Statement[AnyRow]:
    found = select(Task.created_at, Task.status)
    return Statement(found.where(*conditions_of(scan)))
