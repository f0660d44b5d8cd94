"""Tasks as JSON text, with the lines of their logs streamed into it."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

from taskservice.contract.terms import WEBHOOK_LINES, WEBHOOK_LOG_BYTES
from taskservice.database.rows import TaskRow
from taskservice.problems import not_found
from taskservice.queries import agents as agent_queries
from taskservice.queries import logs as log_queries
from taskservice.queries import users as user_queries
from taskservice.schemas import strict_json
from taskservice.schemas.answers import (
    TASK_EXPANSIONS,
    TASK_FIELDS,
    TaskSchema,
    dump_items,
    split_at_lines,
    task_schema,
)
from taskservice.schemas.columns import LARGE_COLUMNS

# Minimum number of bytes in a piece of text that is sent.
PIECE_BYTES = 64 * 1024
# How many tasks with small logs become JSON at once.
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Shape:
    """The parts of a task that an answer has; empty `fields` means all."""

    fields: tuple[str, ...] = ()
    expand: tuple[str, ...] = ()

    @property
    def has_logs(self) -> bool:
        return not self.fields or "logs" in self.fields

    @property
    def large(self) -> tuple[str, ...]:
        """Those of its columns that may be large."""
        return tuple(name for name in LARGE_COLUMNS if not self.fields or name in self.fields)

    @cached_property
    def version(self) -> str:
        """What tells it from others in an ETag."""
        return f"{zlib.crc32(','.join(sorted(self.fields)).encode()):x}"

    def schema(self) -> TaskSchema:
        return _schema(self.fields, self.expand)


WHOLE = Shape()


@lru_cache(maxsize=64)
def _schema(fields: tuple[str, ...], expand: tuple[str, ...]) -> TaskSchema:
    # Constructing a schema takes several times as long as dumping with it.
    if not fields and not expand:
        return task_schema
    wanted = {*(fields or TASK_FIELDS), *expand}
    return TaskSchema(exclude={*TASK_FIELDS, *TASK_EXPANSIONS} - wanted)


class _Expanded:
    """A task's row together with the rows of its agent and its user."""

    def __init__(self, row: TaskRow, agent: Any, user: Any) -> None:
        self._row, self.agent, self.user = row, agent, user

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


def task(row: TaskRow, shape: Shape = WHOLE) -> Iterator[bytes]:
    """One task as JSON, in pieces.

    Raises LogGone if lines are dropped while they are read, and 404 if the task was deleted and
    then the agent to embed.
    """
    expanded = _expanded([row], shape)
    if not expanded:
        raise not_found("task")
    return _in_pieces(_tasks_text(expanded, shape))


def with_lines(row: TaskRow, shape: Shape, lines: list[str]) -> bytes:
    """One task as JSON, with the lines of its log."""
    return strict_json.dumps(shape.schema().dump(row) | {"logs": lines})


def tasks(pages: Iterable[Sequence[TaskRow]], shape: Shape = WHOLE) -> Iterator[bytes]:
    """Pages of tasks as one JSON array, in pieces."""
    return _in_pieces(_array_text(pages, shape))


def log_page(row: TaskRow, after: int, count: int) -> Iterator[bytes]:
    """At most `count` lines after number `after` as JSON, in pieces, with the next `after`."""
    last = max(after, row.first_log - 1, min(row.log_count, after + count))
    return _in_pieces(_log_text(row, after, count, {"next": last, "status": row.status}))


def log_text(row: TaskRow, after: int, count: int | None) -> Iterator[bytes]:
    """The same lines, or all, as text in UTF-8, each with a line feed."""
    pages = log_queries.log_pages(row, after, count)
    return _in_pieces("".join(f"{line}\n" for line in lines).encode() for lines in pages)


def _log_text(row: TaskRow, after: int, count: int, more: dict[str, Any]) -> Iterator[bytes]:
    yield b'{"logs":['
    yield from _joined(log_queries.log_pages(row, after, count))
    yield b"]," + strict_json.dumps(more)[1:]


def webhook_body(row: TaskRow) -> bytes:
    """The JSON of a finished task for its callback, with the last lines of its log only."""
    lines = log_queries.last_lines(row, WEBHOOK_LINES, WEBHOOK_LOG_BYTES)
    dumped = task_schema.dump(row) | {"firstLog": row.log_count - len(lines) + 1}
    head, tail = split_at_lines(dumped)
    return head + dump_items(lines) + tail


def _array_text(pages: Iterable[Sequence[TaskRow]], shape: Shape) -> Iterator[bytes]:
    comma = b"["
    for page in pages:
        rows = _expanded(page, shape)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            yield comma
            yield from _tasks_text(rows[start : start + ROWS_AT_ONCE], shape)
            comma = b","
    yield b"[]" if comma == b"[" else b"]"


def _tasks_text(rows: Sequence[TaskRow], shape: Shape) -> Iterator[bytes]:
    """Tasks with commas between them: in one piece unless a log is large."""
    if not shape.has_logs:
        yield dump_items(shape.schema().dump(rows, many=True))
    elif all(map(log_queries.is_small, rows)):
        tasks = shape.schema().dump(rows, many=True)
        for task, lines in zip(tasks, log_queries.small_logs(rows), strict=True):
            task["logs"] = lines
        yield dump_items(tasks)
    else:
        comma = b""
        for row in rows:
            head, tail = split_at_lines(shape.schema().dump(row))
            yield comma + head
            yield from _joined(log_queries.log_pages(row))
            yield tail
            comma = b","


def _joined(pages: Iterable[list[str]]) -> Iterator[bytes]:
    """Pages of lines as JSON strings with commas between them."""
    comma = b""
    for lines in pages:
        yield comma
        yield dump_items(lines)
        comma = b","


def _expanded(rows: Sequence[TaskRow], shape: Shape) -> Sequence[TaskRow]:
    if not shape.expand or not rows:
        return rows
    user_id = rows[0].user_id
    user = user_queries.get(user_id)
    agents = agent_queries.by_id(user_id, {row.agent_id for row in rows})
    # Without an agent, its tasks were deleted after they were read, and then the agent.
    return [
        cast(TaskRow, _Expanded(row, agents[row.agent_id], user))
        for row in rows
        if row.agent_id in agents
    ]


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
