"""Tasks with their logs, questions and deliveries as lines of JSON, while the service runs."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, bindparam, select

from taskservice import __version__
from taskservice.database.models import Agent, Attempt, Delivery, LogWriter, Question, Task, User
from taskservice.database.transactions import reading, reading_one_state
from taskservice.database.types import AnyRow, AnySelect, Identifier, byte_length
from taskservice.errors import invalid
from taskservice.queries import questions as question_queries
from taskservice.queries.tasks import tasks_with_log
from taskservice.schemas import strict_json
from taskservice.schemas.columns import (
    AGENT_COLUMNS,
    ATTEMPT_COLUMNS,
    DELIVERY_COLUMNS,
    USER_COLUMNS,
)
from taskservice.schemas.exported import FORMAT
from taskservice.schemas.tasks import TASK_EXPANSIONS, TaskSchema, delivery_schema, question_schema
from taskservice.schemas.users import agent_schema, user_schema
from taskservice.services import logs
from taskservice.services.logs import LogGone, TimedLine

# Of one page, the bytes of inputs and outputs.
MAX_TASKS = 500
MAX_BYTES = 4 * 1024 * 1024
_USERS = select(*USER_COLUMNS).order_by(User.id)
_AGENTS: AnySelect = select(*AGENT_COLUMNS)
# What the API says of a task in one answer; its log and its questions have lines of their own.
_schema = TaskSchema(exclude=(*TASK_EXPANSIONS, "logs", "questions"))
_of_tasks = bindparam("task_ids", expanding=True, type_=Identifier)
_TASKS: AnySelect = (
    tasks_with_log.add_columns(
        Task.timeout,
        Task.default_writer_seq,
        Task.idempotency_key,
        Task.idempotency_digest,
        Task.claim_key,
    )
    .where(Task.id.in_(_of_tasks))
    .order_by(Task.id)
)
_IDS: AnySelect = (
    select(Task.id, (byte_length(Task.input) + byte_length(Task.output)).label("bytes"))
    .order_by(Task.id)
    .limit(MAX_TASKS)
)
_QUESTIONS: AnySelect = question_queries.OF_TASK.add_columns(
    Question.idempotency_key, Question.idempotency_digest
)
# What belongs to a task, in the order of the fields of `_Task`.
_RELATED: tuple[AnySelect, ...] = (
    select(LogWriter.task_id, LogWriter.writer, LogWriter.seq).where(
        LogWriter.task_id.in_(_of_tasks)
    ),
    select(*DELIVERY_COLUMNS)
    .where(Delivery.task_id.in_(_of_tasks))
    .order_by(Delivery.created_at, Delivery.id),
    select(*ATTEMPT_COLUMNS, Delivery.task_id)
    .join(Delivery, Delivery.id == Attempt.delivery_id)
    .where(Delivery.task_id.in_(_of_tasks))
    .order_by(Attempt.id),
)


def lines(user: str | None = None, since: str | None = None) -> Iterator[bytes]:
    """All tasks, those of one user, or those updated at or after a moment, as lines of JSON.

    Tasks come in the order of their ids, a page at a time, each with all that belongs to it. It is
    no snapshot: what changes meanwhile may be in it or not, but each task is as it was at one
    moment, and its questions as they were a little later. Raises 422 for an unknown user.
    """
    people = [row for row in _users() if user in (None, row.name)]
    if user is not None and not people:
        raise invalid({"user": [f"There is no user {user}"]})
    user_ids = [row.id for row in people]
    yield _line("export", {"format": FORMAT, "version": __version__})
    for row in people:
        yield _line("user", user_schema.dump(row))
    ids = _IDS.where(Task.user_id.in_(user_ids))
    if since is not None:
        ids = ids.where(Task.updated_at >= since)
    yield from _with_agents(ids, _AGENTS.where(Agent.user_id.in_(user_ids)))


def _users() -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_USERS).all()


def _with_agents(ids: AnySelect, agents: AnySelect) -> Iterator[bytes]:
    """The lines of agents and of tasks; an agent that is new comes before its first task."""
    written: set[tuple[str, str]] = set()
    yield from _new_agents(agents, written)
    count = 0
    for page in _pages(ids):
        if any((task.row.user_id, task.row.agent_id) not in written for task in page):
            yield from _new_agents(agents, written)
        for task in page:
            count += yield from _task_lines(task)
    yield _line("end", {"tasks": count})


def _new_agents(agents: AnySelect, written: set[tuple[str, str]]) -> Iterator[bytes]:
    with reading() as connection:
        rows = connection.execute(agents).all()
    # Sorted here: databases sort text in different orders.
    for row in sorted(rows, key=lambda each: (each.user_id, each.id)):
        if (row.user_id, row.id) not in written:
            written.add((row.user_id, row.id))
            yield _line("agent", agent_schema.dump(row))


# --- tasks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """A task and what belongs to it, but for its questions and its log."""

    row: Any
    writers: Sequence[AnyRow]
    deliveries: Sequence[AnyRow]
    # Of all its deliveries.
    attempts: Sequence[AnyRow]


def _pages(ids: AnySelect) -> Iterator[list[_Task]]:
    """The tasks, each as it is at the moment at which its page is read."""
    after = ids
    while True:
        with reading() as connection:
            found = connection.execute(after).all()
        if not found:
            return
        # The first task, however large, and those that fit with it.
        sizes = accumulate(task.bytes for task in found)
        count = max(1, sum(size <= MAX_BYTES for size in sizes))
        yield _page([task.id for task in found[:count]])
        after = ids.where(Task.id > found[count - 1].id)


def _page(task_ids: Sequence[str]) -> list[_Task]:
    """Those of the tasks that are still there."""
    with reading_one_state() as connection:
        rows = connection.execute(_TASKS, {"task_ids": task_ids}).all()
        ids = [row.id for row in rows]
        related = [_by_task(connection, each, ids) for each in _RELATED]
    return [_Task(row, *(of_task[row.id] for of_task in related)) for row in rows]


def _by_task(
    connection: Connection, statement: AnySelect, ids: Sequence[str]
) -> dict[str, list[AnyRow]]:
    """Task -> its rows, in the order of the statement."""
    found: dict[str, list[AnyRow]] = {task_id: [] for task_id in ids}
    for row in connection.execute(statement, {"task_ids": ids}):
        found[row.task_id].append(row)
    return found


def _task_lines(task: _Task) -> Generator[bytes, None, int]:
    """The lines of a task; if its log is dropped meanwhile, again as it is then.

    Returns 1, or 0 if it was deleted meanwhile.
    """
    yield _line("task", _task_json(task))
    of_task = {"taskId": task.row.id}
    for page in question_queries.pages(_QUESTIONS, task.row.id):
        for question in page:
            yield _line("question", of_task | _question_json(question))
    for delivery in task.deliveries:
        yield _line("delivery", of_task | _delivery_json(delivery, task.attempts))
    try:
        for first, timed in logs.timed_chunks(task.row):
            yield _line("log", of_task | _log_json(first, timed))
    except LogGone:
        yield _line("void", of_task)
        for again in _page([task.row.id]):
            return (yield from _task_lines(again))
        return 0
    return 1


def _task_json(task: _Task) -> dict[str, Any]:
    row = task.row
    sent = {each.writer: each.seq for each in task.writers}
    own = {"": row.default_writer_seq} if row.default_writer_seq else {}
    return {
        **_schema.dump(row),
        "logBytes": row.log_bytes,
        "version": row.version,
        "timeout": row.timeout,
        "writers": own | dict(sorted(sent.items())),
        "idempotency": _idempotency(row),
        "claimKey": row.claim_key,
    }


def _idempotency(row: Any) -> dict[str, str] | None:
    if row.idempotency_key is None:
        return None
    return {"key": row.idempotency_key, "digest": row.idempotency_digest}


def _question_json(row: Any) -> dict[str, Any]:
    return {**question_schema.dump(row), "idempotency": _idempotency(row)}


def _delivery_json(row: Any, attempts: Sequence[Any]) -> dict[str, Any]:
    own = [each for each in attempts if each.delivery_id == row.id]
    dumped = delivery_schema.dump(SimpleNamespace(**row._asdict(), attempts=own))
    for attempt, made in zip(dumped["attempts"], own, strict=True):
        attempt["answer"] = made.answer
    return dict(dumped)


def _log_json(first: int, timed: Sequence[TimedLine]) -> dict[str, Any]:
    times = [line.at for line in timed]
    at = times[0] if len(set(times)) == 1 else times
    return {"first": first, "lines": [line.text for line in timed], "at": at}


def _line(kind: str, content: Mapping[str, Any]) -> bytes:
    return strict_json.dumps({"type": kind, **content}) + b"\n"
