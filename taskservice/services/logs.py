"""Reads of logs, in parts of bounded size."""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import BigInteger, bindparam, case, func, literal_column, select

from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.transactions import reading
from taskservice.database.types import (
    PAGE_BYTES,
    AnyRow,
    Identifier,
    Several,
    TaskAndLines,
    TaskRow,
    is_among,
    joined_by_line_feed,
    next_limit,
)
from taskservice.errors import Problem
from taskservice.terms import LOG_DROPPED

T = TypeVar("T")
# A log of at most this many bytes is read together with its task, by a GET of this task.
SMALL_LOG = 64 * 1024

_CHUNKS_OF_TASK = (
    select(LogChunk.text)
    .where(LogChunk.log_id == Log.id)
    .correlate(Log)
    .order_by(LogChunk.last)
    .subquery()
)
# The lines of a task's log, joined by line feeds, where the log is small.
small_log_text = case(
    (
        Task.log_bytes <= literal_column(str(SMALL_LOG)),
        select(joined_by_line_feed(_CHUNKS_OF_TASK.c.text)).scalar_subquery(),
    )
)


class _Chunk(Protocol):
    """What reads select of a LogChunk."""

    last: int
    count: int
    text: str
    at: int | None
    times: str | None


class TimedLine(NamedTuple):
    """A line, and when its agent printed it; None for one from before there were times."""

    text: str
    at: str | None


