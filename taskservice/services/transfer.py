"""Imports an export: all that is not there yet, in one transaction."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, count
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from marshmallow import (
    EXCLUDE,
    Schema,
    ValidationError,
    fields,
    missing,
    validate,
    validates_schema,
)
from sqlalchemy import ColumnElement, Connection, bindparam, exists, insert, select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, aliased

from taskservice import __version__, terms
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import (
    Agent,
    Attempt,
    Delivery,
    LogChunk,
    LogWriter,
    Question,
    Task,
    User,
)
from taskservice.database.transactions import reading, reading_one_state, transaction
from taskservice.database.types import (
    AnyRow,
    AnySelect,
    Identifier,
    TaskRow,
    byte_length,
)
from taskservice.errors import invalid
from taskservice.schemas import strict_json
from taskservice.schemas.fields import (
    NO_QUESTIONS,
    Id,
    JsonObject,
    Moment,
    RowSchema,
    StoredJson,
    Strings,
    Times,
    WholeNumber,
    bytes_at_most,
    name_field,
)
from taskservice.schemas.requests import AskSchema, PutAgentSchema, ReportSchema, StartSchema
from taskservice.schemas.strict_json import MAX_CONTAINERS, NotJson, UnsupportedNumber
from taskservice.schemas.tasks import (
    ATTEMPT_COLUMNS,
    DELIVERY_COLUMNS,
    TASK_COLUMNS,
    TASK_EXPANSIONS,
    TaskSchema,
    attempt_schema,
    delivery_schema,
    question_schema,
    task_schema,
)
from taskservice.schemas.users import AGENT_COLUMNS, USER_COLUMNS, agent_schema, user_schema
from taskservice.services import logs, questions
from taskservice.services.logs import LogGone, TimedLine
from taskservice.services.questions import open_json
from taskservice.services.tasks import MORE_COLUMNS, NEW_TASK, insert_labels, tasks_with_log
from taskservice.services.users import insert_secret
from taskservice.webhooks.destinations import read_url

# The lines of an export: a type for each, with what the API answers of such a thing and more.

# An import ignores unknown fields, and gives missing ones their default: only a change that this
# does not cover raises the format.
FORMAT = 1
_MAX_COUNT = 1 << 53


def _text(limit: int, **options: Any) -> fields.String:
    return fields.String(validate=validate.Length(max=limit), **options)


def _count(lowest: int = 0, highest: int = _MAX_COUNT, **options: Any) -> WholeNumber:
    return WholeNumber(validate=validate.Range(lowest, highest), **options)


def _url(value: str) -> None:
    try:
        # Where webhooks may go is judged when one is sent.
        read_url(value)
    except ValueError as error:
        raise ValidationError(str(error)) from None


class _Complete(Schema):
    """What has all fields that have no default; an older version lacks those added since."""

    class Meta:
        # Of a later version.
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        if field_obj.allow_none:
            field_obj.load_default = None
        field_obj.required = field_obj.load_default is missing
        field_obj.error_messages = {**field_obj.error_messages, "required": "Is missing."}

    @classmethod
    def of(cls, answered: RowSchema, *requests: Schema) -> Schema:
        """The schema with what the API answers too, checked as in the requests that set it."""
        own = cls().fields
        more = {
            name: _to_load(name, field, answered.columns.get(name), requests)
            for name, field in answered.fields.items()
            if name not in own
        }
        return cls.from_dict(more)()


def _to_load(
    name: str, field: fields.Field[Any], column: Any, requests: Sequence[Schema]
) -> fields.Field[Any]:
    """The field that loads what `field` has dumped."""
    asked = next((each.fields[name] for each in requests if name in each.fields), None)
    found = copy(asked) if asked is not None else _strict(field)
    found.allow_none = field.allow_none
    default = None if column is None or column.server_default is None else column.server_default.arg
    if isinstance(default, str):
        is_text = isinstance(field, fields.String)
        found.load_default = default if is_text else strict_json.loads(default.encode())
    return found


def _strict(field: fields.Field[Any]) -> fields.Field[Any]:
    """A field that accepts only what `field` says in the OpenAPI document."""
    said = field.metadata
    if said.get("format") == "uuid":
        return Id()
    if said.get("format") == "date-time":
        return Moment("")
    if isinstance(field, StoredJson):
        return JsonObject()
    if isinstance(field, fields.Integer):
        return _count(said.get("minimum", 0), said.get("maximum", _MAX_COUNT))
    length = validate.Length(max=said.get("maxLength"))
    return fields.String(validate=[*field.validators, length])


class ExportLine(_Complete):
    """The first line: what the others are."""

    format = WholeNumber(validate=validate.Equal(FORMAT, error="Must be {other}, not {input}."))
    version = fields.String()


class UserLine(_Complete):
    """A user, without keys and secrets."""

    name = name_field("")


class AgentLine(_Complete):
    """An agent of a user before it."""

    id = fields.String(validate=validate.Regexp(terms.AGENT_ID.pattern + r"\Z"))
    annotations = JsonObject()


class ErrorOfTask(_Complete):
    """Why a task ended as error."""

    type = fields.String(validate=validate.OneOf(terms.ERROR_TYPES))
    message = fields.String(validate=bytes_at_most(terms.MAX_MESSAGE))


class Idempotency(_Complete):
    """The key by which a request can be repeated, and the digest of that request."""

    key = _text(terms.MAX_IDEMPOTENCY_KEY)
    digest = fields.String(validate=validate.Length(64, 64))


class TaskLine(_Complete):
    """A task of an agent before it; its questions, deliveries and log follow."""

    callback = fields.String(allow_none=True, validate=_url)
    error = fields.Nested(ErrorOfTask(), allow_none=True)
    logBytes = _count(highest=terms.MAX_LOG)
    version = _count(1)
    timeout = _count(highest=terms.MAX_TIMEOUT, allow_none=True)
    # Writer -> the number of lines that it has sent; the empty name is the writer without one.
    writers = fields.Dict(keys=_text(terms.MAX_WRITER), values=_count())
    idempotency = fields.Nested(Idempotency(), allow_none=True)
    claimKey = _text(terms.MAX_IDEMPOTENCY_KEY, allow_none=True)

    @validates_schema
    def check_end(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if (data["status"] == terms.ERROR) != (data["error"] is not None):
            raise ValidationError("Only a task in error has one.", "error")
        if (data["status"] == terms.RUNNING) != (data["finishedAt"] is None):
            raise ValidationError("Only a task that has ended has it.", "finishedAt")
        if data["firstLog"] > data["logCount"] + 1:
            raise ValidationError("Past the end of the log.", "firstLog")
        if len(data["writers"]) > terms.MAX_WRITERS + 1:
            raise ValidationError(f"More than {terms.MAX_WRITERS}.", "writers")


class QuestionLine(_Complete):
    """A question of the task before it."""

    taskId = Id()
    idempotency = fields.Nested(Idempotency(), allow_none=True)

    @validates_schema
    def check_answer(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if (data["state"] == terms.ANSWERED) != (data["answer"] is not None):
            raise ValidationError("Only an answered question has one.", "answer")


class AttemptOfDelivery(_Complete):
    """One attempt of a delivery."""

    answer = fields.String(allow_none=True)


class DeliveryLine(_Complete):
    """A delivery of the task before it, with its attempts, oldest first."""

    taskId = Id()
    callback = fields.String(validate=_url)
    attempts = fields.List(fields.Nested(AttemptOfDelivery.of(attempt_schema)))


class LogLine(_Complete):
    """The next lines of the log of the task before it; `first` is the number of the first one."""

    taskId = Id()
    first = _count(1)
    lines = Strings(fields.String(), validate=validate.Length(min=1))
    at = Times(allow_none=True)

    @validates_schema
    def check_lines(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if any("\n" in line for line in data["lines"]):
            raise ValidationError("A line has a line feed.", "lines")
        if isinstance(data["at"], list) and len(data["at"]) != len(data["lines"]):
            raise ValidationError("Must have one time for each line.", "at")


class VoidLine(_Complete):
    """The task before it does not count: it was deleted, or its log dropped, meanwhile."""

    taskId = Id()


class EndLine(_Complete):
    """The last line: without it, the export is not complete."""

    tasks = _count()


# What the API says of a task in one response; its log and its questions have lines of their own.
_task_schema = TaskSchema(exclude=(*TASK_EXPANSIONS, "logs", "questions"))
LINES: dict[str, Schema] = {
    "export": ExportLine(),
    "user": UserLine.of(user_schema),
    "agent": AgentLine.of(agent_schema, PutAgentSchema()),
    "task": TaskLine.of(_task_schema, StartSchema(), ReportSchema()),
    "question": QuestionLine.of(question_schema, AskSchema()),
    "delivery": DeliveryLine.of(delivery_schema),
    "log": LogLine(),
    "void": VoidLine(),
    "end": EndLine(),
}
# The lines that belong to the task before them.
OF_TASK = ("question", "delivery", "log", "void")


# Reads the lines of an export, and checks each and their order before anything is written.

# No line of an export is longer: a task's input and output have 1 MiB each.
MAX_LINE_BYTES = 16 * 1024 * 1024


class InvalidExport(Exception):
    """A line that no export has; the message names it."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")


