"""Imports the parts of an export that the database does not contain yet, in one transaction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from marshmallow import ValidationError
from sqlalchemy import Connection, bindparam, exists, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, aliased

from taskservice import terms
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import (
    Agent,
    Attempt,
    Delivery,
    Hook,
    LogChunk,
    LogWriter,
    Question,
    Task,
    User,
)
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier
from taskservice.errors import Problem, from_exception, invalid, sentences
from taskservice.schemas import export_lines, strict_json
from taskservice.schemas.fields import NO_QUESTIONS
from taskservice.services import agents, hooks, logs, questions, tasks
from taskservice.services.users import insert_secret

# Three times the length of the longest line of an export, since a program that rewrites an export
# may escape more characters.
MAX_LINE_BYTES = 16 * 1024 * 1024
IMPORTED = "It was imported; turn it on to be notified."
_OWNERS = {
    model: Statement[Any](
        select(model.user_id).where(model.id == bindparam("row_id", type_=Identifier))
    )
    for model in (Hook, Task)
}
_parent = aliased(Task)
# Statements that clear references to tasks that the user does not have, one for each column.
_CLEAR_MISSING = tuple(
    update(Task)
    .where(
        column.is_not(None),
        ~exists().where(_parent.id == column, _parent.user_id == Task.user_id).correlate(Task),
    )
    .values({column: None})
    for column in (Task.parent_id, Task.rerun_of)
)
# Sets the state of an agent according to its finished tasks, except cancelled tasks.
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
    """A line is invalid; the message contains its number."""


@dataclass
class ImportResult:
    """What an import added, and the number of tasks that already existed."""

    tasks: int = 0
    existing_tasks: int = 0
    users: list[str] = field(default_factory=list)
    agents: int = 0
    hooks: int = 0


def import_from(file: BinaryIO) -> ImportResult:
    """Import an export. If a line is invalid, raises InvalidExport and changes nothing."""
    with transaction() as connection:
        importer = _Importer(connection)
        try:
            for line in iter(partial(file.readline, MAX_LINE_BYTES + 1), b""):
                importer.add(line)
            if not importer.is_complete:
                importer.number += 1
                raise ValueError("the line of type end is missing: the export is incomplete")
        except IntegrityError as error:
            reason = "conflicts with the database: " + str(error.orig).partition("\n")[0]
        except (Problem, ValidationError) as error:
            reason = " ".join(sentences(from_exception(error).members["errors"]))
        except ValueError as error:
            reason = str(error)
        else:
            for statement in _CLEAR_MISSING:
                connection.execute(statement)
            for user_id, agent_id in sorted(importer.changed_agents):
                connection.execute(_SET_STATE, {"user_id": user_id, "agent_id": agent_id})
            return importer.imported
        raise InvalidExport(f"line {importer.number}: {reason}")


@dataclass
class _FileTask:
    """A task of the file, and the number and size of the log lines that were read so far."""

    fields: dict[str, Any]
    number: int  # the number of the task's line in the file
    is_new: bool  # whether the database does not contain the task yet
    last: int  # the number of the last line of the log
    size: int = 0  # the number of bytes of the log
    log_id: int | None = None
    open_questions: int = 0


class _Importer:
    """Writes the lines of an export to the database, one after another, in an open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.imported = ImportResult()
        self.number = 0  # the number of the line that is being added, or is invalid
        self.changed_agents: set[tuple[str, str]] = set()  # (user ID, agent ID)
        self.is_complete = False  # whether the last line was an `end` line
        self._users: dict[str, str] = {}  # ID in the file -> ID in the database
        self._agents: set[tuple[str, str]] = set()  # (user ID, agent ID)
        self._count = 0  # the number of tasks in the file so far
        self._task: _FileTask | None = None  # the task to which the next lines can belong

    def add(self, line: bytes) -> None:
        """Add a line. Raises ValidationError, Problem, ValueError and IntegrityError."""
        self.number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"longer than {MAX_LINE_BYTES:,} bytes")
        parsed = strict_json.loads(line)
        kind = parsed.get("type") if isinstance(parsed, dict) else None
        if kind not in list(export_lines.LINES):
            raise ValueError(f"its type must be one of {', '.join(export_lines.LINES)}")
        self.is_complete = kind == "end"
        fields = export_lines.LINES[kind].load(parsed)
        if "taskId" not in fields:
            self._end_task()
            getattr(self, f"_add_{kind}")(fields)
        elif self._task is None or self._task.fields["id"] != fields["taskId"]:
            raise invalid({"taskId": ["Must be the ID of the preceding task."]})
        else:
            getattr(self, f"_add_{kind}")(fields, self._task)

    def _add_export(self, fields: dict[str, Any]) -> None:
        if fields["format"] != export_lines.FORMAT:
            raise ValueError(f"format: must be {export_lines.FORMAT}, not {fields['format']}")
        self._count = 0

    def _add_user(self, fields: dict[str, Any]) -> None:
        """Add a user, or use the existing user with the same name."""
        known_id = self._connection.scalar(select(User.id).where(User.name == fields["name"]))
        user_id = self._users[fields["id"]] = known_id or fields["id"]
        if known_id is None:
            self._insert(User, export_lines.user_rows.stored(fields))
            # A new user needs a secret, since an export contains no secrets.
            insert_secret(self._connection, user_id, clock.now())
            self.imported.users.append(fields["name"])
        for hook in fields["hooks"]:
            self._add_hook(user_id, hook)

    def _add_hook(self, user_id: str, fields: dict[str, Any]) -> None:
        """Add a hook. An active hook is turned off, since an export does not contain its token."""
        hooks.check_target(fields["target"], fields["format"])
        if not self._is_new(Hook, fields["id"], user_id):
            return
        count = select(func.count()).where(Hook.user_id == user_id, Hook.deleted_at.is_(None))
        if (self._connection.scalar(count) or 0) >= terms.MAX_HOOKS:
            raise invalid({"hooks": [f"The user has {terms.MAX_HOOKS} hooks already."]})
        is_on = fields["state"] == terms.ACTIVE
        state = {"state": terms.OFF, "reason": IMPORTED} if is_on else {}
        self._insert(Hook, export_lines.hook_rows.stored(fields | state) | {"user_id": user_id})
        self.imported.hooks += 1

    def _add_agent(self, fields: dict[str, Any]) -> None:
        user_id = self._user_id(fields)
        values = agents.columns(fields) | {"user_id": user_id}
        self._agents.add((user_id, fields["id"]))
        there = exists().where(Agent.user_id == user_id, Agent.id == fields["id"])
        if not self._connection.scalar(select(there)):
            self._insert(Agent, values)
            self.imported.agents += 1

    def _add_task(self, fields: dict[str, Any]) -> None:
        user_id, error = self._user_id(fields), fields["error"] or {}
        if (user_id, fields["agentId"]) not in self._agents:
            raise invalid({"agentId": ["No earlier line contains this agent."]})
        self._count += 1
        is_new = self._is_new(Task, fields["id"], user_id)
        self._task = _FileTask(fields, self.number, is_new, fields["firstLog"] - 1)
        if not is_new:
            self.imported.existing_tasks += 1
            return
        writers = fields["writers"]
        values = {"labels": "{}", **export_lines.task_rows.stored(fields)} | {
            "user_id": user_id,
            "name_folded": fields["name"].casefold(),
            "error_type": error.get("type"),
            "error_message": error.get("message"),
            "questions": NO_QUESTIONS,
            "log_bytes": fields["logBytes"],
            "default_writer_seq": writers.get("", 0),
            "version": fields["version"],
            "timeout": fields["timeout"],
        }
        if key := _key(fields):
            of_key = Task.idempotency_key == key["idempotency_key"]
            # An idempotency key that another task already uses is omitted.
            is_used = select(exists().where(Task.user_id == user_id, of_key))
            values |= {} if self._connection.scalar(is_used) else key
        self._insert(Task, values, own_timeout=fields["timeout"])
        tasks.insert_labels(self._connection, cast(TaskRow, SimpleNamespace(**values)))
        for writer, seq in writers.items():
            if writer:
                self._insert(LogWriter, {"task_id": fields["id"], "writer": writer, "seq": seq})
        self.imported.tasks += 1
        self.changed_agents.add((user_id, fields["agentId"]))

    def _add_question(self, fields: dict[str, Any], task: _FileTask) -> None:
        is_open = fields["state"] == terms.OPEN
        task.open_questions += is_open
        if is_open and task.fields["status"] != terms.RUNNING:
            raise invalid({"state": ["The task has ended, so it cannot have an open question."]})
        if task.open_questions > terms.MAX_OPEN_QUESTIONS:
            detail = f"More than {terms.MAX_OPEN_QUESTIONS} questions of the task are open."
            raise invalid({"state": [detail]})
        if task.is_new:
            of_task = {"task_id": fields["taskId"]}
            values = export_lines.question_rows.stored(fields) | of_task | _key(fields)
            self._insert(Question, values)
        if task.is_new and is_open:
            open_json = questions.open_json(self._connection, fields["taskId"])
            of_id = update(Task).where(Task.id == fields["taskId"])
            self._connection.execute(of_id.values(questions=open_json))

    def _add_delivery(self, fields: dict[str, Any], task: _FileTask) -> None:
        """Add a delivery. A pending delivery is cancelled, since an import sends no webhook."""
        if not task.is_new:
            return
        is_pending = fields["state"] == terms.PENDING
        delivery = export_lines.delivery_rows.stored(fields) | {
            "task_id": fields["taskId"],
            "user_id": self._users[task.fields["userId"]],
            "host": urlsplit(fields["callback"]).netloc.lower(),
            "state": terms.CANCELLED if is_pending else fields["state"],
            "next_attempt_at": None,
            "attempt_count": len(fields["attempts"]),
        }
        self._insert(Delivery, delivery)
        for attempt in fields["attempts"]:
            of_delivery = {"delivery_id": fields["id"], "answer": attempt.get("answer")}
            self._insert(Attempt, export_lines.attempt_rows.stored(attempt) | of_delivery)

    def _add_log(self, fields: dict[str, Any], task: _FileTask) -> None:
        """Add the next lines to the log of the task; `first` is the number of the first line."""
        if fields["first"] != task.last + 1:
            raise invalid({"first": [f"The next line of the log is {task.last + 1}."]})
        if task.is_new and task.log_id is None:
            task.log_id = logs.NEW_LOG.scalar(self._connection, task_id=fields["taskId"])
        for chunk in logs.from_strings(fields["lines"], fields.get("at")):
            task.last += chunk.count
            task.size += chunk.size
            at, times = clock.encode(chunk.times) if chunk.times else (None, None)
            values = {"log_id": task.log_id, "last": task.last, "count": chunk.count}
            if task.is_new:
                lines = {"text": chunk.text, "at": at, "times": times}
                self._insert(LogChunk, values | lines)

    def _add_void(self, fields: dict[str, Any], task: _FileTask) -> None:
        """Remove the preceding task: it was deleted, or the next lines export it again."""
        self._count -= 1
        self._task = None
        if task.is_new:
            tasks.remove(self._connection, [fields["taskId"]])
            self.imported.tasks -= 1
        else:
            self.imported.existing_tasks -= 1

    def _end_task(self) -> None:
        """Check the log of a task after its last line."""
        task, self._task = self._task, None
        if task is None:
            return
        wrong = {}
        if task.last != task.fields["logCount"]:
            wrong["logCount"] = [f"The last line of the log is {task.last}."]
        # The lines before `firstLog` have been removed, and their size is unknown.
        log_bytes = task.fields["logBytes"]
        if task.size > log_bytes or (task.size < log_bytes and task.fields["firstLog"] == 1):
            wrong["logBytes"] = [f"The log has {task.size} bytes."]
        if wrong:
            self.number = task.number
            raise invalid(wrong)

    def _add_end(self, fields: dict[str, Any]) -> None:
        if fields["tasks"] != self._count:
            raise ValueError(f"tasks: the export contains {self._count}")

    def _user_id(self, fields: Mapping[str, Any]) -> str:
        if fields["userId"] not in self._users:
            raise invalid({"userId": ["No earlier line contains this user."]})
        return self._users[fields["userId"]]

    def _is_new(self, model: type[Hook] | type[Task], row_id: str, user_id: str) -> bool:
        """Whether this ID is unused. Raises 422 if it belongs to another user."""
        owner = _OWNERS[model].scalar(self._connection, row_id=row_id)
        if owner not in (None, user_id):
            raise invalid({"id": ["Belongs to another user."]})
        return owner is None

    def _insert(self, model: type[DeclarativeBase], values: dict[str, Any], **others: Any) -> None:
        _insertion(model, tuple(values)).run(self._connection, **values, **others)


def _key(fields: Mapping[str, Any]) -> dict[str, Any]:
    key = fields["idempotency"]
    return {f"idempotency_{name}": key[name] for name in ("key", "digest")} if key else {}


@cache
def _insertion(model: type[DeclarativeBase], columns: tuple[str, ...]) -> Statement[None]:
    return Statement(tasks.NEW_TASK if model is Task else insert(model), columns)
