"""Writes tasks as JSON text, and streams the lines of their logs into the text."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

from taskservice.database.rows import TaskRow
from taskservice.errors import not_found
from taskservice.schemas import strict_json
from taskservice.schemas.fields import dump_items, split_at_lines
from taskservice.schemas.tasks import TASK_EXPANSIONS, TASK_FIELDS, TaskSchema, task_schema
from taskservice.schemas.users import agent_of_task_schema, user_schema
from taskservice.services import agents as agent_queries
from taskservice.services import logs, users
from taskservice.terms import WEBHOOK_LINES, WEBHOOK_LOG_BYTES


@dataclass(frozen=True)
class Shape:
    """The parts of a task that a response contains; if `fields` is empty, all fields."""

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
    # Cached, since constructing a schema takes several times as long as dumping a task with it.
    if not fields:
        return task_schema
    return TaskSchema(exclude={*TASK_FIELDS, *TASK_EXPANSIONS} - {*fields})


def task(row: TaskRow, shape: Shape = WHOLE) -> Iterator[bytes]:
    """A task as JSON, in parts. Raises LogDropped, and 404 if the task's agent was deleted."""
    embedded = _embedded([row], shape)
    if row.agent_id not in embedded:
        raise not_found("task")
    yield from _task_text(row, shape, embedded[row.agent_id])


def with_lines(row: TaskRow, shape: Shape, lines: list[str]) -> bytes:
    """A task as JSON, with these lines as its log."""
    return strict_json.dumps(shape.schema.dump(row) | {"logs": lines})


def array(pages: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The items of all pages as a JSON array, in parts."""
    yield b"["
    yield from _joined([dump_items(page)] for page in pages)
    yield b"]"


def log_page(row: TaskRow, after: int, count: int, *, has_times: bool = False) -> Iterator[bytes]:
    """At most `count` lines after line `after` as JSON, in parts, with `next` for the next page."""
    # The times of all lines are collected, since the JSON contains them after the lines.
    times: list[str | None] = []

    def texts() -> Iterator[list[bytes]]:
        for page in logs.pages(row, after, count):
            if has_times:
                times.extend(page.times())
            yield [dump_items(page.lines())]

    yield b'{"logs":['
    yield from _joined(texts())
    last = max(after, row.first_log - 1, min(row.log_count, after + count))
    timestamps = {"times": times} if has_times else {}
    yield b"]," + strict_json.dumps({**timestamps, "next": last, "status": row.status})[1:]


def log_text(
    row: TaskRow, after: int, count: int | None, *, has_times: bool = False
) -> Iterator[bytes]:
    """The lines after line `after` as UTF-8, each with a line feed and, if requested, its time."""
    for page in logs.pages(row, after, count):
        lines = page.lines()
        if has_times:
            timed = zip(page.times(), lines, strict=True)
            lines = [f"{at or '-'} {line}" for at, line in timed]
        yield "".join(f"{line}\n" for line in lines).encode()


def webhook_body(row: TaskRow) -> bytes:
    """The JSON of a task for a webhook, with only the last lines of its log."""
    lines = logs.last_lines(row, WEBHOOK_LINES, WEBHOOK_LOG_BYTES)
    dumped = task_schema.dump(row) | {"firstLog": row.log_count - len(lines) + 1}
    head, tail = split_at_lines(dumped)
    return head + dump_items(lines) + tail


def tasks(parts: Iterable[Sequence[TaskRow]], shape: Shape) -> Iterator[bytes]:
    """The tasks of a list as a JSON array, in parts."""
    yield b"["
    yield from _joined(chain.from_iterable(_texts(rows, shape) for rows in parts if rows))
    yield b"]"


def _texts(rows: Sequence[TaskRow], shape: Shape) -> Iterator[Iterable[bytes]]:
    """The JSON of tasks; each text contains one task, or up to 50 tasks joined by commas.

    Each text is an iterable of pieces.
    """
    texts = [row.json for row in rows if row.json]
    if len(texts) == len(rows) and not shape.expand:
        yield from ([b",".join(texts[start : start + 50])] for start in range(0, len(texts), 50))
        return
    embedded = _embedded(rows, shape)
    for row in rows:
        if row.agent_id in embedded:
            agent_json = embedded[row.agent_id]
            if row.json:
                # Append the fields of `agent_json` to the text of the task's JSON object.
                yield [row.json[:-1] + b"," + strict_json.dumps(agent_json)[1:]]
            else:
                yield _task_text(row, shape, agent_json)


def _task_text(row: TaskRow, shape: Shape, members: Mapping[str, Any]) -> Iterator[bytes]:
    head, tail = split_at_lines(shape.schema.dump(row) | members)
    yield head
    if shape.has_logs:
        yield from _joined([dump_items(page.lines())] for page in logs.pages(row))
        yield tail


def _joined(texts: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """Join JSON texts with commas; each text is an iterable of pieces."""
    comma = b""
    for pieces in texts:
        yield comma
        yield from pieces
        comma = b","


def _embedded(rows: Sequence[TaskRow], shape: Shape) -> dict[str, dict[str, Any]]:
    """The objects that `shape` adds to tasks, by agent ID; deleted agents are omitted."""
    agent_ids = {row.agent_id for row in rows}
    if not shape.expand:
        return {key: {} for key in agent_ids}
    user_id = rows[0].user_id
    user = user_schema.dump(users.get(user_id))
    agents = agent_queries.by_id(user_id, agent_ids)
    embedded = {}
    for key, agent in agents.items():
        expanded = {"agent": agent_of_task_schema.dump(agent), "user": user}
        embedded[key] = {name: expanded[name] for name in TASK_EXPANSIONS if name in shape.expand}
    return embedded
