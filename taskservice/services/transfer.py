"""Exports and imports tasks, with their logs, questions and deliveries, as lines of JSON."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from sqlalchemy import Connection, bindparam, exists, insert, select, text, update
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, aliased

from taskservice import __version__, terms
from taskservice.database import clock, models
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, Attempt, Delivery, LogWriter, Question, Task, User
from taskservice.database.transactions import in_pages, read_all, read_snapshot, transaction
from taskservice.database.types import AnyRow, AnySelect, Identifier, TaskRow
from taskservice.errors import Problem, invalid, sentences
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.schemas.tasks import (
    DELIVERY_COLUMNS,
    TASK_EXPANSIONS,
    DeliverySchema,
    TaskSchema,
    attempt_schema,
    question_schema,
)
from taskservice.schemas.users import AGENT_COLUMNS, USER_COLUMNS, agent_schema, user_schema
from taskservice.services import deliveries, expected_runs, logs, questions, tasks
from taskservice.services.users import insert_secret

# An import ignores unknown fields, and gives missing ones their default: only a change that this
# does not cover raises the format.
FORMAT = 1
# The fields of one API response; logs, questions and attempts are dumped separately.
_task_schema = TaskSchema(exclude=(*TASK_EXPANSIONS, "logs", "questions"))
_delivery_schema = DeliverySchema(exclude=("attempts",))

TASKS_PER_READ = 1_000  # each is then read alone
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


def lines(user: str | None = None, since: str | None = None) -> Iterator[bytes]:
    """All tasks, one user's tasks, or tasks updated at or after a time, as lines of JSON.

    Tasks come in the order of their ids, each with its questions, deliveries and log. This is not
    a snapshot: changes during the export may be missing. But each task is consistent; its
    questions are read a little later. Raises 422 for an unknown user.
    """
    users = read_all(select(*USER_COLUMNS).order_by(User.id))
    people = [row for row in users if user in (None, row.name)]
    if user is not None and not people:
        raise invalid({"user": [f"There is no user {user}"]})
    yield _line("export", {"format": FORMAT, "version": __version__})
    for row in people:
        yield _line("user", user_schema.dump(row))
    user_ids = [row.id for row in people]
    agents = select(*AGENT_COLUMNS).where(Agent.user_id.in_(user_ids))
    written: set[tuple[str, str]] = set()
    yield from _new_agents(agents, written)
    found = select(Task.id, Task.user_id, Task.agent_id).where(Task.user_id.in_(user_ids))
    if since is not None:
        found = found.where(Task.updated_at >= since)
    number = 0
    for page in in_pages(found, (Task.id,), TASKS_PER_READ):
        for task in page:
            if (task.user_id, task.agent_id) not in written:
                yield from _new_agents(agents, written)
            number += yield from _task_lines(task.id)
    yield _line("end", {"tasks": number})


def _new_agents(agents: AnySelect, written: set[tuple[str, str]]) -> Iterator[bytes]:
    rows = read_all(agents)
    # Sorted here: databases sort text in different orders.
    for row in sorted(rows, key=lambda each: (each.user_id, each.id)):
        if (row.user_id, row.id) not in written:
            written.add((row.user_id, row.id))
            yield _line("agent", agent_schema.dump(row))


def _task_lines(task_id: str) -> Generator[bytes, None, int]:
    """The lines of a task, repeated if its log was dropped; returns 0 if the task was deleted."""
    with read_snapshot() as connection:
        row = _TASK.one_or_none(connection, task_id=task_id)
        writers = _WRITERS.all(connection, task_id=task_id)
        found = deliveries.read_with_attempts(connection, _DELIVERIES, task_id=task_id)
    if row is None:
        return 0
    yield _line("task", _task_json(row, writers))
    of_task = {"taskId": task_id}
    for some in questions.pages(_QUESTIONS, task_id):
        for question in some:
            dumped = question_schema.dump(question) | {"idempotency": _idempotency(question)}
            yield _line("question", of_task | dumped)
    for delivery in found:
        own = [attempt_schema.dump(each) | {"answer": each.answer} for each in delivery.attempts]
        yield _line("delivery", of_task | _delivery_schema.dump(delivery) | {"attempts": own})
    try:
        for page in logs.pages(row):
            for chunk in page.chunks:
                # In the chunks in which they arrived.
                after = max(page.after, chunk.last - chunk.count)
                part = page._replace(chunks=[chunk], after=after)
                times = part.times()
                at = times[0] if len(set(times)) == 1 else times
                more = {"first": after + 1, "lines": part.lines(), "at": at}
                yield _line("log", of_task | more)
    except logs.LogDropped:
        yield _line("void", of_task)
        return (yield from _task_lines(task_id))
    return 1


def _task_json(row: Any, writers: Sequence[AnyRow]) -> dict[str, Any]:
    # The empty name stands for the default writer.
    own = {"": row.default_writer_seq} if row.default_writer_seq else {}
    return {
        **_task_schema.dump(row),
        "logBytes": row.log_bytes,
        "version": row.version,
        "timeout": row.timeout,
        "writers": own | dict(sorted((each.writer, each.seq) for each in writers)),
        "idempotency": _idempotency(row),
    }


def _idempotency(row: Any) -> dict[str, str] | None:
    if row.idempotency_key is None:
        return None
    return {"key": row.idempotency_key, "digest": row.idempotency_digest}


def _line(kind: str, content: Mapping[str, Any]) -> bytes:
    return strict_json.dumps({"type": kind, **content}) + b"\n"


# Imports all of an export that does not exist yet, in one transaction. Fields that only exports
# have are checked by the constraints of the tables alone.

LINE_TYPES = ("export", "user", "agent", "task", "question", "delivery", "log", "void", "end")
_TASK_ID = Statement[Any](select(Task.id).where(Task.id == _of_task))
_parent = aliased(Task)
# For each column that refers to tasks: clear references to tasks that do not exist.
_CLEAR_MISSING = tuple(
    update(Task)
    .where(column.is_not(None), ~exists().where(_parent.id == column).correlate(Task))
    .values({column: None})
    for column in (Task.parent_id, Task.rerun_of)
)
# The state of an agent follows from its finished tasks, of which cancelled ones do not count.
_SET_STATE = text("""
    WITH ended AS (
        SELECT id, finished_at, CASE WHEN error_type IS NULL THEN 'ok' ELSE 'broken' END AS state
        FROM tasks WHERE user_id = :user_id AND agent_id = :agent_id
            AND finished_at IS NOT NULL AND coalesce(error_type, '') <> 'cancelled'
    ), last AS (
        SELECT state FROM ended ORDER BY finished_at DESC, id DESC LIMIT 1
    ), before AS (
        SELECT max(finished_at) AS at FROM ended WHERE state <> (SELECT state FROM last)
    ), current AS (
        SELECT last.state, min(finished_at) AS since, count(*) AS count
        FROM ended JOIN last ON last.state = ended.state CROSS JOIN before
        WHERE before.at IS NULL OR finished_at >= before.at GROUP BY last.state
    )
    UPDATE agents SET (state, state_since, failures) = (
        SELECT state, since, CASE state WHEN 'broken' THEN count ELSE 0 END FROM current
    ) WHERE user_id = :user_id AND id = :agent_id AND EXISTS (SELECT 1 FROM current)