class LogGone(Problem):
    """Lines that a row counted were dropped while they were read."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The log was dropped while it was read",
            code=LOG_DROPPED,
            headers={"Retry-After": "1"},
        )


_CHUNK_COLUMNS = (LogChunk.last, LogChunk.count, LogChunk.text, LogChunk.at, LogChunk.times)
_CHUNKS = Statement[_Chunk](
    select(*_CHUNK_COLUMNS)
    .where(
        LogChunk.log_id == bindparam("log_id"),
        LogChunk.last > bindparam("after"),
        LogChunk.last - LogChunk.count < bindparam("until", type_=BigInteger),
    )
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
_LAST_CHUNKS = Statement[_Chunk](
    select(*_CHUNK_COLUMNS)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last <= bindparam("until"))
    .order_by(LogChunk.last.desc())
    .limit(bindparam("limit"))
)
_NEXT_CHUNKS = (
    select(*_CHUNK_COLUMNS)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
# How many characters of a log `ends` reads.
MAX_END = 2_000
_LENGTH = func.length(LogChunk.text)
_ENDS = Statement[AnyRow](
    select(
        Task.id,
        case(
            (_LENGTH > MAX_END, func.substr(LogChunk.text, _LENGTH - MAX_END + 1)),
            else_=LogChunk.text,
        ).label("text"),
    )
    .join(Log, Log.task_id == Task.id)
    .join(LogChunk, (LogChunk.log_id == Log.id) & (LogChunk.last == Task.log_count))
    .where(is_among(Task.id, bindparam("task_ids", type_=Several(Identifier))))
)


def log_pages(row: TaskRow, after: int = 0, count: int | None = None) -> Iterator[list[str]]:
    """The lines of a task, in pages of about a megabyte, each a read of its own.

    Those after number `after`, and at most `count` of them; none that came after `row` was
    read. Raises LogGone if some were dropped meanwhile.
    """
    return (page.lines() for page in _pages(row, after, count))


def timed_pages(
    row: TaskRow, after: int = 0, count: int | None = None
) -> Iterator[list[TimedLine]]:
    """As `log_pages`, with the time of each line."""
    return (page.timed_lines() for page in _pages(row, after, count))


def timed_chunks(row: TaskRow) -> Iterator[tuple[int, list[TimedLine]]]:
    """All lines of a task as they arrived together, with the number of the first one of each."""
    for page in _pages(row, 0, None):
        for chunk in page.chunks:
            one = _Page([chunk], max(page.after, chunk.last - chunk.count), page.until)
            yield one.after + 1, one.timed_lines()


def lines_after(row: TaskRow, after: int, maximum: int) -> list[TimedLine]:
    """At most `maximum` lines after number `after`, and about a megabyte of them.

    Raises LogGone if some were dropped meanwhile.
    """
    page = _page_after(row, after, maximum)
    return page.timed_lines() if page else []


class _Page(NamedTuple):
    """Lines `after + 1` to at most `until` out of consecutive chunks."""

    chunks: Sequence[_Chunk]
    after: int
    until: int

    @property
    def end(self) -> int:
        """The number of the last line."""
        return min(self.until, self.chunks[-1].last)

    def lines(self) -> list[str]:
        return self._cut([line for chunk in self.chunks for line in chunk.text.split("\n")])

    def timed_lines(self) -> list[TimedLine]:
        times = self._cut(list(chain.from_iterable(map(_times, self.chunks))))
        return list(map(TimedLine, self.lines(), times))

    def _cut(self, of_lines: list[T]) -> list[T]:
        first = self.chunks[0].last - self.chunks[0].count + 1
        return of_lines[self.after + 1 - first : self.until + 1 - first]


def _times(chunk: _Chunk) -> list[str | None]:
    if chunk.at is None or chunk.times is None:
        time = None if chunk.at is None else clock.of_milliseconds(chunk.at)
        return [time for _ in range(chunk.count)]
    return [
        clock.of_milliseconds(time) for time in clock.decode(chunk.at, chunk.times, chunk.count)
    ]


def _checked(chunks: Sequence[_Chunk], after: int, until: int) -> _Page:
    """Raises LogGone if a line between the chunks, or before them, is missing."""
    before = chunks[0].last - chunks[0].count if chunks else until
    if before > after or not chunks:
        raise LogGone()
    for chunk in chunks:
        if chunk.last - chunk.count != before:
            raise LogGone()
        before = chunk.last
    return _Page(chunks, after, until)


def _pages(row: TaskRow, after: int, count: int | None) -> Iterator[_Page]:
    after = max(after, row.first_log - 1)
    until = row.log_count if count is None else min(row.log_count, after + count)
    if until < row.log_count:
        # `_CHUNKS` would read on to the end of the log to find where these lines end.
        while page := _page_after(row, after, until - after):
            yield page
            after = page.end
        return
    limit = 4096 if row.log_bytes <= PAGE_BYTES else 16
    while after < until:
        with reading() as connection:
            chunks = _CHUNKS.all(
                connection, log_id=row.log_id, after=after, until=until, limit=limit
            )
        page = _checked(chunks, after, until)
        yield page
        after = page.end
        limit = next_limit(len(chunks), sum(len(chunk.text) for chunk in chunks), 4096)


def _page_after(row: TaskRow, after: int, maximum: int) -> _Page | None:
    """At most `maximum` lines after number `after`, about a megabyte of them; None without any."""
    after = max(after, row.first_log - 1)
    until = min(after + maximum, row.log_count)
    if after >= until:
        return None
    chunks, size = list[_Chunk](), 0
    with reading() as connection:
        start = {"log_id": row.log_id, "after": after, "limit": until - after}
        found: Any = connection.execute(_NEXT_CHUNKS, start)
        for chunk in found:
            chunks.append(chunk)
            size += len(chunk.text)
            if chunk.last >= until or size >= PAGE_BYTES:
                break
    return _checked(chunks, after, until)


def lines_in(row: TaskAndLines) -> list[str] | None:
    """The lines that were read with a task; None if its log is large and must be read apart."""
    count = row.log_count - row.first_log + 1
    if not count:
        return []
    # The first chunk may begin with lines that were dropped.
    return None if row.lines is None else row.lines.split("\n")[-count:]


def last_lines(row: TaskRow, max_lines: int, max_bytes: int) -> list[str]:
    """The end of a log: at most `max_lines` lines and `max_bytes` bytes of UTF-8."""
    lines: list[str] = []
    until, limit = row.log_count, 8
    while until >= row.first_log and len(lines) < max_lines:
        with reading() as connection:
            chunks = _LAST_CHUNKS.all(connection, log_id=row.log_id, until=until, limit=limit)
        if not chunks:
            raise LogGone()
        before = [line for chunk in reversed(chunks) for line in chunk.text.split("\n")]
        lines = before + lines
        until -= len(before)
        size = sum(len(chunk.text) for chunk in chunks)
        if size > max_bytes:
            break
        limit = next_limit(len(chunks), size, max_lines)
    return _cut(lines[-max_lines:], max_bytes)


def ends(task_ids: Collection[str]) -> dict[str, str]:
    """Task -> the end of what was last appended to its log; tasks without lines are left out."""
    if not task_ids:
        return {}
    with reading() as connection:
        return {row.id: row.text for row in _ENDS.all(connection, task_ids=list(task_ids))}


def _cut(lines: list[str], max_bytes: int) -> list[str]:
    """The longest end of `lines` that has at most `max_bytes` bytes."""
    kept, size = 0, 0
    for line in reversed(lines):
        size += len(line.encode())
        if size > max_bytes:
            break
        kept += 1
    return lines[len(lines) - kept :]
