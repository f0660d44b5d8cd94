"""Imports an export: all that is not there yet, in one transaction."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, exists, insert, select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import aliased

from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import (
    Agent,
    Attempt,
    Delivery,
    Log,
    LogChunk,
    LogWriter,
    Question,
    Task,
    User,
)
from taskservice.database.transactions import transaction
from taskservice.database.types import Base, Identifier, TaskRow, database_now
from taskservice.schemas import strict_json
from taskservice.schemas.columns import TASK_COLUMNS
from taskservice.schemas.exported import OF_TASK
from taskservice.schemas.fields import NO_QUESTIONS, RowSchema, StoredJson, StoredNumber
from taskservice.schemas.tasks import AttemptSchema, question_schema, task_schema
from taskservice.schemas.users import agent_schema
from taskservice.services.callback_secrets import insert_secret
from taskservice.services.import_lines import InvalidExport, Line, read, voided
from taskservice.services.questions import open_json
from taskservice.services.tasks import insert_labels
from taskservice.terms import CANCELLED, PENDING


@dataclass(frozen=True)
class Imported:
    """What an import has added, and what it has left as it was."""

    tasks: int
    existing_tasks: int
    users: list[str]
    agents: int
    # Of requests that the database has a task for already.
    dropped_keys: int


def import_from(file: BinaryIO) -> Imported:
    """Add what an export has and the database has not; tasks that exist are left as they are.

    The file is read twice: all of it is checked before the transaction begins. Raises
    InvalidExport, with nothing changed.
    """
    start = file.tell()
    not_counted = voided(file)
    file.seek(start)
    with transaction() as connection:
        importer = _Importer(connection, not_counted)
        for line in read(file):
            importer.add(line)
        return importer.finish()


# An import begins the silence clock of a running task anew.
_NEW_TASK = Statement[None](
    insert(Task).values(
        last_heartbeat_at=database_now(),
        heartbeat_deadline=database_now(bindparam("own_timeout", type_=Integer())),
    ),
    {column.key for column in TASK_COLUMNS}
    | {"name_folded", "timeout", "default_writer_seq"}
    | {"idempotency_key", "idempotency_digest", "claim_key"},
)
_TASK_ID = Statement[Any](select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier)))
_NEW_LOG = Statement[Any](insert(Log).returning(Log.id), ("task_id",))
_parent = aliased(Task)
# For each column that refers to tasks: forget those that are not here.
_FORGET_MISSING = tuple(
    update(Task)
    .where(column.is_not(None), ~exists().where(_parent.id == column).correlate(Task))
    .values({column: None})
    for column in (Task.parent_id, Task.rerun_of)
)


class _Importer:
    """Writes lines, one after another, in an open transaction."""

    def __init__(self, connection: Connection, not_counted: set[int]) -> None:
        self._connection = connection
        self._not_counted = not_counted
        self._counts: Counter[str] = Counter()
        self._new_users: list[str] = []
        # Ids of users in the file -> in the database.
        self._users: dict[str, str] = {}
        # The task that the next lines belong to; None if they do not count, or it existed before.
        self._task: dict[str, Any] | None = None
        self._log_id: int | None = None

    def add(self, line: Line) -> None:
        if line.type in OF_TASK and self._task is None:
            return
        write = getattr(self, f"_add_{line.type}", None)
        try:
            if write is not None:
                write(line)
        except (DataError, IntegrityError) as error:
            reason = str(error.orig).partition("\n")[0]
            raise InvalidExport(line.number, f"does not fit the database: {reason}") from None

    def finish(self) -> Imported:
        for statement in _FORGET_MISSING:
            self._connection.execute(statement)
        return Imported(
            tasks=self._counts["tasks"],
            existing_tasks=self._counts["existing"],
            users=self._new_users,
            agents=self._counts["agents"],
            dropped_keys=self._counts["dropped keys"],
        )

    def _add_user(self, line: Line) -> None:
        """Users are matched by their names."""
        fields = line.fields
        of_name = select(User.id).where(User.name == fields["name"])
        found = self._connection.scalar(of_name)
        self._users[fields["id"]] = found or fields["id"]
        if found is None:
            self._insert(User, id=fields["id"], name=fields["name"], created_at=fields["createdAt"])
            # Exports have no secrets.
            insert_secret(self._connection, fields["id"], clock.now())
            self._new_users.append(fields["name"])

    def _add_agent(self, line: Line) -> None:
        values = _columns(agent_schema, line.fields) | {
            "user_id": self._users[line.fields["userId"]]
        }
        there = exists().where(Agent.user_id == values["user_id"], Agent.id == values["id"])
        if not self._connection.scalar(select(there)):
            self._insert(Agent, **values)
            self._counts["agents"] += 1

    def _add_task(self, line: Line) -> None:
        self._task, self._log_id = None, None
        if line.number in self._not_counted:
            return
        fields = line.fields
        if _TASK_ID.scalar(self._connection, task_id=fields["id"]):
            self._counts["existing"] += 1
            return
        values = self._task_values(fields)
        _NEW_TASK.run(self._connection, **values, own_timeout=values["timeout"])
        insert_labels(self._connection, cast(TaskRow, SimpleNamespace(**values)))
        for writer, seq in fields["writers"].items():
            if writer:
                self._insert(LogWriter, task_id=values["id"], writer=writer, seq=seq)
        self._task = values
        self._counts["tasks"] += 1

    def _task_values(self, fields: dict[str, Any]) -> dict[str, Any]:
        error, keys = fields["error"] or {}, self._free_keys(fields)
        return _columns(task_schema, fields) | keys | {
            "user_id": self._users[fields["userId"]],
            "name_folded": fields["name"].casefold(),
            "error_type": error.get("type"),
            "error_message": error.get("message"),
            "questions": NO_QUESTIONS,
            "log_bytes": fields["logBytes"],
            "default_writer_seq": fields["writers"].get("", 0),
            "version": fields["version"],
            "timeout": fields["timeout"],
        }  # fmt: skip

    def _free_keys(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The keys by which its start and its claim can be repeated, unless they are in use."""
        user_id, given = self._users[fields["userId"]], fields["idempotency"] or {}
        key, claim_key = given.get("key"), fields["claimKey"]
        if key is not None and self._is_used(user_id, Task.idempotency_key == key):
            key = None
        of_claim = (Task.agent_id == fields["agentId"], Task.claim_key == claim_key)
        if claim_key is not None and self._is_used(user_id, *of_claim):
            claim_key = None
        digest = given["digest"] if key is not None else None
        return {"idempotency_key": key, "idempotency_digest": digest, "claim_key": claim_key}

    def _is_used(self, user_id: str, *conditions: ColumnElement[bool]) -> bool:
        here = exists().where(Task.user_id == user_id, *conditions)
        is_used = bool(self._connection.scalar(select(here)))
        self._counts["dropped keys"] += is_used
        return is_used

    def _add_question(self, line: Line) -> None:
        given = line.fields["idempotency"] or {}
        task_id = line.fields["taskId"]
        self._insert(
            Question,
            **_columns(question_schema, line.fields),
            task_id=task_id,
            idempotency_key=given.get("key"),
            idempotency_digest=given.get("digest"),
        )
        of_task = update(Task).where(Task.id == task_id)
        self._connection.execute(of_task.values(questions=open_json(self._connection, task_id)))

    def _add_delivery(self, line: Line) -> None:
        """A pending one becomes cancelled: an import sends no webhook."""
        fields, attempts = line.fields, line.fields["attempts"]
        assert self._task is not None
        self._insert(
            Delivery,
            id=fields["id"],
            task_id=fields["taskId"],
            user_id=self._task["user_id"],
            callback_url=fields["callback"],
            host=urlsplit(fields["callback"]).netloc.lower(),
            state=CANCELLED if fields["state"] == PENDING else fields["state"],
            created_at=fields["createdAt"],
            attempt_count=len(attempts),
        )
        for attempt in attempts:
            values = _columns(AttemptSchema(), attempt)
            self._insert(Attempt, **values, delivery_id=fields["id"], answer=attempt["answer"])

    def _add_log(self, line: Line) -> None:
        fields = line.fields
        if self._log_id is None:
            self._log_id = _NEW_LOG.scalar(self._connection, task_id=fields["taskId"])
        count, at, times = len(fields["lines"]), fields["at"], None
        if isinstance(at, list):
            at, times = clock.encode(list(enumerate(at)))
        self._insert(
            LogChunk,
            log_id=self._log_id,
            last=fields["first"] + count - 1,
            count=count,
            text="\n".join(fields["lines"]),
            at=at,
            times=times,
        )

    def _insert(self, model: type[Base], **values: Any) -> None:
        _insertion(model, tuple(values)).run(self._connection, **values)


@cache
def _insertion(model: type[Base], columns: tuple[str, ...]) -> Statement[None]:
    return Statement(insert(model), columns)


def _columns(schema: RowSchema, fields: dict[str, Any]) -> dict[str, Any]:
    """Column -> value, for the fields of a line that the API has too."""
    return {
        column.key: _stored(schema.fields[name], fields[name])
        for name, column in schema.columns.items()
        if name in fields
    }


def _stored(field: Any, value: Any) -> Any:
    if isinstance(field, StoredJson | StoredNumber) and value is not None:
        return strict_json.dumps(value).decode()
    return value
