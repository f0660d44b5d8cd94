"""The runs with which a task is compared: the previous, the next, and the last successful run."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, literal, select, tuple_

from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import read_all, read_one
from taskservice.database.types import AnySelect, Identifier, Timestamp
from taskservice.schemas import strict_json
from taskservice.services import lists
from taskservice.services.tasks import of_this_agent, relatives
from taskservice.terms import COMPLETE

# The maximum number of runs of an agent that are searched.
SEARCHED = 500
# The maximum number of complete runs whose labels are compared.
MAX_GOOD = 100

_has_same_name = Task.name == bindparam("name")
_is_on_same_level = Task.parent_id.is_not(None) == bindparam("is_child")


def _nearest(
    order: Sequence[Any], is_beyond: Any, *only: ColumnElement[bool], is_before: bool
) -> AnySelect:
    """Selects the similar runs that precede or follow a task in `order`, the nearest run first."""
    first = order[0]
    in_order = [column.desc() if is_before else column for column in order]
    # This subquery finds the time at which the search ends, and reads only an index.
    last = select(first).where(*of_this_agent, is_beyond).order_by(*in_order).limit(1)
    end = func.coalesce(
        last.offset(bindparam("skipped")).scalar_subquery(),
        literal(clock.EARLIEST if is_before else lists.LATEST, Timestamp()),
    )
    is_searched = first >= end if is_before else first <= end
    is_similar = lists.unindexed([_has_same_name, *only, _is_on_same_level])
    return relatives.where(*of_this_agent, is_beyond, is_searched, is_similar).order_by(*in_order)


_BY_START = (Task.created_at, Task.id)
_start = tuple_(*_BY_START)
_this_start = tuple_(bindparam("created_at", type_=Timestamp()), bindparam("id", type_=Identifier))
_PREVIOUS = Statement[TaskRow](_nearest(_BY_START, _start < _this_start, is_before=True).limit(1))
_NEXT = Statement[TaskRow](_nearest(_BY_START, _start > _this_start, is_before=False).limit(1))
_has_ended = Task.finished_at < bindparam("created_at")
_is_good = Task.status == COMPLETE
_GOOD = Statement[TaskRow](
    _nearest([Task.finished_at], _has_ended, _is_good, is_before=True)
    .add_columns(Task.labels)
    .limit(MAX_GOOD)
)


def _like(task: TaskRow) -> dict[str, Any]:
    columns = ("user_id", "agent_id", "name", "created_at")
    values = {name: getattr(task, name) for name in columns}
    return values | {"is_child": task.parent_id is not None, "skipped": SEARCHED - 1}


def runs_beside(task: TaskRow) -> tuple[TaskRow | None, TaskRow | None]:
    """The previous and the next run of a task that the caller may see."""
    values = _like(task) | {"id": task.id}
    return read_one(_PREVIOUS, **values), read_one(_NEXT, **values)


def last_good_run(task: TaskRow) -> TaskRow | None:
    """The run that completed before a task and has the most labels in common with it.

    If several runs have the most labels in common, the latest of these runs is returned.
    """
    labels = _labels(task)
    return max(
        read_all(_GOOD, **_like(task)),
        key=lambda good: len(labels & _labels(good)),
        default=None,
    )


def _labels(task: TaskRow) -> set[tuple[str, str]]:
    return set(strict_json.loads(task.labels.encode()).items())
