"""Which tasks a list has, as SQL, and which of its filters an index in its order serves."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Text, and_, bindparam, exists, select, true

from taskservice.auth import Caller, of_user
from taskservice.database.clock import EARLIEST
from taskservice.database.models import Delivery, Task, TaskLabel
from taskservice.database.types import Identifier, Timestamp, place_in_text
from taskservice.terms import MAX_LABELS, SORTS

NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS
# Together with `own_agent_id` the same as `visible_tasks`, whose OR would keep SQLite from using
# the index of an agent.
# Each label of a selection is a filter of its own, and all must fit.
LABELS = tuple(f"label{number}" for number in range(MAX_LABELS))
# Filter, under the name of its parameter -> its condition; the bounds are exclusive.
CONDITIONS: dict[str, ColumnElement[bool]] = {
    "own_agent_id": Task.agent_id == bindparam("own_agent_id"),
    "agent_id": Task.agent_id == bindparam("agent_id"),
    "error_type": Task.error_type == bindparam("error_type"),
    "status": Task.status == bindparam("status"),
    "created_after": Task.created_at > bindparam("created_after", type_=Timestamp()),
    "created_before": Task.created_at < bindparam("created_before", type_=Timestamp()),
    "finished_after": Task.finished_at > bindparam("finished_after", type_=Timestamp()),
    "claimed": Task.claimed_at.is_not(None),
    "unclaimed": Task.claimed_at.is_(None),
    "parent_id": Task.parent_id == bindparam("parent_id", type_=Identifier),
    "name_part": place_in_text(Task.name_folded, bindparam("name_part", type_=Text())) > 0,
    "delivery": exists(
        select(1).where(Delivery.task_id == Task.id, Delivery.state == bindparam("delivery"))
    ),
} | {
    name: exists(select(1).where(TaskLabel.task_id == Task.id, TaskLabel.label == bindparam(name)))
    for name in LABELS
}
# The names of the filters that are given; a statement is compiled once for each set of them.
Filters: TypeAlias = frozenset[str]


# The filters that have an index in the order of creation, each alone; the most selective first.
_IN_AN_INDEX = ("own_agent_id", "agent_id", "error_type", "status")


class Selection(NamedTuple):
    """Which tasks a list has, and in which order; the bounds are exclusive."""

    status: str | None = None
    error_type: str | None = None
    is_claimed: bool | None = None
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


def values(caller: Caller, selection: Selection) -> dict[str, Any]:
    """The values of the user and of the filters that are given, under their parameters' names."""
    finished_after = selection.finished_after
    if selection.sort == BY_END and finished_after is None:
        # Such a list has finished tasks only.
        finished_after = EARLIEST
    values = {
        "user_id": caller.user_id,
        "own_agent_id": caller.agent_id,
        "agent_id": selection.agent_id,
        "status": selection.status,
        "error_type": selection.error_type,
        "claimed": selection.is_claimed or None,
        "unclaimed": True if selection.is_claimed is False else None,
        "parent_id": selection.parent_id,
        **dict(zip(LABELS, dict.fromkeys(selection.labels), strict=False)),
        "created_after": selection.created_after,
        "created_before": selection.created_before,
        "finished_after": finished_after,
        "name_part": selection.name_part and selection.name_part.casefold(),
        "delivery": selection.delivery,
    }
    return {name: value for name, value in values.items() if value is not None}


def indexed(filters: Filters, sort: str) -> Filters:
    """The filters that one index in this order serves: it skips the tasks that they leave out."""
    if sort == BY_END:
        return filters & {"finished_after"}
    # There is an index for each of these alone.
    first = next((name for name in _IN_AN_INDEX if name in filters), "")
    return filters & {first, "created_after", "created_before"}


def conditions(filters: Filters, by_index: Filters | None = None) -> list[ColumnElement[bool]]:
    """The conditions of these filters; SQLite may use an index only for those in `by_index`.

    By default that is all. Without statistics, SQLite would often prefer another index to the one
    in the list's order.
    """
    by_index = filters if by_index is None else by_index
    searched = [CONDITIONS[name] for name in CONDITIONS if name in by_index]
    checked = [CONDITIONS[name] for name in CONDITIONS if name in filters - by_index]
    return [of_user, *searched, *([unindexed(checked)] if checked else [])]


def unindexed(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form for which SQLite uses no index."""
    return and_(*conditions).is_(true())
