"""Asks, answers, declines, withdraws and expires the questions of tasks."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

from sqlalchemy import Connection, bindparam, case, func, insert, literal_column, select, update

from taskservice import error_codes, event_kinds, terms
from taskservice.auth import Caller, visible_tasks
from taskservice.database import clock, transactions
from taskservice.database.models import IS_ASKING, Question, Task
from taskservice.database.rows import QuestionRow, TaskRow
from taskservice.database.transactions import read_all, read_one, reading, transaction
from taskservice.database.types import AnySelect, database_now, is_among, time_from_now
from taskservice.errors import Problem, invalid, require
from taskservice.schemas import answer_schema, strict_json
from taskservice.schemas.tasks import QUESTION_COLUMNS, question_schema
from taskservice.services import events, tasks

QUESTIONS_PER_READ = 4  # An answer can take up to a megabyte.
# The state is a literal, as in the conditions of the indexes; otherwise no index would be used.
_is_open = Question.state == literal_column(f"'{terms.OPEN}'")
has_expired = _is_open & (Question.expires_at <= time_from_now())
# Once its timeout has passed, a question is shown as expired; maintenance stores this state later.
_STATE = case((has_expired, terms.EXPIRED), else_=Question.state).label("state")
COLUMNS = tuple(_STATE if column is Question.state else column for column in QUESTION_COLUMNS)
OF_TASK = (
    select(*COLUMNS)
    .where(Question.task_id == bindparam("task_id"))
    .order_by(Question.asked_at, Question.id)
)
can_be_answered = _is_open & (
    Question.expires_at.is_(None) | (Question.expires_at > time_from_now())
)
_OPEN = OF_TASK.where(can_be_answered)
_ONE = OF_TASK.where(Question.id == bindparam("question_id"))


def list_of_task(caller: Caller, task_id: str) -> Iterator[Sequence[QuestionRow]]:
    """All questions of a task in small batches, oldest first. Raises 404."""
    tasks.get_version(caller, task_id)
    return pages(OF_TASK, task_id)


def pages(questions: AnySelect, task_id: str) -> Iterator[Sequence[QuestionRow]]:
    """The questions of a task that `questions` selects, in small batches, oldest first."""
    order, of_task = (Question.asked_at, Question.id), {"task_id": task_id}
    return transactions.in_pages(questions, order, QUESTIONS_PER_READ, of_task)


def ids_among(caller: Caller, task_id: str, question_ids: Collection[str]) -> Sequence[str]:
    """The IDs of this task's questions among `question_ids`, oldest first. Raises 404."""
    tasks.get_version(caller, task_id)
    ids = OF_TASK.with_only_columns(Question.id)
    among = ids.where(is_among(Question.id, "question_ids"))
    return [row.id for row in read_all(among, task_id=task_id, question_ids=list(question_ids))]


def get(caller: Caller, task_id: str, question_id: str) -> QuestionRow:
    """A question of a task. Raises 404 if the task or the question does not exist."""
    tasks.get_version(caller, task_id)
    with reading() as connection:
        return _get(connection, task_id, question_id)


def find_by_id(question_id: str) -> QuestionRow | None:
    """A question of any user; used only by the service itself, not for a caller's request."""
    return read_one(select(*COLUMNS).where(Question.id == question_id))


def ended(task_id: str, count: int) -> Sequence[QuestionRow]:
    """The newest `count` closed questions of a task, newest first."""
    has_ended = (Question.state != terms.OPEN) | has_expired
    ended_questions = select(*COLUMNS).where(Question.task_id == task_id, has_ended)
    newest_first = ended_questions.order_by(Question.asked_at.desc(), Question.id.desc())
    return read_all(newest_first.limit(count))


