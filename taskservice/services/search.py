"""Searches without an index: each reads a limited part, and the next continues there."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import BoundedSemaphore, Lock
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import BigInteger, Integer, Text, bindparam, func, select

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import LogChunk, Task
from taskservice.database.transactions import read_all, reading
from taskservice.database.types import (
    PAGE_BYTES,
    AnyRow,
    ListParameter,
    ascii_lower,
    byte_length,
    in_list,
    next_limit,
    position_in_text,
)
from taskservice.errors import invalid, overloaded
from taskservice.services import lists
from taskservice.services.lists import Filters, Position, Selection
from taskservice.services.logs import CHUNKS_PER_READ
from taskservice.services.tasks import with_log
from taskservice.terms import ERROR

# How many searches of a process run at a time.
search_slots = BoundedSemaphore(2)
# A search ends after this time, and after this many bytes of logs. At most 64 MiB are read, since
# the sizes of the next chunks of a large log, CHUNKS_PER_READ of them, may have been read too.
SEARCH_SECONDS = 1.0
SEARCH_BYTES = 48 * PAGE_BYTES
# How many tasks one statement reads at most.
TASKS_PER_READ = 400
# How many tasks a search in error messages reads at most.
MAX_ERRORS = 5_000
# A longer line is cut, around the text that was found.
MAX_SHOWN_LINE = 400
# No line has a higher number.
LAST_LINE = (1 << 63) - 1

_part: Any = bindparam("part", type_=Text())
# Searches take turns at it, so that other requests have a processor.
_turn = Lock()
# The database searches: Python would keep other requests of the process waiting.
_CONTAINS = {
    True: position_in_text(LogChunk.text, _part) > 0,
    False: position_in_text(ascii_lower(LogChunk.text), ascii_lower(_part)) > 0,
}
_CHUNKS = {
    is_exact: Statement[Any](
        select(
            LogChunk.log_id,
            LogChunk.last,
            LogChunk.count,
            LogChunk.text,
            LogChunk.at,
            LogChunk.times,
        ).where(
            in_list(LogChunk.log_id, bindparam("log_ids", type_=ListParameter(BigInteger()))),
            LogChunk.last > bindparam("after"),
            LogChunk.last <= bindparam("until"),
            contains,
        )
    )
    for is_exact, contains in _CONTAINS.items()
}
_next_chunks = (
    select(LogChunk.last, byte_length(LogChunk.text).label("size"))
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


# Where a search has stopped: at the position of a task, with the number of the last line that was
# read if there are more.
End: TypeAlias = Sequence[Any]
Hit: TypeAlias = dict[str, Any]


class Found(NamedTuple):
    """The hits of a search as JSON, how much it has read, and where it stopped before the end."""

    hits: list[Hit]
    tasks: int
    bytes: int
    end: End | None

    def as_json(self) -> dict[str, Any]:
        until = self.end[0] if self.end else None
        searched = {"tasks": self.tasks, "bytes": self.bytes, "until": until}
        return {"hits": self.hits, "searched": searched}


class _Part(NamedTuple):
    """Chunks of some logs from one line to another; a search that has read it has reached `end`."""

    tasks: Sequence[tuple[Position, AnyRow]]
    after: int
    until: int
    size: int
    end: End


@contextmanager
def slot() -> Iterator[None]:
    """One of the places for searches; raises 503 if none is free."""
    if not search_slots.acquire(blocking=False):
        raise overloaded("Too many searches at once; try again later")
    try:
        yield
    finally:
        search_slots.release()


def search(
    caller: Caller,
    selection: Selection,
    text: str,
    *,
    is_exact: bool = False,
    start: End | None = None,
    limit: int,
) -> Found:
    """The next lines with `text`; ASCII in any case unless `is_exact`. Raises 422 and 503."""
    if "\n" in text:
        raise invalid({"text": ["Must be one line."]})
    text = text.replace("\0", "\ufffd")
    found_part = pattern(text, is_exact=is_exact)
    hits: list[Hit] = []
    searched, size, deadline = set[str](), 0, monotonic() + SEARCH_SECONDS
    with slot():
        for part in _parts(caller, selection, start):
            searched.update(row.id for _, row in part.tasks)
            size += part.size
            for position, hit in _hits(part, _CHUNKS[is_exact], text, found_part):
                hits.append(hit)
                if len(hits) == limit:
                    return Found(hits, len(searched), size, (*position, hit["line"]))
            if size >= SEARCH_BYTES or monotonic() >= deadline:
                return Found(hits, len(searched), size, part.end)
    return Found(hits, len(searched), size, None)


def pattern(text: str, *, is_exact: bool = False) -> re.Pattern[str]:
    """What the database finds, in Python."""
    return re.compile(re.escape(text), re.ASCII | (0 if is_exact else re.IGNORECASE))


def in_errors(
    caller: Caller, selection: Selection, text: str, after: Position | None, limit: int
) -> lists.SearchResult:
    """The next tasks whose error contains `text`, among MAX_ERRORS. Raises 503."""
    selection = selection._replace(status=ERROR)
    with slot(), reading() as connection:
        tasks = lists.OrderedTasks(connection, caller, selection)
        end = tasks.position(after, MAX_ERRORS)
        rows = tasks.run(_errors_statement, after, end, part=text, count=limit)
    found = [Position(*row) for row in rows]
    return lists.SearchResult(found, found[-1] if len(found) == limit else end)


@lru_cache(maxsize=lists.STATEMENTS)
def _errors_statement(scan: lists.Scan) -> Statement[AnyRow]:
    contains = position_in_text(ascii_lower(Task.error_message), ascii_lower(_part)) > 0
    conditions = [*lists.conditions_of(scan), contains]
    return Statement(lists.in_order(conditions, scan.sort).limit(bindparam("count")))


def _parts(caller: Caller, selection: Selection, start: End | None) -> Iterator[_Part]:
    """The logs of all tasks of the selection from `start` on, in parts of about a megabyte."""
    after = Position(*start[:2]) if start else None
    if after and start and len(start) > len(after):
        yield from _parts_of(caller, selection, [after], start[-1])
    while True:
        wanted, reached = lists.positions(caller, selection, after, TASKS_PER_READ)
        yield from _parts_of(caller, selection, wanted)
        after = reached or (wanted[-1] if wanted else None)
        if after is None:
            return
        yield _Part((), 0, 0, 0, after)


def _parts_of(
    caller: Caller, selection: Selection, wanted: Sequence[Position], line: int = 0
) -> Iterator[_Part]:
    ids = [position.id for position in wanted]
    rows: dict[str, Any] = {
        row.id: row for row in lists.read(caller, selection, ids, _tasks_statement)
    }
    small: list[tuple[Position, AnyRow]] = []
    size = 0
    for position in wanted:
        if (row := rows.get(position.id)) is None:
            continue
        if small and size + row.log_bytes > PAGE_BYTES:
            yield _Part(small, line, LAST_LINE, size, small[-1][0])
            small, size = [], 0
        if row.log_bytes > PAGE_BYTES:
            yield from _ranges(position, row, line)
        else:
            small.append((position, row))
            size += row.log_bytes
    if small:
        yield _Part(small, line, LAST_LINE, size, small[-1][0])


@lru_cache(maxsize=lists.STATEMENTS)
def _tasks_statement(filters: Filters) -> Statement[Any]:
    columns = (Task.id, Task.name, Task.agent_id, Task.status, Task.first_log, Task.log_bytes)
    return Statement(with_log([*columns, Task.log_count]).where(*lists.still_matches(filters)))


def _ranges(position: Position, row: AnyRow, after: int) -> Iterator[_Part]:
    """A large log in ranges of chunks."""
    count = 16
    while True:
        with _turn:
            [found] = read_all(_RANGE, log_id=row.log_id, after=after, count=count)
        if not found.count:
            return
        count = next_limit(found.count, found.size, CHUNKS_PER_READ)
        if found.size > 2 * PAGE_BYTES and found.count > 1:
            continue
        end = (*position, found.last) if found.last < row.log_count else position
        yield _Part([(position, row)], after, found.last, found.size, end)
        after = found.last


def _hits(
    part: _Part, statement: Statement[Any], text: str, pattern: re.Pattern[str]
) -> Iterator[tuple[Position, Hit]]:
    log_ids = [row.log_id for _, row in part.tasks if row.log_id is not None]
    if not log_ids:
        return
    between = {"after": part.after, "until": part.until}
    with _turn:
        found = read_all(statement, log_ids=log_ids, part=text, **between)
    chunks: dict[int, list[Any]] = {}
    for chunk in sorted(found, key=lambda chunk: chunk.last):
        chunks.setdefault(chunk.log_id, []).append(chunk)
    for position, row in part.tasks:
        after = max(part.after, row.first_log - 1)
        for chunk in chunks.get(row.log_id, ()):
            yield from ((position, hit) for hit in _hits_in(chunk, pattern, row, after))


def _hits_in(chunk: Any, pattern: re.Pattern[str], row: AnyRow, after: int) -> Iterator[Hit]:
    first = number = chunk.last - chunk.count + 1
    times: list[int] | None = None
    counted = begin = 0
    while match := pattern.search(chunk.text, begin):
        start = chunk.text.rfind("\n", 0, match.start()) + 1
        end = chunk.text.find("\n", match.end())
        line = chunk.text[start : end if end >= 0 else None]
        number += chunk.text.count("\n", counted, start)
        counted, begin = start, start + len(line) + 1
        if number > after:
            if times is None and chunk.at is not None:
                times = clock.decode(chunk.at, chunk.times, chunk.count)
            at = clock.from_milliseconds(times[number - first]) if times else None
            yield {
                "taskId": row.id,
                "name": row.name,
                "agentId": row.agent_id,
                "status": row.status,
                "line": number,
                "at": at,
                "text": excerpt(line, match.start() - start, match.end() - start),
            }


def excerpt(line: str, start: int, end: int) -> str:
    """A line, or the part of a long one that has its characters from `start` in the middle."""
    begin = max(0, min((start + end - MAX_SHOWN_LINE) // 2, len(line) - MAX_SHOWN_LINE))
    return line[begin : begin + MAX_SHOWN_LINE]
