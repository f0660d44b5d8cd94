"""Reads of logs, a bounded part at a time."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from sqlalchemy import BigInteger, bindparam, select

from taskservice.contract.error_codes import LOG_DROPPED
from taskservice.database.models import LogChunk
from taskservice.database.rows import PAGE_BYTES, AnyRow, TaskRow, next_limit
from taskservice.database.transactions import reading
from taskservice.problems import Problem

# A log of at most so many bytes is read together with those of its neighbours.
SMALL_LOG = 64 * 1024


class LogGone(Problem):
    """Lines that a row promised are no longer there: they were dropped while being read."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The log was dropped while it was read",
            code=LOG_DROPPED,
            headers={"Retry-After": "1"},
        )


_CHUNKS = (
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(
        LogChunk.log_id == bindparam("log_id"),
        LogChunk.last > bindparam("after"),
        LogChunk.last - LogChunk.count < bindparam("until", type_=BigInteger),
    )
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
_LAST_CHUNKS = (
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
_CHUNKS_OF_SEVERAL = (
    select(LogChunk.log_id, LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id.in_(bindparam("log_ids", expanding=True)))
    .order_by(LogChunk.log_id, LogChunk.last)
)


def log_pages(row: TaskRow, after: int = 0, count: int | None = None) -> Iterator[list[str]]:
    """The lines that `row` knows of, in pages of about a megabyte, each a read of its own.

    All that are there, or at most `count` of those after number `after`. Raises LogGone when
    some have been dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = row.log_count if count is None else min(row.log_count, after + count)
    if until < row.log_count:
        # To look for where these end would lead through all that follows.
        while after < until:
            yield (lines := lines_after(row, after, until - after))
            after += len(lines)
        return
    limit = 4096 if row.log_bytes <= PAGE_BYTES else 16
    while after < until:
        with reading() as connection:
            chunks = connection.execute(
                _CHUNKS,
                {"log_id": row.log_id, "after": after, "until": until, "limit": limit},
            ).all()
        lines = _lines(chunks, after, until)
        yield lines
        after += len(lines)
        limit = next_limit(len(chunks), sum(len(chunk.text) for chunk in chunks), 4096)


def lines_after(row: TaskRow, after: int, most: int) -> list[str]:
    """The lines that follow number `after`: `most` of them, or fewer past about a megabyte.

    Raises LogGone when some have been dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = min(after + most, row.log_count)
    if after >= until:
        return []
    chunks, size = [], 0
    with reading() as connection:
        place = {"log_id": row.log_id, "after": after, "limit": until - after}
        for chunk in connection.execute(_NEXT_CHUNKS, place):
            chunks.append(chunk)
            size += len(chunk.text)
            if chunk.last >= until or size >= PAGE_BYTES:
                break
    return _lines(chunks, after, until)


def small_logs(rows: Sequence[TaskRow]) -> dict[int | None, list[str]]:
    """The lines of those of `rows` whose logs are small, by `log_id`, in one read."""
    wanted = [row for row in rows if is_small(row) and row.first_log <= row.log_count]
    if not wanted:
        return {}
    with reading() as connection:
        chunks = connection.execute(
            _CHUNKS_OF_SEVERAL, {"log_ids": [row.log_id for row in wanted]}
        ).all()
    of_log = {log_id: list(some) for log_id, some in groupby(chunks, lambda chunk: chunk.log_id)}
    return {
        row.log_id: _lines(of_log.get(row.log_id, []), row.first_log - 1, row.log_count)
        for row in wanted
    }


def is_small(row: TaskRow) -> bool:
    return row.log_bytes <= SMALL_LOG


def last_lines(row: TaskRow, most_lines: int, most_bytes: int) -> list[str]:
    """The end of a log: at most `most_lines` lines and `most_bytes` bytes of UTF-8."""
    lines: list[str] = []
    until, limit = row.log_count, 8
    while until >= row.first_log and len(lines) < most_lines:
        with reading() as connection:
            chunks = connection.execute(
                _LAST_CHUNKS, {"log_id": row.log_id, "until": until, "limit": limit}
            ).all()
        if not chunks:
            raise LogGone()
        before = [line for chunk in reversed(chunks) for line in chunk.text.split("\n")]
        lines = before + lines
        until -= len(before)
        size = sum(len(chunk.text) for chunk in chunks)
        if size > most_bytes:
            break
        limit = next_limit(len(chunks), size, most_lines)
    return _cut(lines[-most_lines:], most_bytes)


def _cut(lines: list[str], most_bytes: int) -> list[str]:
    """The longest end of `lines` that has at most `most_bytes` bytes."""
    kept, size = 0, 0
    for line in reversed(lines):
        size += len(line.encode())
        if size > most_bytes:
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
