"""Exports users with their agents, hooks and tasks, as lines of JSON."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from taskservice import __version__
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Delivery, Hook, LogWriter, Question, Task, User
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import in_pages, read_all, read_snapshot
from taskservice.database.types import AnyRow, AnySelect, Identifier
from taskservice.errors import Problem, invalid
from taskservice.schemas import export_lines, strict_json
from taskservice.schemas.tasks import DELIVERY_COLUMNS
from taskservice.schemas.users import AGENT_COLUMNS, USER_COLUMNS
from taskservice.services import deliveries, logs, questions, tasks

TASKS_PER_READ = 1_000  # the number of IDs per statement; the tasks are then read one by one
_of_task = bindparam("task_id", type_=Identifier)
_TASK = Statement[Any](
    tasks.tasks_with_log_id.add_columns(
        Task.timeout, Task.default_writer_seq, Task.idempotency_key, Task.idempotency_digest
    ).where(Task.id == _of_task)
)
_WRITERS = Statement[AnyRow](
    select(LogWriter.writer, LogWriter.seq).where(LogWriter.task_id == _of_task)
)
_DELIVERIES: AnySelect = (
    select(*DELIVERY_COLUMNS)
    .where(Delivery.task_id == _of_task, Delivery.hook_id.is_(None))
    .order_by(Delivery.created_at, Delivery.id)
)
_QUESTIONS: AnySelect = questions.OF_TASK.add_columns(
    Question.idempotency_key, Question.idempotency_digest
)
_HOOKS: AnySelect = (
    select(*export_lines.hook_rows.columns.values())
    .where(Hook.user_id == bindparam("user_id"), Hook.deleted_at.is_(None))
    .order_by(Hook.created_at, Hook.id)
)


def lines(user: str | None = None, since: str | None = None) -> Iterator[bytes]:
    """The lines of an export: all users, or one user, with their agents, hooks and tasks.

    With `since`, only tasks that were updated at or after this time are included. Tasks are in the
    order of their IDs, each with its questions, deliveries and log. The export is not a snapshot:
    changes during the export may be missing. Each task is consistent, except that its questions are
    read slightly later. Raises 422 for an unknown user.
    """
    users = read_all(select(*USER_COLUMNS).order_by(User.id))
    people = [row for row in users if user in (None, row.name)]
    if user is not None and not people:
        raise invalid({"user": [f"There is no user {user}"]})
    yield _line("export", {"format": export_lines.FORMAT, "version": __version__})
    for row in people:
        hooks_of_user = export_lines.hook_rows.dump(read_all(_HOOKS, user_id=row.id), many=True)
        yield _line("user", export_lines.user_rows.dump(row) | {"hooks": hooks_of_user})
    user_ids = [row.id for row in people]
    of_users = select(*AGENT_COLUMNS).where(Agent.user_id.in_(user_ids))
    written: set[tuple[str, str]] = set()
    yield from _new_agents(of_users, written)
    of_people = select(Task.id, Task.user_id, Task.agent_id).where(Task.user_id.in_(user_ids))
    if since is not None:
        of_people = of_people.where(Task.updated_at >= since)
    number = 0
    for page in in_pages(of_people, (Task.id,), TASKS_PER_READ):
        for task in page:
            if (task.user_id, task.agent_id) not in written:
                yield from _new_agents(of_users, written)
            number += yield from _task_lines(task.id)
    yield _line("end", {"tasks": number})


def _new_agents(of_users: AnySelect, written: set[tuple[str, str]]) -> Iterator[bytes]:
    rows = read_all(of_users)
    # Sorted here, since databases sort text in different orders.
    for row in sorted(rows, key=lambda row: (row.user_id, row.id)):
        if (row.user_id, row.id) not in written:
            written.add((row.user_id, row.id))
            yield _line("agent", export_lines.agent_rows.dump(row))


def _task_lines(task_id: str) -> Generator[bytes, None, int]:
    """The lines of a task, which are repeated if its log is dropped while they are read.

    Returns the number of exported tasks, which is 0 if the task was deleted.
    """
    version = None
    while True:
        with read_snapshot() as connection:
            row = _TASK.one_or_none(connection, task_id=task_id)
            writers = _WRITERS.all(connection, task_id=task_id)
            of_task = deliveries.read_with_attempts(connection, _DELIVERIES, task_id=task_id)
        if row is None:
            return 0
        if row.version == version:
            raise Problem(503, f"Lines of the log of task {task_id} are missing")
        yield _line("task", _task_json(row, writers))
        yield from _questions_and_deliveries(task_id, of_task)
        try:
            yield from _log_lines(row)
            return 1
        except logs.LogDropped:
            # A drop of the log also increases the task's version: if the version has not changed
            # when the task is read again, lines are missing.
            version = row.version
            yield _line("void", {"taskId": task_id})


def _questions_and_deliveries(task_id: str, of_task: Sequence[Any]) -> Iterator[bytes]:
    for page in questions.pages(_QUESTIONS, task_id):
        for question in page:
            dumped = export_lines.question_rows.dump(question)
            of_question = {"taskId": task_id, "idempotency": _idempotency(question)}
            yield _line("question", dumped | of_question)
    for delivery in of_task:
        attempts = [
            export_lines.attempt_rows.dump(attempt) | {"answer": attempt.answer}
            for attempt in delivery.attempts
        ]
        dumped = export_lines.delivery_rows.dump(delivery)
        yield _line("delivery", dumped | {"taskId": task_id, "attempts": attempts})


def _log_lines(row: TaskRow) -> Iterator[bytes]:
    for page in logs.pages(row):
        for chunk in page.chunks:
            # A line of the export contains the log lines of one chunk.
            after = max(page.after, chunk.last - chunk.count)
            part = page._replace(chunks=[chunk], after=after)
            times = part.times()
            at = times[0] if len(set(times)) == 1 else times
            yield _line(
                "log", {"taskId": row.id, "first": after + 1, "lines": part.lines(), "at": at}
            )


def _task_json(row: Any, writers: Sequence[AnyRow]) -> dict[str, Any]:
    # The empty name means the default writer.
    of_default = {"": row.default_writer_seq} if row.default_writer_seq else {}
    return {
        **export_lines.task_rows.dump(row),
        "logBytes": row.log_bytes,
        "version": row.version,
        "timeout": row.timeout,
        "writers": of_default | dict(sorted((row.writer, row.seq) for row in writers)),
        "idempotency": _idempotency(row),
    }


def _idempotency(row: Any) -> dict[str, str] | None:
    if row.idempotency_key is None:
        return None
    return {"key": row.idempotency_key, "digest": row.idempotency_digest}


def _line(kind: str, content: Mapping[str, Any]) -> bytes:
    return strict_json.dumps({"type": kind, **content}) + b"\n"
