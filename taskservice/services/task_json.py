"""Tasks as JSON text, with the lines of their logs streamed into it."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from taskservice.database.types import ListedTask, TaskRow
from taskservice.errors import not_found
from taskservice.schemas import strict_json
from taskservice.schemas.fields import dump_items, split_at_lines
from taskservice.schemas.tasks import TASK_EXPANSIONS, TASK_FIELDS, TaskSchema, task_schema
from taskservice.schemas.users import agent_of_task_schema, user_schema
from taskservice.services import agents as agent_queries
from taskservice.services import logs, users
from taskservice.services.logs import TimedLine
from taskservice.terms import WEBHOOK_LINES, WEBHOOK_LOG_BYTES

# Minimum size of a piece of text that is sent.
PIECE_BYTES = 64 * 1024
# How many tasks, which the database wrote as JSON, are joined in one step.
TASKS_AT_ONCE = 50


@dataclass(frozen=True)
class Shape:
    """The parts of a task that a response contains; empty `fields` means all."""

    fields: tuple[str, ...] = ()
    expand: tuple[str, ...] = ()

    @property
    def has_logs(self) -> bool:
        return not self.fields or "logs" in self.fields

    @cached_property
    def version(self) -> str:
        """The part of an ETag that depends on the shape."""
        return f"{zlib.crc32(','.join(sorted(self.fields)).encode()):x}"

    @cached_property
    def schema(self) -> TaskSchema:
        return _schema(self.fields)


WHOLE = Shape()


@lru_cache(maxsize=64)
def _schema(fields: tuple[str, ...]) -> TaskSchema:
    # Constructing a schema takes several times as long as dumping with it.
    if not fields:
        return task_schema
    return TaskSchema(exclude={*TASK_FIELDS, *TASK_EXPANSIONS} - {*fields})


def task(row: TaskRow, shape: Shape = WHOLE) -> Iterator[bytes]:
    """One task as JSON, in pieces. Raises LogDropped, and 404 if task and agent were deleted."""
    embedded = _embedded([row], shape)
    if row.agent_id not in embedded:
        raise not_found("task")
    return _in_pieces(_task_text(row, shape, embedded[row.agent_id]))


def with_lines(row: TaskRow, shape: Shape, lines: list[str]) -> bytes:
    """One task as JSON, with the lines of its log."""
    return strict_json.dumps(shape.schema.dump(row) | {"logs": lines})


def tasks(parts: Iterable[Sequence[ListedTask]], shape: Shape) -> Iterator[bytes]:
    """The tasks of a list as one JSON array, in pieces."""
    return _in_pieces(_array_text(parts, shape))


def array(pages: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The items of all pages as one JSON array, in pieces."""
    return _in_pieces(chain([b"["], _joined(pages), [b"]"]))


def log_page(row: TaskRow, after: int, count: int, *, has_times: bool = False) -> Iterator[bytes]:
    """At most `count` lines after number `after` as JSON, in pieces, with the next `after`."""
    last = max(after, row.first_log - 1, min(row.log_count, after + count))
    more = {"next": last, "status": row.status}
    return _in_pieces(_log_page_text(row, after, count, more, has_times=has_times))


def log_text(
    row: TaskRow, after: int, count: int | None, *, has_times: bool = False
) -> Iterator[bytes]:
    """Lines after number `after` as UTF-8 with a line feed each, and their times if wanted."""

    def text(page: logs.Page) -> str:
        if has_times:
            return "".join(f"{line.at or '-'} {line.text}\n" for line in page.timed_lines())
        return "".join(f"{line}\n" for line in page.lines())

    return _in_pieces(text(page).encode() for page in logs.pages(row, after, count))


def _log_page_text(
    row: TaskRow, after: int, count: int, more: dict[str, Any], *, has_times: bool
) -> Iterator[bytes]:
    yield b'{"logs":['
    if has_times:
        times: list[str | None] = []
        pages = (page.timed_lines() for page in logs.pages(row, after, count))
        yield from _joined(_without_times(pages, times))
        yield b'],"times":['
        yield dump_items(times)
    else:
        yield from _joined(page.lines() for page in logs.pages(row, after, count))
    yield b"]," + strict_json.dumps(more)[1:]


def _without_times(
    pages: Iterable[list[TimedLine]], times: list[str | None]
) -> Iterator[list[str]]:
    """The texts of the lines; their times are added to `times`, which a page keeps small."""
    for lines in pages:
        times += [line.at for line in lines]
        yield [line.text for line in lines]


def webhook_body(row: TaskRow) -> bytes:
    """The JSON of a finished task for its callback, with the last lines of its log only."""
    lines = logs.last_lines(row, WEBHOOK_LINES, WEBHOOK_LOG_BYTES)
    dumped = task_schema.dump(row) | {"firstLog": row.log_count - len(lines) + 1}
    head, tail = split_at_lines(dumped)
    return head + dump_items(lines) + tail


def _array_text(parts: Iterable[Sequence[ListedTask]], shape: Shape) -> Iterator[bytes]:
    comma = b"["
    for rows in filter(None, parts):
        for texts in _texts(rows, shape):
            yield comma
            yield from texts
            comma = b","
    yield b"[]" if comma == b"[" else b"]"


def _texts(rows: Sequence[ListedTask], shape: Shape) -> Iterator[Iterable[bytes]]:
    """The tasks as JSON: several together, with commas between them, or each in pieces."""
    texts = [row.json for row in rows if row.json]
    if len(texts) == len(rows) and not shape.expand:
        for start in range(0, len(texts), TASKS_AT_ONCE):
            yield [b",".join(texts[start : start + TASKS_AT_ONCE])]
        return
    embedded = _embedded(rows, shape)
    for row in rows:
        if row.agent_id in embedded:
            more = embedded[row.agent_id]
            if row.json:
                # The text of a JSON object, with more fields.
                yield [row.json[:-1] + b"," + strict_json.dumps(more)[1:]]
            else:
                yield _task_text(row, shape, more)


def _task_text(row: TaskRow, shape: Shape, more: Mapping[str, Any]) -> Iterator[bytes]:
    head, tail = split_at_lines(shape.schema.dump(row) | more)
    yield head
    if shape.has_logs:
        yield from _joined(page.lines() for page in logs.pages(row))
        yield tail


def _joined(pages: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The items of all pages as JSON with commas between them."""
    comma = b""
    for lines in pages:
        yield comma
        yield dump_items(lines)
        comma = b","


def _embedded(rows: Sequence[TaskRow], shape: Shape) -> dict[str, dict[str, Any]]:
    """Agent id -> the objects that `shape` embeds in its tasks; deleted agents are left out."""
    agent_ids = {row.agent_id for row in rows}
    if not shape.expand:
        return {key: {} for key in agent_ids}
    user_id = rows[0].user_id
    user = user_schema.dump(users.get(user_id))
    agents = agent_queries.by_id(user_id, agent_ids)
    embedded = {}
    for key, agent in agents.items():
        each = {"agent": agent_of_task_schema.dump(agent), "user": user}
        embedded[key] = {name: each[name] for name in TASK_EXPANSIONS if name in shape.expand}
    return embedded


def _in_pieces(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The same text in fewer, larger pieces: each one sent costs a system call."""
    waiting, size = [], 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)
