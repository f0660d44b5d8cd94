"""Reads of questions."""

from collections.abc import Sequence

from sqlalchemy import and_, bindparam, case, func, or_, select

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import EXPIRED, OPEN
from taskservice.database.models import IS_ASKING, Question, Task
from taskservice.database.rows import AnyRow
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Identifier, moment_from_now
from taskservice.problems import not_found
from taskservice.queries.selections import of_user
from taskservice.schemas.columns import QUESTION_COLUMNS

has_expired = and_(Question.state == OPEN, Question.expires_at <= moment_from_now())
# An open question whose time has come is expired in every read; upkeep stores that later.
_STATE = case((has_expired, EXPIRED), else_=Question.state).label("state")
COLUMNS = tuple(_STATE if each is Question.state else each for each in QUESTION_COLUMNS)
OF_TASK = (
    select(*COLUMNS)
    .where(Question.task_id == bindparam("task_id", type_=Identifier))
    .order_by(Question.asked_at, Question.id)
)
ONE = OF_TASK.where(Question.id == bindparam("question_id", type_=Identifier))
_VISIBLE = select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier), visible_tasks)

_has_ended = or_(Question.state != OPEN, has_expired)
_ENDED = Statement[AnyRow](
    OF_TASK.where(_has_ended)
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


def list_of_task(caller: Caller, task_id: str) -> Sequence[AnyRow]:
    """All questions of a task, oldest first. Raises 404."""
    here = {"task_id": task_id, **caller.scope}
    with reading() as connection:
        if connection.execute(_VISIBLE, here).one_or_none() is None:
            raise not_found("task")
        return connection.execute(OF_TASK, here).all()


def get(caller: Caller, task_id: str, question_id: str) -> AnyRow:
    """A question of a task. Raises 404, for the task or for the question."""
    here = {"task_id": task_id, "question_id": question_id, **caller.scope}
    with reading() as connection:
        if connection.execute(_VISIBLE, here).one_or_none() is None:
            raise not_found("task")
        question = connection.execute(ONE, here).one_or_none()
    if question is None:
        raise not_found("question")
    return question


def ended(task_id: str, count: int) -> Sequence[AnyRow]:
    """The newest `count` questions of a task that are no longer open, the newest first."""
    with reading() as connection:
        return _ENDED.all(connection, task_id=task_id, count=count)


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
