"""Reads of questions."""

from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import and_, bindparam, case, func, literal_column, or_, select, tuple_

from taskservice.auth import Caller, of_user, visible_tasks
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.connections import Statement
from taskservice.database.models import IS_ASKING, Question, Task
from taskservice.database.transactions import reading
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    Several,
    Timestamp,
    in_pages,
    is_among,
    moment_from_now,
)
from taskservice.errors import not_found
from taskservice.schemas.columns import QUESTION_COLUMNS
from taskservice.terms import EXPIRED, OPEN

# How many questions of a list one read takes: each answer may have a megabyte.
QUESTIONS_PER_READ = 4
# A literal, as in the indexes of open questions, so that they are used.
_is_open = Question.state == literal_column(f"'{OPEN}'")
has_expired = and_(_is_open, Question.expires_at <= moment_from_now())
# An open question whose time has come is expired in every read; upkeep stores that later.
_STATE = case((has_expired, EXPIRED), else_=Question.state).label("state")
COLUMNS = tuple(_STATE if each is Question.state else each for each in QUESTION_COLUMNS)
OF_TASK = (
    select(*COLUMNS)
    .where(Question.task_id == bindparam("task_id", type_=Identifier))
    .order_by(Question.asked_at, Question.id)
)
OPEN_OF_TASK = OF_TASK.where(
    _is_open, or_(Question.expires_at.is_(None), Question.expires_at > moment_from_now())
)
ONE = OF_TASK.where(Question.id == bindparam("question_id", type_=Identifier))
_VISIBLE = select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier), visible_tasks)

_is_after = tuple_(Question.asked_at, Question.id) > tuple_(
    bindparam("after", type_=Timestamp()), bindparam("after_id", type_=Identifier)
)
_AMONG = OF_TASK.with_only_columns(Question.id).where(
    is_among(Question.id, bindparam("question_ids", type_=Several(Identifier)))
)
_has_ended = or_(Question.state != OPEN, has_expired)
_short_answer = case((func.length(Question.answer) <= bindparam("length"), Question.answer))
_ENDED = Statement[AnyRow](
    OF_TASK.with_only_columns(
        *(_short_answer.label("answer") if each is Question.answer else each for each in COLUMNS)
    )
    .where(_has_ended)
    .order_by(None)
    .order_by(Question.asked_at.desc(), Question.id.desc())
    .limit(bindparam("count"))
)
_asking = select(
    Task.id,
    Task.name,
    Task.agent_id,
    Task.created_at,
    func.substr(Task.input, 1, bindparam("length")).label("input"),
    Task.questions,
).where(of_user, IS_ASKING)
_ASKING = Statement[AnyRow](_asking.order_by(Task.created_at, Task.id).limit(bindparam("count")))
_limited = select(Task.id).where(of_user, IS_ASKING).limit(bindparam("count")).subquery()
_COUNT_ASKING = Statement[AnyRow](select(func.count(_limited.c[0])))


def list_of_task(caller: Caller, task_id: str) -> Iterator[Sequence[AnyRow]]:
    """All questions of a task, oldest first, a few at a time. Raises 404."""
    _require_task(caller, task_id)
    return pages(OF_TASK, task_id)


def pages(questions: AnySelect, task_id: str) -> Iterator[Sequence[AnyRow]]:
    """The questions of a task that `questions` selects, oldest first, a few at a time."""
    page = questions.where(_is_after).limit(bindparam("count"))

    def read(last: AnyRow | None, count: int) -> Sequence[AnyRow]:
        after, after_id = (last.asked_at, last.id) if last else (EARLIEST, LOWEST_ID)
        here = {"task_id": task_id, "after": after, "after_id": after_id, "count": count}
        with reading() as connection:
            return connection.execute(page, here).all()

    return in_pages(read, QUESTIONS_PER_READ)


def ids_among(caller: Caller, task_id: str, question_ids: Collection[str]) -> Sequence[str]:
    """Those of the ids that are questions of a task, oldest first. Raises 404."""
    _require_task(caller, task_id)
    here = {"task_id": task_id, "question_ids": list(question_ids)}
    with reading() as connection:
        return connection.scalars(_AMONG, here).all()


def _require_task(caller: Caller, task_id: str) -> None:
    with reading() as connection:
        if connection.execute(_VISIBLE, {"task_id": task_id, **caller.scope}).one_or_none() is None:
            raise not_found("task")


def get(caller: Caller, task_id: str, question_id: str) -> AnyRow:
    """A question of a task. Raises 404, for the task or for the question."""
    _require_task(caller, task_id)
    here = {"task_id": task_id, "question_id": question_id}
    with reading() as connection:
        question = connection.execute(ONE, here).one_or_none()
    if question is None:
        raise not_found("question")
    return question


def ended(task_id: str, count: int, length: int) -> Sequence[AnyRow]:
    """The newest `count` questions of a task that are no longer open, the newest first.

    The answer is None if it has more than `length` characters.
    """
    with reading() as connection:
        return _ENDED.all(connection, task_id=task_id, count=count, length=length)


def asking_tasks(caller: Caller, count: int, length: int) -> Sequence[AnyRow]:
    """The oldest `count` of the caller's tasks that ask something, with their questions.

    Of the input, they have the first `length` characters.
    """
    with reading() as connection:
        return _ASKING.all(connection, user_id=caller.user_id, count=count, length=length)


def count_asking_tasks(caller: Caller, maximum: int) -> int:
    """How many of the caller's tasks ask something, up to `maximum`."""
    with reading() as connection:
        return int(_COUNT_ASKING.scalar(connection, user_id=caller.user_id, count=maximum))
