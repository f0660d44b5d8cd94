"""Questions: asked by agents, answered by people, withdrawn, and expired by upkeep."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from taskservice.auth import Caller, of_user, visible_tasks
from taskservice.database import clock
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.connections import Statement
from taskservice.database.models import IS_ASKING, Question, Task
from taskservice.database.transactions import moment_by, reading, retry_on_conflict, transaction
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    Several,
    TaskRow,
    Timestamp,
    in_pages,
    is_among,
    moment_from_now,
)
from taskservice.errors import Problem, invalid, not_found
from taskservice.schemas import json_schema, strict_json
from taskservice.schemas.tasks import QUESTION_COLUMNS, question_schema
from taskservice.services.tasks import HEARTBEAT, Idempotency, finished_problem, lock
from taskservice.terms import (
    ANSWERED,
    DECLINE,
    DECLINED,
    EXPIRED,
    MAX_OPEN_QUESTIONS,
    NOT_CLAIMED,
    OPEN,
    QUESTION_CLOSED,
    QUESTION_TIMEOUT,
    RUNNING,
    TOO_MANY_QUESTIONS,
    WITHDRAWN,
)

# Reads of questions.

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


# Questions: asked by agents, answered by people, withdrawn, and expired by upkeep.

# How many questions one transaction of upkeep ends.
BATCH = 50

_ASK = insert(Question)
_REPLAYED = select(*COLUMNS, Question.idempotency_digest).where(
    Question.task_id == bindparam("task_id", type_=Identifier),
    Question.idempotency_key == bindparam("idempotency_key"),
)
_CLOSE = update(Question).where(
    Question.id == bindparam("of_question_id", type_=Identifier), Question.state == OPEN
)
_CHANGE_TASK = update(Task).where(Task.id == bindparam("of_task_id", type_=Identifier))
_EXPIRED = select(Question.id, Question.task_id).where(has_expired).order_by(Question.expires_at)
_LOCK_TASK = (
    select(Task.id)
    .where(Task.id == bindparam("task_id", type_=Identifier))
    .with_for_update(skip_locked=True)
)


@retry_on_conflict
def ask(
    caller: Caller, task_id: str, fields: dict[str, Any], idempotency: Idempotency | None
) -> tuple[AnyRow, bool]:
    """Ask what AskSchema loaded; returns the question, and whether it existed already.

    Raises 404, 409 unless the task runs and is claimed, or with too many open questions, and 422
    for an idempotency key that was used with another body.
    """
    with transaction() as connection:
        task = lock(connection, caller, task_id)
        if idempotency is not None:
            replayed = _replayed(connection, task, idempotency)
            if replayed is not None:
                return replayed, True
        _check_may_ask(connection, task)
        now = moment_by(connection)
        seconds = fields.get("timeout")
        timeout = QUESTION_TIMEOUT if seconds is None else seconds
        question = {
            "id": clock.new_id(),
            "task_id": task.id,
            "message": fields["message"],
            "schema": strict_json.dumps(fields.get("schema") or json_schema.DEFAULT).decode(),
            "state": OPEN,
            "asked_at": now,
            "expires_at": clock.moved(now, timeout) if timeout else None,
            "idempotency_key": idempotency.key if idempotency else None,
            "idempotency_digest": idempotency.digest if idempotency else None,
        }
        connection.execute(_ASK, question)
        _store_open(connection, task.id)
        return _get(connection, task.id, question["id"]), False


def _check_may_ask(connection: Connection, task: TaskRow) -> None:
    if task.status != RUNNING:
        raise finished_problem(task)
    if task.claimed_at is None:
        raise Problem(409, "No agent has claimed the task", code=NOT_CLAIMED)
    if len(_open(connection, task.id)) >= MAX_OPEN_QUESTIONS:
        detail = f"The task has {MAX_OPEN_QUESTIONS} open questions already"
        raise Problem(409, detail, code=TOO_MANY_QUESTIONS)


def _replayed(connection: Connection, task: TaskRow, idempotency: Idempotency) -> AnyRow | None:
    row = connection.execute(
        _REPLAYED, {"task_id": task.id, "idempotency_key": idempotency.key}
    ).one_or_none()
    if row is not None:
        idempotency.check(row.idempotency_digest)
    return row


def answer(
    caller: Caller, task_id: str, question_id: str, action: str, content: dict[str, Any] | None
) -> AnyRow:
    """Answer or decline a question; the same again changes nothing.

    Raises 404, 409 if it is no longer open, and 422 for an answer that does not fit its schema.
    """
    if action != DECLINE:
        _check(get(caller, task_id, question_id), content or {})
    with transaction() as connection:
        lock(connection, caller, task_id)
        question = _get(connection, task_id, question_id)
        given_by = {"answered_by": caller.key_name}
        if action == DECLINE:
            return _close(
                connection, question, DECLINED, lambda: question.state == DECLINED, **given_by
            )
        given = content or {}

        def is_same() -> bool:
            return question.state == ANSWERED and _is_same(question.answer, given)

        text = strict_json.dumps(given).decode()
        return _close(connection, question, ANSWERED, is_same, answer=text, **given_by)


def _check(question: AnyRow, content: dict[str, Any]) -> None:
    """Raises 422 for an answer that does not fit: it may take long, so in no transaction."""
    if question.state == OPEN:
        schema = strict_json.loads(question.schema.encode())
        errors = json_schema.problems_of_answer(schema, content)
        if errors:
            raise invalid(errors)


def withdraw(caller: Caller, task_id: str, question_id: str) -> AnyRow:
    """Withdraw an open question; again changes nothing. Raises 404, and 409 if it has ended."""
    with transaction() as connection:
        lock(connection, caller, task_id)
        question = _get(connection, task_id, question_id)
        return _close(connection, question, WITHDRAWN, lambda: question.state == WITHDRAWN)


def _close(
    connection: Connection,
    question: AnyRow,
    state: str,
    is_same: Callable[[], bool],
    **values: Any,
) -> AnyRow:
    """End an open question of a task that this transaction has locked."""
    if is_same():
        return question
    if question.state != OPEN:
        raise Problem(
            409,
            f"The question is {question.state}",
            code=QUESTION_CLOSED,
            more={"question": question_schema.dump(question)},
        )
    connection.execute(_CLOSE.values(state=state, **values), {"of_question_id": question.id})
    _store_open(connection, question.task_id)
    return _get(connection, question.task_id, question.id)


def _is_same(stored: str, given: dict[str, Any]) -> bool:
    before = strict_json.loads(stored.encode())
    return strict_json.canonical(before) == strict_json.canonical(given)


def _get(connection: Connection, task_id: str, question_id: str) -> AnyRow:
    here = {"task_id": task_id, "question_id": question_id}
    question = connection.execute(ONE, here).one_or_none()
    if question is None:
        raise not_found("question")
    return question


def _open(connection: Connection, task_id: str) -> Sequence[AnyRow]:
    return connection.execute(OPEN_OF_TASK, {"task_id": task_id}).all()


def _store_open(connection: Connection, task_id: str) -> None:
    """Write the open questions into the task, and begin its silence clock anew."""
    values = {
        "questions": open_json(connection, task_id),
        "updated_at": clock.now(),
        "version": Task.version + 1,
        **HEARTBEAT,
    }
    connection.execute(_CHANGE_TASK.values(values), {"of_task_id": task_id})


def open_json(connection: Connection, task_id: str) -> str:
    """The open questions of a task as `Task.questions` has them."""
    questions = question_schema.dump(_open(connection, task_id), many=True)
    return strict_json.dumps(questions).decode()


def expire() -> bool:
    """End some questions whose time has come; returns whether there may be more."""
    with reading() as connection:
        due = connection.execute(_EXPIRED.limit(BATCH)).all()
    if not due:
        return False
    with transaction() as connection:
        for question in due:
            here = {"task_id": question.task_id}
            # A task that is locked is being changed: the next round finds its question again.
            if connection.execute(_LOCK_TASK, here).one_or_none() is not None:
                closed = _CLOSE.values(state=EXPIRED)
                connection.execute(closed, {"of_question_id": question.id})
                _store_open(connection, question.task_id)
    return len(due) == BATCH