@dataclass(frozen=True)
class NumberedLine:
    """A line of a known type, with what its schema loaded."""

    number: int
    type: str
    fields: dict[str, Any]


def read(file: BinaryIO) -> Iterator[NumberedLine]:
    """All lines of an export, in an order that makes sense; raises InvalidExport."""
    order = _Order()
    line = None
    for number in count(1):
        text = file.readline(MAX_LINE_BYTES + 1)
        if not text:
            break
        if line is not None and line.type == "end":
            raise InvalidExport(number, "comes after the end")
        line = _parsed(number, text)
        problem = order.problem(line)
        if problem is not None:
            raise InvalidExport(number, problem)
        yield line
    if line is None or line.type != "end":
        raise InvalidExport(number, "the end is missing: the export was cut off")


def voided(file: BinaryIO) -> set[int]:
    """Check all lines; returns the numbers of the lines of tasks that do not count."""
    numbers, task = set[int](), 0
    for line in read(file):
        if line.type == "task":
            task = line.number
        elif line.type == "void":
            numbers.add(task)
    return numbers


def _parsed(number: int, text: bytes) -> NumberedLine:
    if len(text) > MAX_LINE_BYTES:
        raise InvalidExport(number, f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        # A task has both its input and its output.
        value = strict_json.loads(text, 2 * MAX_CONTAINERS)
    except (NotJson, UnsupportedNumber) as error:
        raise InvalidExport(number, f"is not JSON: {error}") from None
    kind = value.get("type") if isinstance(value, dict) else None
    schema = LINES.get(kind) if isinstance(kind, str) else None
    if schema is None or kind is None:
        raise InvalidExport(number, f"its type must be one of {', '.join(LINES)}")
    try:
        return NumberedLine(number, kind, schema.load(value))
    except ValidationError as error:
        raise InvalidExport(number, _reason(error.messages)) from None


def _reason(messages: Any, name: str = "") -> str:
    """The first of marshmallow's messages, with the path of its field."""
    if isinstance(messages, dict):
        key, inner = next(iter(messages.items()))
        return _reason(inner, f"{name}.{key}" if name else str(key))
    first = messages[0] if isinstance(messages, list) else messages
    return f"{name}: {first}"


class _Order:
    """What must have come before a line."""

    def __init__(self) -> None:
        self._users: set[str] = set()
        self._agents: set[tuple[str, str]] = set()
        self._tasks = 0
        # The task that the next lines belong to, and the numbers of its next and its last line.
        self._task_id: str | None = None
        self._next_line, self._last_line = 1, 0
        self._is_running, self._open_questions = False, 0

    def problem(self, line: NumberedLine) -> str | None:
        """What is wrong with the next line; None if it may come here."""
        if (line.number == 1) != (line.type == "export"):
            return "the first line, and no other, has the type export"
        if line.type in OF_TASK:
            if line.fields["taskId"] != self._task_id:
                return "taskId: is not the task before it"
        elif self._task_id is not None and self._next_line <= self._last_line:
            return f"lines {self._next_line} to {self._last_line} of the log are missing"
        else:
            self._task_id = None
        check = getattr(self, f"_{line.type}", None)
        return None if check is None else check(line.fields)

    def _user(self, fields: dict[str, Any]) -> None:
        self._users.add(fields["id"])

    def _agent(self, fields: dict[str, Any]) -> str | None:
        if fields["userId"] not in self._users:
            return "userId: there is no such user before it"
        self._agents.add((fields["userId"], fields["id"]))
        return None

    def _task(self, fields: dict[str, Any]) -> str | None:
        if (fields["userId"], fields["agentId"]) not in self._agents:
            return "agentId: there is no such agent before it"
        self._tasks += 1
        self._task_id = fields["id"]
        self._next_line, self._last_line = fields["firstLog"], fields["logCount"]
        self._is_running, self._open_questions = fields["status"] == terms.RUNNING, 0
        return None

    def _question(self, fields: dict[str, Any]) -> str | None:
        if fields["state"] != terms.OPEN:
            return None
        self._open_questions += 1
        if not self._is_running:
            return "state: a task that has ended has no open question"
        if self._open_questions > terms.MAX_OPEN_QUESTIONS:
            return f"state: a task has at most {terms.MAX_OPEN_QUESTIONS} open questions"
        return None

    def _log(self, fields: dict[str, Any]) -> str | None:
        last = fields["first"] + len(fields["lines"]) - 1
        if fields["first"] != self._next_line or last > self._last_line:
            return f"first: must be {self._next_line}"
        self._next_line = last + 1
        return None

    def _void(self, _fields: dict[str, Any]) -> None:
        self._tasks -= 1
        self._task_id = None

    def _end(self, fields: dict[str, Any]) -> str | None:
        return None if fields["tasks"] == self._tasks else f"tasks: there are {self._tasks}"


# Imports an export: all that is not there yet, in one transaction.


@dataclass
class Imported:
    """What an import has added, and what it has left as it was."""

    tasks: int = 0
    existing_tasks: int = 0
    users: list[str] = field(default_factory=list)
    agents: int = 0
    # Of requests that the database has a task for already.
    dropped_keys: int = 0


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
        for statement in _FORGET_MISSING:
            connection.execute(statement)
        return importer.imported


_NEW_TASK = Statement[None](
    NEW_TASK,
    {column.key for column in TASK_COLUMNS} | MORE_COLUMNS | {"default_writer_seq", "claim_key"},
)
_TASK_ID = Statement[Any](select(Task.id).where(Task.id == bindparam("task_id", type_=Identifier)))
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
        self.imported = Imported()
        # Ids of users in the file -> in the database.
        self._users: dict[str, str] = {}
        # The task that the next lines belong to; None if they do not count, or it existed before.
        self._task: dict[str, Any] | None = None
        self._log_id: int | None = None

    def add(self, line: NumberedLine) -> None:
        if line.type in OF_TASK and self._task is None:
            return
        write = getattr(self, f"_add_{line.type}", None)
        try:
            if write is not None:
                write(line)
        except (DataError, IntegrityError) as error:
            reason = str(error.orig).partition("\n")[0]
            raise InvalidExport(line.number, f"does not fit the database: {reason}") from None

    def _add_user(self, line: NumberedLine) -> None:
        """Users are matched by their names."""
        fields = line.fields
        of_name = select(User.id).where(User.name == fields["name"])
        found = self._connection.scalar(of_name)
        self._users[fields["id"]] = found or fields["id"]
        if found is None:
            self._insert(User, id=fields["id"], name=fields["name"], created_at=fields["createdAt"])
            # Exports have no secrets.
            insert_secret(self._connection, fields["id"], clock.now())
            self.imported.users.append(fields["name"])

    def _add_agent(self, line: NumberedLine) -> None:
        values = agent_schema.stored(line.fields) | {"user_id": self._users[line.fields["userId"]]}
        there = exists().where(Agent.user_id == values["user_id"], Agent.id == values["id"])
        if not self._connection.scalar(select(there)):
            self._insert(Agent, **values)
            self.imported.agents += 1

    def _add_task(self, line: NumberedLine) -> None:
        self._task, self._log_id = None, None
        if line.number in self._not_counted:
            return
        fields = line.fields
        if _TASK_ID.scalar(self._connection, task_id=fields["id"]):
            self.imported.existing_tasks += 1
            return
        values = self._task_values(fields)
        _NEW_TASK.run(self._connection, **values, own_timeout=values["timeout"])
        insert_labels(self._connection, cast(TaskRow, SimpleNamespace(**values)))
        for writer, seq in fields["writers"].items():
            if writer:
                self._insert(LogWriter, task_id=values["id"], writer=writer, seq=seq)
        self._task = values
        self.imported.tasks += 1

    def _task_values(self, fields: dict[str, Any]) -> dict[str, Any]:
        error, keys = fields["error"] or {}, self._free_keys(fields)
        return task_schema.stored(fields) | keys | {
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
        self.imported.dropped_keys += is_used
        return is_used

    def _add_question(self, line: NumberedLine) -> None:
        given = line.fields["idempotency"] or {}
        task_id = line.fields["taskId"]
        self._insert(
            Question,
            **question_schema.stored(line.fields),
            task_id=task_id,
            idempotency_key=given.get("key"),
            idempotency_digest=given.get("digest"),
        )
        of_task = update(Task).where(Task.id == task_id)
        self._connection.execute(of_task.values(questions=open_json(self._connection, task_id)))

    def _add_delivery(self, line: NumberedLine) -> None:
        """A pending one becomes cancelled: an import sends no webhook."""
        fields, attempts = line.fields, line.fields["attempts"]
        assert self._task is not None
        delivery = delivery_schema.stored(fields) | {
            "task_id": fields["taskId"],
            "user_id": self._task["user_id"],
            "host": urlsplit(fields["callback"]).netloc.lower(),
            "state": terms.CANCELLED if fields["state"] == terms.PENDING else fields["state"],
            "next_attempt_at": None,
            "attempt_count": len(attempts),
        }
        self._insert(Delivery, **delivery)
        for attempt in attempts:
            values = attempt_schema.stored(attempt)
            self._insert(Attempt, **values, delivery_id=fields["id"], answer=attempt["answer"])

    def _add_log(self, line: NumberedLine) -> None:
        fields = line.fields
        if self._log_id is None:
            self._log_id = logs.NEW_LOG.scalar(self._connection, task_id=fields["taskId"])
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

    def _insert(self, model: type[DeclarativeBase], **values: Any) -> None:
        _insertion(model, tuple(values)).run(self._connection, **values)


@cache
def _insertion(model: type[DeclarativeBase], columns: tuple[str, ...]) -> Statement[None]:
    return Statement(insert(model), columns)


# Tasks with their logs, questions and deliveries as lines of JSON, while the service runs.

# Of one page, the bytes of inputs and outputs.
MAX_TASKS = 500
MAX_BYTES = 4 * 1024 * 1024
_AGENTS: AnySelect = select(*AGENT_COLUMNS)
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
_QUESTIONS: AnySelect = questions.OF_TASK.add_columns(
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
    with reading() as connection:
        users = connection.execute(select(*USER_COLUMNS).order_by(User.id)).all()
    people = [row for row in users if user in (None, row.name)]
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
    for page in questions.pages(_QUESTIONS, task.row.id):
        for question in page:
            dumped = question_schema.dump(question) | {"idempotency": _idempotency(question)}
            yield _line("question", of_task | dumped)
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
        **_task_schema.dump(row),
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
