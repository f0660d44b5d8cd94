"""Appends lines to logs, once and in order."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol, cast

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    update,
)

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.clock import Times
from taskservice.database.connections import Statement
from taskservice.database.models import Log, LogChunk, LogWriter, Task
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier, TaskRow
from taskservice.errors import Problem, invalid
from taskservice.services.tasks import (
    HEARTBEAT,
    IS_OPEN,
    TASK,
    VISIBLE,
    finished_problem,
    is_open,
    lock,
)
from taskservice.terms import LOG_FULL, MAX_LINE, MAX_LOG, MAX_WRITERS, SEQ_GAP

# Cuts lines into chunks of bounded size, without an object for each line.

# Small, since a chunk is read whole, even for one of its lines.
CHUNK_BYTES = 64 * 1024
CHUNK_LINES = 4_096


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` lines, joined by line feeds; `size` is in bytes of UTF-8, with one for each line.

    Without `times`, their time is now.
    """

    text: str
    count: int
    size: int
    times: Times = ()


def of_text(data: bytes) -> list[Chunk]:
    """The lines of a text: each ends at a line feed, which the last one may lack.

    One carriage return before a line feed is dropped; NUL and invalid UTF-8 become U+FFFD.
    Raises 422 for a line that is too long.
    """
    # A line feed is never part of a longer character, even in invalid UTF-8.
    texts = (piece.decode(errors="replace") for piece in _pieces(data))
    return _checked([_chunk(text.replace("\0", "\ufffd").replace("\r\n", "\n")) for text in texts])


def of_strings(strings: Sequence[str]) -> list[Chunk]:
    """The lines of strings without NUL; an empty string is an empty line."""
    if not strings:
        return []
    text = "\n".join(strings)
    if text.count("\n") >= len(strings):
        # Some strings contain line feeds.
        text = "\n".join(string.replace("\r\n", "\n").removesuffix("\n") for string in strings)
    # The last line also gets a line feed, so that it counts if it is empty.
    return _checked([_chunk(piece.decode()) for piece in _pieces(f"{text}\n".encode())])


def with_times(
    chunks: Sequence[Chunk], strings: Sequence[str], times: Sequence[int]
) -> list[Chunk]:
    """The chunks of `strings`, of which each has its time. Raises 422 for another number of times.

    The lines of one string have one time.
    """
    if len(times) != len(strings):
        raise invalid({"at": ["Must have one time for each string of logs."]})
    counts = [string.removesuffix("\n").count("\n") + 1 for string in strings]
    of_lines = list(zip(accumulate(counts, initial=0), times, strict=False))
    timed, first = [], 0
    for chunk in chunks:
        timed.append(replace(chunk, times=_part(of_lines, first, chunk.count)))
        first += chunk.count
    return timed


def at_one_time(chunks: Sequence[Chunk], time: int) -> list[Chunk]:
    return [replace(chunk, times=[(0, time)]) for chunk in chunks]


def _part(times: Times, first: int, count: int) -> Times:
    """The times of `count` lines from line `first` on, which becomes line 0."""
    start = bisect_right(times, first, key=itemgetter(0)) - 1
    end = bisect_left(times, first + count, key=itemgetter(0))
    return [(max(line - first, 0), time) for line, time in times[start:end]]


