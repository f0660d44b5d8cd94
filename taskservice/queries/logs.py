"""Reads of logs, in parts of bounded size."""

from collections.abc import Iterator, Sequence

from sqlalchemy import BigInteger, bindparam, case, literal_column, select

from taskservice.contract.error_codes import LOG_DROPPED
from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.rows import PAGE_BYTES, AnyRow, TaskAndLines, TaskRow, next_limit
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import joined_by_line_feed
from taskservice.problems import Problem

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


class LogGone(Problem):
    """Lines that a row counted were dropped while they were read."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The log was dropped while it was read",
            code=LOG_DROPPED,
            headers={"Retry-After": "1"},
        )


_CHUNKS = Statement[AnyRow](
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(
        LogChunk.log_id == bindparam("log_id"),
        LogChunk.last > bindparam("after"),
        LogChunk.last - LogChunk.count < bindparam("until", type_=BigInteger),
    )
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
_LAST_CHUNKS = Statement[AnyRow](
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last <= bindparam("until"))
    .order_by(LogChunk.last.desc())
    .limit(bindparam("limit"))
)
_NEXT_CHUNKS = (
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)


def log_pages(row: TaskRow, after: int = 0, count: int | None = None) -> Iterator[list[str]]:
    """The lines of a task, in pages of about a megabyte, each a read of its own.

    Those after number `after`, and at most `count` of them; none that came after `row` was
    read. Raises LogGone if some were dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = row.log_count if count is None else min(row.log_count, after + count)
    if until < row.log_count:
        # `_CHUNKS` would read on to the end of the log to find where these lines end.
        while after < until:
            yield (lines := lines_after(row, after, until - after))
            after += len(lines)
        return
    limit = 4096 if row.log_bytes <= PAGE_BYTES else 16
    while after < until:
        with reading() as connection:
            chunks = _CHUNKS.all(
                connection, log_id=row.log_id, after=after, until=until, limit=limit
            )
        lines = _lines(chunks, after, until)
        yield lines
        after += len(lines)
        limit = next_limit(len(chunks), sum(len(chunk.text) for chunk in chunks), 4096)


def lines_after(row: TaskRow, after: int, maximum: int) -> list[str]:
    """At most `maximum` lines after number `after`, and about a megabyte of them.

    Raises LogGone if some were dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = min(after + maximum, row.log_count)
    if after >= until:
        return []
    chunks, size = [], 0
    with reading() as connection:
        start = {"log_id": row.log_id, "after": after, "limit": until - after}
        for chunk in connection.execute(_NEXT_CHUNKS, start):
            chunks.append(chunk)
            size += len(chunk.text)
            if chunk.last >= until or size >= PAGE_BYTES:
                break
    return _lines(chunks, after, until)


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


def _cut(lines: list[str], max_bytes: int) -> list[str]:
    """The longest end of `lines` that has at most `max_bytes` bytes."""
    kept, size = 0, 0
    for line in reversed(lines):
        size += len(line.encode())
        if size > max_bytes:
            break
        kept += 1
    return lines[len(lines) - kept :]


def _lines(chunks: Sequence[AnyRow], after: int, until: int) -> list[str]:
    """Lines `after + 1` to at most `until` out of consecutive chunks."""
    if not chunks or chunks[0].last - chunks[0].count > after:
        raise LogGone()
    lines = [line for chunk in chunks for line in chunk.text.split("\n")]
    first = chunks[0].last - chunks[0].count + 1
    if first + len(lines) - 1 != chunks[-1].last:
        raise LogGone()
    return lines[after + 1 - first : until + 1 - first]
