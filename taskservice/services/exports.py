"""Exports users with their agents, hooks and tasks, as lines of JSON."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from taskservice import __version__
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Delivery, Hook, Question, Task, User
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import in_pages, read_all, read_snapshot
from taskservice.database.types import AnySelect, Identifier
from taskservice.errors import Problem, invalid
from taskservice.schemas import strict_json
from taskservice.schemas.hooks import HookSchema
from taskservice.schemas.tasks import (
    DELIVERY_COLUMNS,
    TASK_EXPANSIONS,
    DeliverySchema,
    TaskSchema,
    attempt_schema,
    question_schema,
)
from taskservice.schemas.users import AGENT_COLUMNS, USER_COLUMNS, agent_schema, user_schema
from taskservice.services import deliveries, logs, questions, tasks

FORMAT = 1  # the version of the export format; a new field needs no new version
TASKS_PER_READ = 1_000  # the number of IDs per statement; the tasks are then read one by one
# `failingSince` is not exported, since it depends on attempts that are not exported either.
_hook_rows = HookSchema(exclude=("failingSince",))
# Logs and questions are exported in separate lines.
_task_rows = TaskSchema(exclude=(*TASK_EXPANSIONS, "logs", "questions", "hangingSince"))
_delivery_rows = DeliverySchema(exclude=("attempts",))
_of_task = bindparam("task_id", type_=Identifier)
_TASK = Statement[Any](
    tasks.tasks_with_log_id.add_columns(Task.timeout, Task.idempotency_key).where(
        Task.id == _of_task
    )
)
_DELIVERIES: AnySelect = (
    select(*DELIVERY_COLUMNS)
    .where(Delivery.task_id == _of_task, Delivery.hook_id.is_(None))
    .order_by(Delivery.created_at, Delivery.id)
)
_QUESTIONS: AnySelect = questions.OF_TASK.add_columns(Question.idempotency_key)
_HOOKS: AnySelect = (
    select(*_hook_rows.columns.values())
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
    yield _line("export", {"format": FORMAT, "version": __version__})
    for row in people:
        hooks_of_user = _hook_rows.dump(read_all(_HOOKS, user_id=row.id), many=True)
        yield _line("user", user_schema.dump(row) | {"hooks": hooks_of_user})
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
            yield _line("agent", agent_schema.dump(row))


def _task_lines(task_id: str) -> Generator[bytes, None, int]:
    """The lines of a task, which are repeated if its log is dropped while they are read.

    Returns the number of exported tasks, which is 0 if the task was deleted.
    """
    version = None
    while True:
        with read_snapshot() as connection:
            row = _TASK.one_or_none(connection, task_id=task_id)
            of_task = deliveries.read_with_attempts(connection, _DELIVERIES, task_id=task_id)
        if row is None:
            return 0
        if row.version == version:
            raise Problem(503, f"Lines of the log of task {task_id} are missing")
        yield _line("task", _task_json(row))
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
            dumped = question_schema.dump(question)
            of_question = {"taskId": task_id, "idempotencyKey": question.idempotency_key}
            yield _line("question", dumped | of_question)
    for delivery in of_task:
        attempts = [
            attempt_schema.dump(attempt) | {"answer": attempt.answer}
            for attempt in delivery.attempts
        ]
        dumped = _delivery_rows.dump(delivery)
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


def _task_json(row: Any) -> dict[str, Any]:
    return {
        **_task_rows.dump(row),
        "logBytes": row.log_bytes,
        "version": row.version,
        "timeout": row.timeout,
        "idempotencyKey": row.idempotency_key,
    }


def _line(kind: str, content: Mapping[str, Any]) -> bytes:
    return strict_json.dumps({"type": kind, **content}) + b"\n"