def without_first(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """These chunks without their first `count` lines."""
    whole = 0
    while whole < len(chunks) and count >= chunks[whole].count:
        count -= chunks[whole].count
        whole += 1
    rest = list(chunks[whole:])
    if rest and count:
        left = _chunk(rest[0].text.split("\n", count)[count] + "\n")
        rest[0] = replace(left, times=_part(rest[0].times, count, left.count))
    return rest


def _pieces(data: bytes) -> Iterator[bytes]:
    """Pieces of whole lines, as large as a chunk may be, or of one longer line."""
    start = 0
    while start < len(data):
        end = _end_of_piece(data, start)
        yield data[start:end]
        start = end


def _end_of_piece(data: bytes, start: int) -> int:
    limit = start + CHUNK_BYTES
    end = len(data)
    if limit < end:
        # At the last line feed before the limit, or else at the first one after it.
        end = data.rfind(b"\n", start, limit) + 1 or data.find(b"\n", limit) + 1 or end
    if data.count(b"\n", start, end) >= CHUNK_LINES:
        end -= len(data[start:end].split(b"\n", CHUNK_LINES)[CHUNK_LINES])
    return end


def _chunk(text: str) -> Chunk:
    text = text.removesuffix("\n")
    return Chunk(text, text.count("\n") + 1, len(text.encode()) + 1)


def _checked(chunks: list[Chunk]) -> list[Chunk]:
    before, too_long = 0, list[int]()
    for chunk in chunks:
        too_long += [before + place for place in _too_long(chunk)]
        before += chunk.count
    if too_long:
        messages = {str(number): [f"Longer than {MAX_LINE} bytes."] for number in too_long[:10]}
        raise invalid({"logs": messages})
    return chunks


def _too_long(chunk: Chunk) -> list[int]:
    """The indexes of the chunk's lines that are too long."""
    if chunk.size <= MAX_LINE:
        return []
    lines = chunk.text.split("\n")
    return [place for place, line in enumerate(lines) if len(line.encode()) > MAX_LINE]


# Appends lines to logs, once and in order.


class _TaskAndSeq(TaskRow, Protocol):
    """A task, and how many lines were sent by its writer without a name and by the one given.

    `seq` is None if the given writer has sent none.
    """

    default_writer_seq: int
    seq: int | None


class _UpdatedTask(Protocol):
    """A task after an append has updated it; `log_id` is None if it had no log."""

    id: str
    status: str
    created_at: str
    log_count: int
    first_log: int
    log_id: int | None


_TASK_AND_SEQ = Statement[_TaskAndSeq](
    TASK.add_columns(Task.default_writer_seq, LogWriter.seq).outerjoin(
        LogWriter, and_(LogWriter.task_id == Task.id, LogWriter.writer == bindparam("writer"))
    )
)
# With `Task.id` SQLAlchemy would write `id` alone after RETURNING, which would be the log's.
_LOG_ID = (
    select(Log.id)
    .where(Log.task_id == literal_column("tasks.id"))
    .scalar_subquery()
    .label("log_id")
)
_UPDATE = (
    update(Task)
    .where(*VISIBLE, IS_OPEN)
    .returning(Task.id, Task.status, Task.created_at, Task.log_count, Task.first_log)
)
_HEARTBEAT = Statement[_UpdatedTask](_UPDATE.values(HEARTBEAT))
_ADD_LINES = Statement[_UpdatedTask](
    _UPDATE.where(Task.log_bytes <= MAX_LOG - bindparam("bytes", type_=BigInteger()))
    .values(
        log_count=Task.log_count + bindparam("lines", type_=BigInteger()),
        log_bytes=Task.log_bytes + bindparam("bytes", type_=BigInteger()),
        default_writer_seq=Task.default_writer_seq + bindparam("default_lines", type_=BigInteger()),
        version=Task.version + 1,
        updated_at=bindparam("now"),
        **HEARTBEAT,
    )
    .returning(_LOG_ID)
)
# Not `writer`: SQLAlchemy reserves the names of columns for the values that an UPDATE sets.
_OF_WRITER = (
    LogWriter.task_id == bindparam("of_task_id", type_=Identifier),
    LogWriter.writer == bindparam("of_writer"),
)
_ADD_TO_WRITER = Statement[Any](
    update(LogWriter)
    .where(*_OF_WRITER)
    .values(seq=LogWriter.seq + bindparam("lines", type_=BigInteger()))
    .returning(LogWriter.seq)
)
_WRITER_COUNT = Statement[Any](
    select(func.count()).where(LogWriter.task_id == bindparam("task_id", type_=Identifier))
)
_NEW_WRITER = Statement[None](insert(LogWriter), ("task_id", "writer", "seq"))
_LOG = Statement[Any](select(Log.id).where(Log.task_id == bindparam("task_id", type_=Identifier)))
_NEW_LOG = Statement[Any](insert(Log).returning(Log.id), ("task_id",))
_NEW_CHUNK = Statement[None](insert(LogChunk), ("log_id", "last", "count", "text", "at", "times"))


def append(
    caller: Caller, task_id: str, sent: Sequence[Chunk], seq: int | None, writer: str
) -> tuple[int, str]:
    """Append lines to a task's log; returns its line count and the task's status.

    `seq` is the number of the first line sent, counted by `writer` from 1, which is empty for the
    writer without a name: lines already stored are skipped. An append without lines is a heartbeat.
    Raises 404, 409 for a gap or a finished task, 413 for a full log, 422 for too many writers.
    """
    with transaction() as connection:
        if seq is not None:
            sent = _not_stored(connection, caller, task_id, sent, seq, writer)
        task = _update_task(connection, caller, task_id, sent, writer)
        if sent and writer:
            _add_to_writer(connection, task, writer, _line_count(sent))
        if sent:
            _store(connection, task, sent)
    return task.log_count, task.status


def _not_stored(
    connection: Connection,
    caller: Caller,
    task_id: str,
    sent: Sequence[Chunk],
    seq: int,
    writer: str,
) -> Sequence[Chunk]:
    """The lines sent that `writer` has not sent before. Raises 404 and 409."""
    found = lock(connection, caller, task_id, _TASK_AND_SEQ, writer=writer)
    task = cast(_TaskAndSeq, found)
    if not is_open(task):
        raise finished_problem(task)
    stored = (task.seq or 0) if writer else task.default_writer_seq
    if seq > stored + 1:
        raise Problem(
            409,
            f"Lines are missing: the next one of this writer is number {stored + 1}",
            code=SEQ_GAP,
            more={"expected": stored + 1},
        )
    return without_first(sent, stored + 1 - seq)


def _update_task(
    connection: Connection, caller: Caller, task_id: str, sent: Sequence[Chunk], writer: str
) -> _UpdatedTask:
    """Record a heartbeat and add the lines to the counters, which locks the task.

    Raises 404, 409 for a finished task and 413 for a full log.
    """
    here = {"task_id": task_id, **caller.scope}
    if sent:
        lines = _line_count(sent)
        new = {
            "lines": lines,
            "default_lines": 0 if writer else lines,
            "bytes": sum(chunk.size for chunk in sent),
            "now": clock.now(),
        }
        updated = _ADD_LINES.one_or_none(connection, **here, **new)
    else:
        updated = _HEARTBEAT.one_or_none(connection, **here)
    if updated is None:
        task = lock(connection, caller, task_id)
        if not is_open(task):
            raise finished_problem(task)
        detail = f"The task's log is full: the limit is {MAX_LOG} bytes"
        raise Problem(413, detail, code=LOG_FULL)
    return updated


def _line_count(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.count for chunk in chunks)


def _add_to_writer(connection: Connection, task: _UpdatedTask, writer: str, lines: int) -> None:
    """Add to the number of lines that a writer with a name has sent. Raises 422 for too many."""
    of_writer = {"of_task_id": task.id, "of_writer": writer}
    if _ADD_TO_WRITER.one_or_none(connection, lines=lines, **of_writer) is None:
        if _WRITER_COUNT.scalar(connection, task_id=task.id) >= MAX_WRITERS:
            raise invalid({"writer": [f"The task has {MAX_WRITERS:,} writers already."]})
        _NEW_WRITER.run(connection, task_id=task.id, writer=writer, seq=lines)


def _store(connection: Connection, task: _UpdatedTask, chunks: Sequence[Chunk]) -> None:
    """Add chunks, whose lines the task already counts, to its log, which the first ones create."""
    last = task.log_count - _line_count(chunks)
    # On PostgreSQL RETURNING reads the other tables as they were before it waited for the task:
    # meanwhile retention may have dropped the log, or another request made the first.
    log_id = (
        (task.log_id if task.first_log <= last else None)
        or _LOG.scalar(connection, task_id=task.id)
        or _NEW_LOG.scalar(connection, task_id=task.id)
    )
    for chunk in chunks:
        last += chunk.count
        at, times = _times(task, chunk)
        new = {"count": chunk.count, "text": chunk.text, "at": at, "times": times}
        _NEW_CHUNK.run(connection, log_id=log_id, last=last, **new)


def _times(task: _UpdatedTask, chunk: Chunk) -> clock.Columns:
    """The times of a chunk's lines: not before the task's start, and not after now."""
    earliest = clock.milliseconds(task.created_at)
    # The clock may have been set back since the start.
    latest = max(earliest, clock.milliseconds(clock.now()))
    if not chunk.times:
        return clock.Columns(latest, None)
    times = [(line, max(earliest, min(time, latest))) for line, time in chunk.times]
    return clock.encode(times)