def asking_tasks(caller: Caller, count: int, length: int) -> Sequence[TaskRow]:
    """The first `count` tasks with open questions; `input` is truncated to `length` characters.

    Tasks whose questions expire first come first, then those with the oldest questions.
    """
    start = func.substr(Task.input, 1, length).label("input")
    asking = select(Task.id, Task.name, Task.agent_id, Task.created_at, start, Task.questions)
    visible = asking.where(visible_tasks, IS_ASKING)
    # Write the condition exactly as in the index, so that the database uses the index.
    of_task: Any = (Question.task_id == Task.id, literal_column("questions.state = 'open'"))
    first_to_expire, oldest = (
        select(func.min(column)).where(*of_task).correlate(Task).scalar_subquery()
        for column in (Question.expires_at, Question.asked_at)
    )
    ordered = visible.order_by(first_to_expire.nulls_last(), oldest, Task.id)
    return read_all(ordered.limit(count), **caller.scope)


BATCH = 50  # The number of questions that one transaction expires.

_WITH_KEY = OF_TASK.add_columns(Question.idempotency_digest).where(
    Question.idempotency_key == bindparam("idempotency_key")
)
_CHANGE_OPEN = update(Question).where(
    Question.id == bindparam("of_question_id"), Question.state == terms.OPEN
)


@transactions.retry_on_conflict
def ask(
    caller: Caller, task_id: str, fields: dict[str, Any], idempotency: tasks.Idempotency
) -> tuple[QuestionRow, bool]:
    """Ask a question; returns the question, and whether it already existed.

    Raises 404, 409 and 422.
    """
    with transaction() as connection:
        task = tasks.get_locked(connection, caller, task_id)
        replayed = idempotency.replayed(connection, _WITH_KEY, task_id=task.id)
        if replayed is not None:
            return replayed, True
        if task.status != terms.RUNNING:
            raise tasks.finished_problem(task)
        if task.claimed_at is None:
            raise Problem(409, "No worker has claimed the task", code=error_codes.NOT_CLAIMED)
        open_questions = connection.execute(_OPEN, {"task_id": task.id}).all()
        if len(open_questions) >= terms.MAX_OPEN_QUESTIONS:
            detail = f"The task has {terms.MAX_OPEN_QUESTIONS} open questions already"
            raise Problem(409, detail, code=error_codes.TOO_MANY_QUESTIONS)
        now = transactions.current_time(connection)
        seconds = fields.get("timeout")
        timeout = terms.QUESTION_TIMEOUT if seconds is None else seconds
        question = {
            "id": clock.new_id(),
            "task_id": task.id,
            "message": fields["message"],
            "schema": strict_json.dumps(fields.get("schema") or answer_schema.DEFAULT).decode(),
            "state": terms.OPEN,
            "asked_at": now,
            "expires_at": clock.moved(now, timeout) if timeout else None,
            **idempotency._asdict(),
        }
        connection.execute(insert(Question), question)
        _store_open(connection, task.id)
        asks = events.NewEvent.of_task(task, now, event_kinds.TASK_ASKS)
        events.record_events(connection, [asks._replace(question_id=question["id"])])
        return _get(connection, task.id, question["id"]), False


def answer(
    caller: Caller,
    task_id: str,
    question_id: str,
    action: str,
    content: dict[str, Any] | None,
    is_repeatable: bool = True,
) -> QuestionRow:
    """Answer or decline a question.

    Raises 404, 409 if the question is no longer open, and 422.
    """
    values = {"state": terms.DECLINED}
    if action != terms.DECLINE:
        # The answer is validated outside of a transaction, since validation may take long.
        question = get(caller, task_id, question_id)
        if question.state == terms.OPEN:
            schema = strict_json.loads(question.schema.encode())
            errors = answer_schema.answer_problems(schema, content or {})
            if errors:
                raise invalid(errors)
        values = {"state": terms.ANSWERED, "answer": strict_json.dumps(content or {}).decode()}
    values["answered_by"] = caller.key_name
    return _close(caller, task_id, question_id, values, is_repeatable)


