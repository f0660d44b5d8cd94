"""Searches logs and error messages for a text, without an index."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Integer, Text, bindparam, func, select

from taskservice.auth import Caller
from taskservice.database import clock, types
from taskservice.database.connections import Statement
from taskservice.database.models import LogChunk, Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import read_all
from taskservice.database.types import AnyRow
from taskservice.errors import invalid
from taskservice.services import lists, logs, tasks
from taskservice.services.lists import Filters, Position, Selection, TaskList
from taskservice.terms import ERROR
from taskservice.user_slots import UserSlots

slots = UserSlots(2, 1.0, "Too many searches at once; try again later")
# A search ends after this many seconds or this many bytes of logs. A search can read up to 64 MiB
# in total, since it reads the next CHUNKS_PER_READ chunks of a large log to compute the size of
# these chunks.
SEARCH_SECONDS = 1.0
SEARCH_BYTES = 48 * types.PAGE_BYTES
# The maximum number of tasks that one statement reads.
TASKS_PER_READ = 400
# The maximum number of tasks that a search in error messages reads.
MAX_ERRORS = 5_000
# If a line has more characters, only the part around the matching text is shown.
MAX_SHOWN_LINE = 400
# An upper bound for line numbers.
LAST_LINE = (1 << 63) - 1

_part: Any = bindparam("part", type_=Text())
# In each process, only one search reads at a time, so that other requests can use the other CPUs.
_turn = Lock()
_chunks = select(LogChunk.log_id, *logs.CHUNK_COLUMNS).where(
    types.is_among(LogChunk.log_id, "log_ids"),
    LogChunk.last > bindparam("after"),
    LogChunk.last <= bindparam("until"),
)
_contains = types.position_in_text(types.ascii_lower(LogChunk.text), types.ascii_lower(_part)) > 0
# The search runs in SQL, since a search in Python would block other requests of the process.
_CHUNKS = Statement[Any](_chunks.where(_contains))
_EXACT_CHUNKS = Statement[Any](_chunks.where(types.position_in_text(LogChunk.text, _part) > 0))
_next_chunks = (
    select(LogChunk.last, types.byte_length(LogChunk.text).label("size"))
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
    .order_by(LogChunk.last)
    .limit(bindparam("count"))
    .subquery()
)
_RANGE = Statement[Any](
    select(
        func.max(_next_chunks.c.last).label("last"),
        func.count().label("count"),
        func.sum(_next_chunks.c.size, type_=Integer()).label("size"),
    )
)


# Where a search has stopped: the position of the last task that was read. If lines of
# this task remain, the number of the last line that was read follows.
End: TypeAlias = Sequence[Any]


class Found(NamedTuple):
    """The hits of a search as JSON, and the number of tasks and bytes that were read.

    `end` is the position at which the search stopped, or None if it searched everything.
    """

    hits: list[dict[str, Any]]
    tasks: int
    bytes: int
    end: End | None

    def as_json(self) -> dict[str, Any]:
        until = self.end[0] if self.end else None
        searched = {"tasks": self.tasks, "bytes": self.bytes, "until": until}
        return {"hits": self.hits, "searched": searched}


class _Part(NamedTuple):
    """A part of a search: lines `after` + 1 to `until` of the logs of `tasks`, with `size` bytes.

    The next part begins after `end`.
    """

    tasks: Sequence[TaskRow]
    after: int
    until: int
    size: int
    end: End


def search(
    caller: Caller,
    selection: Selection,
    text: str,
    *,
    is_exact: bool = False,
    start: End | None = None,
    limit: int,
) -> Found:
    """The next lines that contain `text`. Raises 422 and 503.

    Unless `is_exact`, the case of ASCII letters is ignored.
    """
    if "\n" in text:
        raise invalid({"text": ["Must be one line."]})
    text = text.replace("\0", "\ufffd")
    hits: list[dict[str, Any]] = []
    searched, size = set[str](), 0
    with slots.hold(caller.user_id):
        deadline = monotonic() + SEARCH_SECONDS
        for part in _parts(TaskList(caller, selection), start):
            searched.update(row.id for row in part.tasks)
            size += part.size
            for row, hit in _hits(part, text, is_exact=is_exact):
                hits.append(hit)
                if len(hits) == limit:
                    return Found(hits, len(searched), size, (*_position(row), hit["line"]))
            if size >= SEARCH_BYTES or monotonic() >= deadline:
                return Found(hits, len(searched), size, part.end)
    return Found(hits, len(searched), size, None)


def in_errors(
    caller: Caller, selection: Selection, text: str, after: Position | None, limit: int
) -> lists.Positions:
    """The next tasks whose error message contains `text`. Raises 503.

    At most MAX_ERRORS tasks are searched.
    """
    tasks = TaskList(caller, selection._replace(status=ERROR))
    with slots.hold(caller.user_id):
        end = tasks.position(after, MAX_ERRORS)
        rows = tasks.run(_errors_statement, after, end, part=text, count=limit)
    positions = [Position(*row) for row in rows]
    return positions, positions[-1] if len(positions) == limit else end


@lru_cache(maxsize=lists.STATEMENTS)
def _errors_statement(scan: lists.Scan) -> Statement[AnyRow]:
    contains = (
        types.position_in_text(types.ascii_lower(Task.error_message), types.ascii_lower(_part)) > 0
    )
    return Statement(lists.in_order(scan, contains).limit(bindparam("count")))


def _parts(tasks: TaskList, start: End | None) -> Iterator[_Part]:
    """The logs of all tasks of a list from `start` on, in parts of about a megabyte."""
    after = Position(*start[:2]) if start else None
    if after and start and len(start) > len(after):
        yield from _parts_of(tasks, [after], start[-1])
    while True:
        positions, after = tasks.positions(after, TASKS_PER_READ)
        yield from _parts_of(tasks, positions)
        if after is None:
            return
        yield _Part((), 0, 0, 0, after)


def _parts_of(tasks: TaskList, positions: Sequence[Position], line: int = 0) -> Iterator[_Part]:
    small: list[TaskRow] = []
    size = 0
    for row in tasks.read([position.id for position in positions], _tasks_statement):
        if small and size + row.log_bytes > types.PAGE_BYTES:
            yield _Part(small, line, LAST_LINE, size, _position(small[-1]))
            small, size = [], 0
        if row.log_bytes > types.PAGE_BYTES:
            yield from _ranges(row, line)
        else:
            small.append(row)
            size += row.log_bytes
    if small:
        yield _Part(small, line, LAST_LINE, size, _position(small[-1]))


@lru_cache(maxsize=lists.STATEMENTS)
def _tasks_statement(filters: Filters) -> Statement[Any]:
    columns = (Task.id, Task.name, Task.agent_id, Task.status, Task.first_log, Task.log_bytes)
    columns_of_logs = tasks.with_log_id([*columns, Task.log_count, Task.created_at])
    return Statement(columns_of_logs.where(*lists.still_match(filters)))


def _position(row: TaskRow) -> Position:
    return Position(row.created_at, row.id)


def _ranges(row: TaskRow, after: int) -> Iterator[_Part]:
    count = 16
    while True:
        with _turn:
            [span] = read_all(_RANGE, log_id=row.log_id, after=after, count=count)
        if not span.count:
            return
        count = types.next_limit(span.count, span.size, logs.CHUNKS_PER_READ)
        if span.size > 2 * types.PAGE_BYTES and span.count > 1:
            continue
        end = (*_position(row), span.last) if span.last < row.log_count else _position(row)
        yield _Part([row], after, span.last, span.size, end)
        after = span.last


def _hits(part: _Part, text: str, *, is_exact: bool) -> Iterator[tuple[TaskRow, dict[str, Any]]]:
    log_ids = [row.log_id for row in part.tasks if row.log_id is not None]
    if not log_ids:
        return
    statement = _EXACT_CHUNKS if is_exact else _CHUNKS
    between = {"after": part.after, "until": part.until}
    with _turn:
        matching = read_all(statement, log_ids=log_ids, part=text, **between)
    chunks: dict[int | None, list[Any]] = {}
    for chunk in sorted(matching, key=lambda chunk: chunk.last):
        chunks.setdefault(chunk.log_id, []).append(chunk)
    for row in part.tasks:
        after = max(part.after, row.first_log - 1)
        for chunk in chunks.get(row.log_id, ()):
            # Let other threads run.
            sleep(0.0001)
            hits = _hits_in(chunk, text, row, after, is_exact=is_exact)
            yield from ((row, hit) for hit in hits)


def _hits_in(
    chunk: Any, text: str, row: TaskRow, after: int, *, is_exact: bool
) -> Iterator[dict[str, Any]]:
    first = number = chunk.last - chunk.count + 1
    times: list[int] | None = None
    # Like the search in the database, `bytes.lower` changes only ASCII letters. A regular
    # expression would take many times as long, and block all other threads.
    data, part = chunk.text.encode(), text.encode()
    searched, part = (data, part) if is_exact else (data.lower(), part.lower())
    counted = 0
    while (place := searched.find(part, counted)) >= 0:
        start = data.rfind(b"\n", 0, place) + 1
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = end
        if number > after:
            if times is None and chunk.at is not None:
                times = clock.decode(chunk.at, chunk.times, chunk.count)
            at = clock.from_milliseconds(times[number - first]) if times else None
            line, begin = data[start:end].decode(), len(data[start:place].decode())
            yield {
                "taskId": row.id,
                "name": row.name,
                "agentId": row.agent_id,
                "status": row.status,
                "line": number,
                "at": at,
                "text": excerpt(line, begin, begin + len(text)),
            }


def excerpt(line: str, start: int, end: int) -> str:
    """A line, or the part of a long line around the characters from `start` to `end`."""
    begin = max(0, min((start + end - MAX_SHOWN_LINE) // 2, len(line) - MAX_SHOWN_LINE))
    return line[begin : begin + MAX_SHOWN_LINE]