""").bindparams(bindparam("user_id", type_=Identifier))


class InvalidExport(Exception):
    """An invalid line; the message contains its number."""


@dataclass
class ImportResult:
    """The users, agents and tasks that an import added, and the number of skipped tasks."""

    tasks: int = 0
    existing_tasks: int = 0
    users: list[str] = field(default_factory=list)
    agents: int = 0


def import_from(file: BinaryIO) -> ImportResult:
    """Import the tasks that are not there yet. Raises InvalidExport, with nothing changed."""
    number = 0
    try:
        with transaction() as connection:
            importer = _Importer(connection)
            for line in file:
                number += 1
                importer.add(strict_json.loads(line))
            if not importer.is_complete:
                number += 1
                raise ValueError("the end is missing: the export was cut off")
            for statement in _CLEAR_MISSING:
                connection.execute(statement)
            for user_id, agent_id in sorted(importer.changed_agents):
                connection.execute(_SET_STATE, {"user_id": user_id, "agent_id": agent_id})
        return importer.imported
    except Problem as problem:
        reason = " ".join(sentences(problem.more["errors"]))
    except KeyError as error:
        reason = f"{error} is missing"
    except ValueError as error:
        reason = str(error)
    except (AttributeError, TypeError, ProgrammingError):
        reason = "a value has the wrong type"
    except (DataError, IntegrityError) as error:
        reason = "does not fit the database: " + str(error.orig).partition("\n")[0]
    raise InvalidExport(f"line {number}: {reason}")


class _Importer:
    """Writes lines, one after another, in an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.imported = ImportResult()
        self.changed_agents: set[tuple[str, str]] = set()  # user and id, if they have new tasks
        self.is_complete = False  # whether the last line was the end
        self._users: dict[str, str] = {}  # ids of users in the file -> in the database
        # The tasks of the file, and whether the next lines are of one that is new here.
        self._count, self._is_new = 0, False
        self._log_id: int | None = None

    def add(self, line: Any) -> None:
        """Write a line. Raises ValueError, KeyError, DataError and IntegrityError."""
        kind = line.get("type") if isinstance(line, dict) else None
        if kind not in LINE_TYPES:
            raise ValueError(f"its type must be one of {', '.join(LINE_TYPES)}")
        self.is_complete = kind == "end"
        if self._is_new or kind not in ("question", "delivery", "log"):
            getattr(self, f"_add_{kind}")(line)

    def _add_export(self, line: dict[str, Any]) -> None:
        if line["format"] != FORMAT:
            raise ValueError(f"format: must be {FORMAT}, not {line['format']}")
        self._count = 0

    def _add_user(self, line: dict[str, Any]) -> None:
        """Users are matched by their names."""
        found = self._connection.scalar(select(User.id).where(User.name == line["name"]))
        self._users[line["id"]] = found or line["id"]
        if found is None:
            self._insert(User, user_schema.stored(line))
            # Exports have no secrets.
            insert_secret(self._connection, line["id"], clock.now())
            self.imported.users.append(line["name"])

    def _add_agent(self, line: dict[str, Any]) -> None:
        values = agent_schema.stored(line) | {"user_id": self._users[line["userId"]]}
        there = exists().where(Agent.user_id == values["user_id"], Agent.id == values["id"])
        if not self._connection.scalar(select(there)):
            self._insert(Agent, values | expected_runs.columns(line.get("expect"), clock.now()))
            self.imported.agents += 1

    def _add_task(self, line: dict[str, Any]) -> None:
        self._count += 1
        self._log_id = None
        self._is_new = _TASK_ID.scalar(self._connection, task_id=line["id"]) is None
        if not self._is_new:
            self.imported.existing_tasks += 1
            return
        user_id, error = self._users[line["userId"]], line["error"] or {}
        values = _task_schema.stored(line) | {
            "user_id": user_id,
            "name_folded": line["name"].casefold(),
            "error_type": error.get("type"),
            "error_message": error.get("message"),
            "questions": NO_QUESTIONS,
            "log_bytes": line["logBytes"],
            "default_writer_seq": line["writers"].get("", 0),
            "version": line["version"],
            "timeout": line["timeout"],
        }
        key = _key(line)
        of_key = Task.idempotency_key == key.get("idempotency_key")
        # A key that another task already uses is left out.
        if not self._connection.scalar(select(exists().where(Task.user_id == user_id, of_key))):
            values |= key
        self._insert(Task, values, own_timeout=line["timeout"])
        tasks.insert_labels(self._connection, cast(TaskRow, SimpleNamespace(**values)))
        for writer, seq in line["writers"].items():
            if writer:
                self._insert(LogWriter, {"task_id": line["id"], "writer": writer, "seq": seq})
        self.imported.tasks += 1
        self.changed_agents.add((user_id, line["agentId"]))

    def _add_question(self, line: dict[str, Any]) -> None:
        task_id = line["taskId"]
        self._insert(Question, question_schema.stored(line) | {"task_id": task_id} | _key(line))
        of_task = update(Task).where(Task.id == task_id)
        open_json = questions.open_json(self._connection, task_id)
        self._connection.execute(of_task.values(questions=open_json))

    def _add_delivery(self, line: dict[str, Any]) -> None:
        """A pending delivery becomes cancelled: an import sends no webhook."""
        of_task = select(Task.user_id).where(Task.id == line["taskId"])
        delivery = _delivery_schema.stored(line) | {
            "task_id": line["taskId"],
            "user_id": self._connection.scalar(of_task),
            "host": urlsplit(line["callback"]).netloc.lower(),
            "state": terms.CANCELLED if line["state"] == terms.PENDING else line["state"],
            "next_attempt_at": None,
            "attempt_count": len(line["attempts"]),
        }
        self._insert(Delivery, delivery)
        for attempt in line["attempts"]:
            more = {"delivery_id": line["id"], "answer": attempt["answer"]}
            self._insert(Attempt, attempt_schema.stored(attempt) | more)

    def _add_log(self, line: dict[str, Any]) -> None:
        """The next lines of the task; `first` is the number of the first one."""
        if self._log_id is None:
            self._log_id = logs.NEW_LOG.scalar(self._connection, task_id=line["taskId"])
        count, at, times = len(line["lines"]), line["at"], None
        if at is not None:
            all_times = at if isinstance(at, list) else [at]
            at, times = clock.encode(list(enumerate(map(clock.milliseconds, all_times))))
        chunk = {
            "log_id": self._log_id,
            "last": line["first"] + count - 1,
            "count": count,
            "text": "\n".join(line["lines"]),
            "at": at,
            "times": times,
        }
        self._insert(models.LogChunk, chunk)

    def _add_void(self, line: dict[str, Any]) -> None:
        """Remove the task of the lines before: it was deleted, or is exported again below."""
        self._count -= 1
        if self._is_new:
            tasks.remove(self._connection, [line["taskId"]])
            self.imported.tasks -= 1
        else:
            self.imported.existing_tasks -= 1

    def _add_end(self, line: dict[str, Any]) -> None:
        if line["tasks"] != self._count:
            raise ValueError(f"tasks: there are {self._count}")

    def _insert(self, model: type[DeclarativeBase], values: dict[str, Any], **more: Any) -> None:
        _insertion(model, tuple(values)).run(self._connection, **values, **more)


def _key(line: Mapping[str, Any]) -> dict[str, Any]:
    key = line["idempotency"]
    return {f"idempotency_{name}": key[name] for name in ("key", "digest")} if key else {}


@cache
def _insertion(model: type[DeclarativeBase], columns: tuple[str, ...]) -> Statement[None]:
    return Statement(tasks.NEW_TASK if model is Task else insert(model), columns)
