"""Candidates: the tasks that one filter leaves, if they are few enough to be read and sorted."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    TextualSelect,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    text,
)

from taskservice.auth import of_user
from taskservice.database import name_index
from taskservice.database.connections import Statement
from taskservice.database.models import Delivery, Task, TaskLabel
from taskservice.database.types import AnyRow, AnySelect, Identifier, Several, is_among
from taskservice.queries.selections import CONDITIONS, LABELS, Filters
from taskservice.terms import FAILED, PENDING, RUNNING

# The maximum number of tasks that are read by their ids, and sorted, for one page.
MAX_CANDIDATES = 5_000
# Written as in the indexes of these rows, so that they are used.
_DELIVERY_STATES = {
    PENDING: text("deliveries.state = 'pending'"),
    FAILED: text("deliveries.state = 'failed'"),
}
# The sets that the index of names finds: on SQLite, by row numbers, and on PostgreSQL, by ids.
ROWS_BY_NAME, BY_NAME = "rows by name", "name"
# A set of candidates -> the filters that its index has. One of them is enough to select it.
_SETS = {
    "agent": frozenset({"agent_id"}),
    "own agent": frozenset({"own_agent_id"}),
    "status": frozenset({"status"}),
    "error type": frozenset({"error_type"}),
    "children": frozenset({"parent_id"}),
    "creation": frozenset({"created_after", "created_before"}),
    "end": frozenset({"finished_after"}),
}


# Those that wait for an agent. Written as in their index, so that it is used: by the last
# condition, which holds for every task, SQLite prefers it to the index of the status.
WAITING = "waiting"
IS_WAITING: Any = text(
    "tasks.status = 'running' AND tasks.claimed_at IS NULL AND tasks.agent_id > ''"
)


def smallest_set(connection: Connection, filters: Filters, values: dict[str, Any]) -> str | None:
    """The name of the smallest set of candidates for these filters; None if all are too large.

    Puts what the index of names has found into `values`, since searching it again would take long.
    """
    sizes = _sizes(connection, filters, values)
    if "trigrams" in values and name_index.is_usable(connection, values["name_part"]):
        name = ROWS_BY_NAME if connection.dialect.name == "sqlite" else BY_NAME
        row: Any = _BY_NAME[name].all(connection, **values, maximum=MAX_CANDIDATES + 1)[0]
        sizes[name], values["candidates"] = row.size, row.ids or []
    smallest = min(sizes, key=sizes.__getitem__, default=None)
    return smallest if smallest is not None and sizes[smallest] <= MAX_CANDIDATES else None


def _sizes(connection: Connection, filters: Filters, values: Mapping[str, Any]) -> dict[str, int]:
    """The size of each set that an index of tasks or deliveries has, counted up to a limit."""
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
    """The filters that all candidates of this set fit: they need not be checked again."""
    if name in _DELIVERY_STATES:
        return frozenset({"delivery"})
    if name == WAITING:
        return frozenset({"status", "unclaimed"})
    return frozenset({name}) if name in LABELS else _SETS.get(name, frozenset())


def are_among(name: str, filters: Filters) -> ColumnElement[bool]:
    """The condition that a task is one of the candidates of this set."""
    if name == ROWS_BY_NAME:
        return is_among(literal_column("tasks.rowid"), bindparam("candidates", type_=Text()))
    if name == BY_NAME:
        return is_among(Task.id, bindparam("candidates", type_=Several(Identifier)))
    return Task.id.in_(_ids(name, filters))


def _ids(name: str, filters: Filters) -> AnySelect:
    if name in _DELIVERY_STATES:
        of_same_user = Delivery.user_id == bindparam("user_id", type_=Identifier)
        return select(Delivery.task_id).where(of_same_user, _DELIVERY_STATES[name])
    if name in LABELS:
        of_same_user = TaskLabel.user_id == bindparam("user_id", type_=Identifier)
        return select(TaskLabel.task_id).where(of_same_user, TaskLabel.label == bindparam(name))
    if name == WAITING:
        return select(Task.id).where(of_user, IS_WAITING)
    return select(Task.id).where(of_user, *(CONDITIONS[each] for each in _SETS[name] & filters))
