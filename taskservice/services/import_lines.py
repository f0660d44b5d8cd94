"""Reads the lines of an export, and checks each and their order before anything is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO

from marshmallow import ValidationError

from taskservice.schemas import strict_json
from taskservice.schemas.exported import LINES, OF_TASK
from taskservice.schemas.strict_json import MAX_CONTAINERS, NotJson, UnsupportedNumber
from taskservice.terms import MAX_OPEN_QUESTIONS, OPEN, RUNNING

# No line of an export is longer: a task's input and output have 1 MiB each.
MAX_LINE_BYTES = 16 * 1024 * 1024


class InvalidExport(Exception):
    """A line that no export has; the message names it."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")


@dataclass(frozen=True)
class Line:
    """A line of a known type, with what its schema loaded."""

    number: int
    type: str
    fields: dict[str, Any]


def read(file: BinaryIO) -> Iterator[Line]:
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
        order.check(line)
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


def _parsed(number: int, text: bytes) -> Line:
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
        return Line(number, kind, schema.load(value))
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

    def check(self, line: Line) -> None:
        if (line.number == 1) != (line.type == "export"):
            raise InvalidExport(line.number, "the first line, and no other, has the type export")
        if line.type in OF_TASK:
            self._check_task_id(line)
        else:
            self._check_log_is_complete(line)
            self._task_id = None
        check = getattr(self, f"_check_{line.type}", None)
        if check is not None:
            check(line)

    def _check_task_id(self, line: Line) -> None:
        if line.fields["taskId"] != self._task_id:
            raise InvalidExport(line.number, "taskId: is not the task before it")

    def _check_log_is_complete(self, line: Line) -> None:
        if self._task_id is not None and self._next_line <= self._last_line:
            raise InvalidExport(
                line.number, f"lines {self._next_line} to {self._last_line} of the log are missing"
            )

    def _check_user(self, line: Line) -> None:
        self._users.add(line.fields["id"])

    def _check_agent(self, line: Line) -> None:
        if line.fields["userId"] not in self._users:
            raise InvalidExport(line.number, "userId: there is no such user before it")
        self._agents.add((line.fields["userId"], line.fields["id"]))

    def _check_task(self, line: Line) -> None:
        fields = line.fields
        if (fields["userId"], fields["agentId"]) not in self._agents:
            raise InvalidExport(line.number, "agentId: there is no such agent before it")
        self._tasks += 1
        self._task_id = fields["id"]
        self._next_line, self._last_line = fields["firstLog"], fields["logCount"]
        self._is_running, self._open_questions = fields["status"] == RUNNING, 0

    def _check_question(self, line: Line) -> None:
        if line.fields["state"] != OPEN:
            return
        self._open_questions += 1
        if not self._is_running:
            raise InvalidExport(line.number, "state: a task that has ended has no open question")
        if self._open_questions > MAX_OPEN_QUESTIONS:
            raise InvalidExport(
                line.number, f"state: a task has at most {MAX_OPEN_QUESTIONS} open questions"
            )

    def _check_log(self, line: Line) -> None:
        last = line.fields["first"] + len(line.fields["lines"]) - 1
        if line.fields["first"] != self._next_line or last > self._last_line:
            raise InvalidExport(line.number, f"first: must be {self._next_line}")
        self._next_line = last + 1

    def _check_void(self, line: Line) -> None:
        self._tasks -= 1
        self._task_id = None

    def _check_end(self, line: Line) -> None:
        if line.fields["tasks"] != self._tasks:
            raise InvalidExport(line.number, f"tasks: there are {self._tasks}")