def withdraw(caller: Caller, task_id: str, question_id: str) -> QuestionRow:
    """Withdraw an open question; raises 404, and 409 if it was answered, declined or expired."""
    return _close(caller, task_id, question_id, {"state": terms.WITHDRAWN}, is_repeatable=True)


def _close(
    caller: Caller, task_id: str, question_id: str, values: dict[str, str], is_repeatable: bool
) -> QuestionRow:
    """Close a question; raises 404, and 409 if it is no longer open.

    If `is_repeatable`, a question that is already closed in the same way is returned.
    """
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        question = _get(connection, task_id, question_id)
        is_same = question.state == values["state"]
        if is_same and question.answer and (text := values.get("answer")):
            before, now = (
                strict_json.loads(answer_text.encode()) for answer_text in (question.answer, text)
            )
            is_same = strict_json.canonical(before) == strict_json.canonical(now)
        if is_same and is_repeatable:
            return question
        if question.state != terms.OPEN:
            detail, shown = f"The question is {question.state}", question_schema.dump(question)
            raise Problem(
                409, detail, code=error_codes.QUESTION_CLOSED, members={"question": shown}
            )
        connection.execute(_CHANGE_OPEN.values(values), {"of_question_id": question_id})
        _store_open(connection, task_id)
        return _get(connection, task_id, question_id)


def _get(connection: Connection, task_id: str, question_id: str) -> QuestionRow:
    ids = {"task_id": task_id, "question_id": question_id}
    return cast(QuestionRow, require(connection.execute(_ONE, ids).one_or_none(), "question"))


def _store_open(connection: Connection, task_id: str) -> None:
    """Store the open questions in the task, and restart its inactivity timeout."""
    values = {
        # Check soon whether the task hangs: a task with open questions does not hang, so the state
        # may have changed.
        "hang_check_at": database_now(),
        "questions": open_json(connection, task_id),
        "updated_at": clock.now(),
        "version": Task.version + 1,
        **tasks.HEARTBEAT,
    }
    connection.execute(update(Task).where(Task.id == task_id).values(values))


def open_json(connection: Connection, task_id: str) -> str:
    """The open questions of a task in the form of `Task.questions`."""
    open_questions = connection.execute(_OPEN, {"task_id": task_id}).all()
    return strict_json.dumps(question_schema.dump(open_questions, many=True)).decode()


def correct_future_times(ahead: str, now: str) -> None:
    """Change the time of open questions that were asked after `ahead` to `now`.

    Their timeouts remain the same.
    """
    begun = select(Question.id, Question.task_id, Question.asked_at, Question.expires_at)
    for question in read_all(begun.where(_is_open, Question.asked_at > ahead)):
        times = {"asked_at": now}
        if question.expires_at is not None:
            seconds = clock.seconds_between(question.asked_at, question.expires_at)
            times["expires_at"] = clock.moved(now, seconds)
        with transaction() as connection:
            # Every transaction that changes a task and its question locks the task first;
            # otherwise, two transactions could deadlock.
            this = select(Task.id).where(Task.id == question.task_id)
            connection.execute(this.with_for_update())
            connection.execute(_CHANGE_OPEN.values(times), {"of_question_id": question.id})
            _store_open(connection, question.task_id)


def expire() -> bool:
    """Store that a batch of questions has expired; returns whether more may remain."""
    expired = select(Question.id, Question.task_id).where(has_expired)
    due = read_all(expired.order_by(Question.expires_at).limit(BATCH))
    if not due:
        return False
    with transaction() as connection:
        for question in due:
            task = select(Task.id).where(Task.id == question.task_id)
            # Another transaction is changing a task whose row is locked; the next round expires its
            # question.
            if connection.scalar(task.with_for_update(skip_locked=True)) is not None:
                closed = _CHANGE_OPEN.values(state=terms.EXPIRED)
                connection.execute(closed, {"of_question_id": question.id})
                _store_open(connection, question.task_id)
    return len(due) == BATCH
