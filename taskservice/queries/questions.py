"""Reads of questions."""

from collections.abc import Sequence

from sqlalchemy import and_, bindparam, case, select

from taskservice.auth.caller import Caller, visible_tasks
from taskservice.contract.terms import EXPIRED, OPEN
from taskservice.database.models import Question, Task
from taskservice.database.rows import AnyRow
from taskservice.database.transactions import reading
from taskservice.database.types import Identifier, database_now
from taskservice.problems import not_found
from taskservice.schemas.columns import QUESTION_COLUMNS

has_expired = and_(Question.state == OPEN, Question.expires_at <= database_now())
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
