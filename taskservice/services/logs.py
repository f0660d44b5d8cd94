"""Reads logs in parts of bounded size, and appends lines, each exactly once and in order."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from taskservice import error_codes, terms
from taskservice.auth import Caller
from taskservice.database import clock, types
from taskservice.database.connections import Statement
from taskservice.database.models import Log, LogChunk, LogWriter, Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import read_all, read_one, transaction
from taskservice.database.types import AnyRow
from taskservice.errors import Problem, invalid, require
from taskservice.schemas.tasks import TASK_COLUMNS
from taskservice.services import tasks

# A line of a log, and the time at which it was printed, or None if the time is unknown.
TimedLine: TypeAlias = tuple[str, str | None]
# A log of at most this many bytes is read in the same statement as its task.
SMALL_LOG = 64 * 1024

_CHUNKS_OF_TASK = (
    select(LogChunk.text)
    .join(Log, Log.id == LogChunk.log_id)
    .where(Log.task_id == Task.id)
    .correlate(Task)
    .order_by(LogChunk.last)
    .subquery()
)
# The lines of a task's log, joined by line feeds.
TEXT_OF_LOG = types.joined_by_line_feed(_CHUNKS_OF_TASK.c.text)
_IS_SMALL = Task.log_bytes <= literal_column(str(SMALL_LOG))
_SMALL_LOG_TEXT = case((_IS_SMALL, select(TEXT_OF_LOG).scalar_subquery())).label("lines")
_TASK_AND_LINES = Statement[TaskRow](
    tasks.with_log_id((*TASK_COLUMNS, _SMALL_LOG_TEXT)).where(tasks.is_this_task)
)


class LogDropped(Problem):
    """Lines of a log were dropped while the log was read."""

    def __init__(self) -> None:
        detail = "The log was dropped while it was read"
        super().__init__(503, detail, code=error_codes.LOG_DROPPED, headers={"Retry-After": "1"})


CHUNK_COLUMNS = (LogChunk.last, LogChunk.count, LogChunk.text, LogChunk.at, LogChunk.times)
_of_log = (
    select(*CHUNK_COLUMNS).where(LogChunk.log_id == bindparam("log_id")).limit(bindparam("limit"))
)
_is_after, _is_until = LogChunk.last > bindparam("after"), LogChunk.last <= bindparam("until")
_CHUNKS = Statement[Any](_of_log.where(_is_after).order_by(LogChunk.last))
_LAST_CHUNKS = Statement[Any](_of_log.where(_is_until).order_by(LogChunk.last.desc()))
# The number of characters, and of lines, that `ends` reads from the end of a log.
MAX_END = 8_000
END_LINES = 100
_LENGTH = func.length(LogChunk.text)
_END = func.substr(LogChunk.text, _LENGTH - MAX_END + 1)
_ENDS = Statement[AnyRow](
    select(Task.id, case((_LENGTH > MAX_END, _END), else_=LogChunk.text).label("text"))
    .join(Log, Log.task_id == Task.id)
    .join(LogChunk, (LogChunk.log_id == Log.id) & (LogChunk.last > Task.log_count - END_LINES))
    .where(types.is_among(Task.id, "task_ids"))
    .order_by(LogChunk.last)
)


def lines_after(row: TaskRow, after: int, maximum: int) -> list[TimedLine]:
    """The lines after line `after`: at most `maximum`, and about a megabyte. Raises LogDropped."""
    lines: list[TimedLine] = []
    for page in pages(row, after, maximum):
        lines += page.timed_lines()
        if sum(len(text) for text, _ in lines) >= types.PAGE_BYTES:
            break
    return lines


class Page(NamedTuple):
    """Lines of consecutive chunks, from line `after + 1` to at most line `until`."""

    chunks: Sequence[Any]
    after: int
    until: int

    def lines(self) -> list[str]:
        return self._cut([line for chunk in self.chunks for line in chunk.text.split("\n")])

    def times(self) -> list[str | None]:
        return self._cut(list(chain.from_iterable(map(times_of, self.chunks))))

    def timed_lines(self) -> list[TimedLine]:
        return list(zip(self.lines(), self.times(), strict=True))

    def _cut(self, of_lines: list[Any]) -> list[Any]:
        first = self.chunks[0].last - self.chunks[0].count + 1
        return of_lines[self.after + 1 - first : self.until + 1 - first]


def times_of(chunk: Any) -> list[str | None]:
    if chunk.times is None:
        return [None if chunk.at is None else clock.from_milliseconds(chunk.at)] * int(chunk.count)
    times = clock.decode(chunk.at, chunk.times, chunk.count)
    return [clock.from_milliseconds(time) for time in times]


def pages(row: TaskRow, after: int = 0, count: int | None = None) -> Iterator[Page]:
    """At most `count` lines of a task's log after line `after`, in pages of about a megabyte.

    Each page is a separate read. Lines that arrived after `row` was read are omitted. Raises
    LogDropped if lines are dropped while the log is read.
    """
    after = max(after, row.first_log - 1)
    until = row.log_count if count is None else min(row.log_count, after + count)
    # The maximum number of chunks that the next read returns. It never exceeds the number of
    # remaining lines, since each chunk contains at least one line.
    limit = 4096 if row.log_bytes <= types.PAGE_BYTES else 16
    while after < until:
        start = {"log_id": row.log_id, "after": after, "limit": min(limit, until - after)}
        chunks = read_all(_CHUNKS, **start)
        chunks = [chunk for chunk in chunks if chunk.last - chunk.count < until]
        before = chunks[0].last - chunks[0].count if chunks else until
        if before > after or before + _line_count(chunks) != chunks[-1].last:
            raise LogDropped()
        yield Page(chunks, after, until)
        after = min(until, chunks[-1].last)
        limit = types.next_limit(len(chunks), _length(chunks), CHUNKS_PER_READ)


def get_task(caller: Caller, task_id: str) -> TaskRow:
    """A task that the caller may see, with the lines of its log if the log is small. Raises 404."""
    task: TaskRow | None = read_one(_TASK_AND_LINES, task_id=task_id, **caller.scope)
    return require(task, "task")


def lines_in(row: TaskRow) -> list[str] | None:
    """The lines that were read with a task; None if its log is large and was not read."""
    count = row.log_count - row.first_log + 1
    if not count:
        return []
    # The first chunk may begin with lines that were dropped.
    return None if row.lines is None else row.lines.split("\n")[-count:]


def last_lines(row: TaskRow, max_lines: int, max_bytes: int) -> list[str]:
    """The end of a log: at most `max_lines` lines and `max_bytes` bytes of UTF-8."""
    texts: list[str] = []
    count = size = 0
    for chunk in _chunks_from_end(row):
        texts.append(chunk.text)
        count, size = count + chunk.count, size + len(chunk.text)
        if count >= max_lines or size > max_bytes:
            break
    lines = "\n".join(reversed(texts)).split("\n")[-max_lines:] if texts else []
    sizes = accumulate(len(line.encode()) for line in reversed(lines))
    fitting = sum(1 for size in sizes if size <= max_bytes)
    return lines[len(lines) - fitting :]


def ends_of(row: TaskRow, size: int) -> Iterator[Any]:
    """About `size` bytes from the end of a log, then about `size` bytes from its start, as chunks.

    Raises LogDropped.
    """
    until, remaining = row.log_count, size
    for chunk in _chunks_from_end(row):
        yield chunk
        until, remaining = chunk.last - chunk.count, remaining - len(chunk.text)
        if remaining <= 0:
            break
    remaining = size
    for page in pages(row, count=until):
        for chunk in page.chunks:
            if remaining <= 0:
                return
            yield chunk
            remaining -= len(chunk.text)


def _chunks_from_end(row: TaskRow) -> Iterator[Any]:
    """The chunks of a log, the last chunk first. Raises LogDropped."""
    until, limit = row.log_count, 8
    while until >= row.first_log:
        chunks = read_all(_LAST_CHUNKS, log_id=row.log_id, until=until, limit=limit)
        if not chunks:
            raise LogDropped()
        yield from chunks
        until = chunks[-1].last - chunks[-1].count
        limit = types.next_limit(len(chunks), _length(chunks), CHUNKS_PER_READ)


def _length(chunks: Sequence[Any]) -> int:
    return sum([len(chunk.text) for chunk in chunks])


def _line_count(chunks: Sequence[Any]) -> int:
    return sum([chunk.count for chunk in chunks])


def ends(task_ids: Collection[str]) -> dict[str, str]:
    """The end of each task's log, by task ID; tasks without lines are omitted."""
    texts: dict[str, list[str]] = {}
    for row in read_all(_ENDS, task_ids=list(task_ids)) if task_ids else ():
        texts.setdefault(row.id, []).append(row.text)
    return {task_id: "\n".join(texts[task_id])[-MAX_END:] for task_id in texts}


# The code below splits new lines into chunks of bounded size, without creating an object for each
# line.

# Chunks are small, since a whole chunk is read even for a single line.
CHUNK_BYTES = 64 * 1024
CHUNK_LINES = 4_096
# The maximum number of chunks that a read returns; if all of them are large, they take 16 MiB.
CHUNKS_PER_READ = 256


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a log; `size` is in bytes and includes all line feeds.

    If `times` is empty, the lines get the time at which they are stored.
    """

    text: str
    count: int
    size: int
    times: clock.Times = ()


def from_text(data: bytes, at: int | None = None) -> list[Chunk]:
    """The chunks of a text; the last line may lack its line feed.

    A carriage return before a line feed is dropped; NUL and invalid UTF-8 become U+FFFD. `at` is
    the time of all lines, in milliseconds. Raises 422 for a line that is too long.
    """
    # Pieces can be decoded separately: even in invalid UTF-8, the byte of a line feed is never part
    # of a longer character.
    texts = (piece.decode(errors="replace") for piece in _pieces(data))
    lines = (text.replace("\0", "\ufffd").replace("\r\n", "\n") for text in texts)
    return _chunks(lines, [] if at is None else [(0, at)])


def from_strings(strings: Sequence[str], at: int | Sequence[int] | None = None) -> list[Chunk]:
    """The chunks of strings without NUL; `at` is the time of all strings, or one for each string.

    Times are in milliseconds. Raises 422.
    """
    times: clock.Times = [(0, at)] if isinstance(at, int) else []
    if isinstance(at, Sequence):
        if len(at) != len(strings):
            raise invalid({"at": ["Must have one time for each string in logs."]})
        counts = [string.removesuffix("\n").count("\n") + 1 for string in strings]
        times = list(zip(accumulate(counts, initial=0), at, strict=False))
    if not strings:
        return []
    text = "\n".join(strings)
    if text.count("\n") >= len(strings):
        # Some strings contain line feeds.
        text = "\n".join(string.replace("\r\n", "\n").removesuffix("\n") for string in strings)
    # The last line also gets a line feed, so that an empty last line is stored too.
    return _chunks((piece.decode() for piece in _pieces(f"{text}\n".encode())), times)


def _part(times: clock.Times, first: int, count: int) -> clock.Times:
    """The times of `count` lines from line `first` on, with these lines renumbered from 0."""
    start = bisect_right(times, first, key=itemgetter(0)) - 1
    end = bisect_left(times, first + count, key=itemgetter(0))
    return [(max(line - first, 0), time) for line, time in times[start:end]]


def without_first(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """The chunks without the first `count` lines."""
    rest = list(chunks)
    while rest and count >= rest[0].count:
        count -= rest.pop(0).count
    if rest and count:
        text, lines = rest[0].text.split("\n", count)[count], rest[0].count - count
        rest[0] = Chunk(text, lines, len(text.encode()) + 1, _part(rest[0].times, count, lines))
    return rest


def _pieces(data: bytes) -> Iterator[bytes]:
    """Split text into pieces of whole lines; a piece of more than CHUNK_BYTES is a single line."""
    start = 0
    while start < len(data):
        limit, end = start + CHUNK_BYTES, len(data)
        if limit < end:
            # The piece ends at the last line feed before the limit, or else at the first after it.
            end = data.rfind(b"\n", start, limit) + 1 or data.find(b"\n", limit) + 1 or end
        if data.count(b"\n", start, end) >= CHUNK_LINES:
            end -= len(data[start:end].split(b"\n", CHUNK_LINES)[CHUNK_LINES])
        yield data[start:end]
        start = end


def _chunks(texts: Iterable[str], times: clock.Times) -> list[Chunk]:
    """The chunks of texts that consist of whole lines. Raises 422 for lines that are too long."""
    chunks, first, too_long = [], 0, list[str]()
    for text in texts:
        text = text.removesuffix("\n")
        count, size = text.count("\n") + 1, len(text.encode()) + 1
        # If the whole chunk is not too long for a line, its lines are not too long either.
        if size > terms.MAX_LINE:
            sizes = [len(line.encode()) for line in text.split("\n")]
            too_long += [str(n) for n, size in enumerate(sizes, first) if size > terms.MAX_LINE]
        chunks.append(Chunk(text, count, size, _part(times, first, count)))
        first += count
    if too_long:
        reason = [f"Longer than {terms.MAX_LINE} bytes."]
        raise invalid({"logs": dict.fromkeys(too_long[:10], reason)})
    return chunks


# `seq` is null if the given writer has sent no lines.
_TASK_AND_SEQ = Statement[Any](
    tasks.select_task.add_columns(Task.default_writer_seq, LogWriter.seq).outerjoin(
        LogWriter, and_(LogWriter.task_id == Task.id, LogWriter.writer == bindparam("writer"))
    )
)
# In RETURNING, SQLAlchemy would write `Task.id` as `id`, which in this subquery is the log's ID.
_own_log = select(Log.id).where(Log.task_id == literal_column("tasks.id"))
_LOG_ID = _own_log.scalar_subquery().label("log_id")
# A task accepts lines while it is running, and after it has timed out.
_accepts_lines = or_(Task.status == terms.RUNNING, Task.error_type == terms.TIMEOUT)
_UPDATE = (
    update(Task)
    .where(tasks.is_this_task, _accepts_lines)
    .returning(
        Task.id, Task.status, Task.created_at, Task.claimed_at, Task.log_count, Task.first_log
    )
)
_HEARTBEAT = Statement[TaskRow](_UPDATE.values(tasks.HEARTBEAT))
_ADD_LINES = Statement[TaskRow](
    _UPDATE.where(Task.log_bytes <= terms.MAX_LOG - bindparam("bytes", type_=BigInteger()))
    .values(
        log_count=Task.log_count + bindparam("lines"),
        log_bytes=Task.log_bytes + bindparam("bytes"),
        default_writer_seq=Task.default_writer_seq + bindparam("default_lines"),
        version=Task.version + 1,
        updated_at=bindparam("now"),
        **tasks.HEARTBEAT,
    )
    .returning(_LOG_ID)
)
_ADD_TO_WRITER = Statement[Any](
    update(LogWriter)
    # The parameter is not named `writer`, since SQLAlchemy reserves the names of columns for the
    # values that an UPDATE sets.
    .where(LogWriter.task_id == bindparam("of_task_id"), LogWriter.writer == bindparam("of_writer"))
    .values(seq=LogWriter.seq + bindparam("lines"))
    .returning(LogWriter.seq)
)
_WRITER_COUNT = Statement[Any](
    select(func.count()).where(LogWriter.task_id == bindparam("task_id"))
)
_NEW_WRITER = Statement[None](insert(LogWriter), ("task_id", "writer", "seq"))
_LOG = Statement[Any](select(Log.id).where(Log.task_id == bindparam("task_id")))
NEW_LOG = Statement[Any](insert(Log).returning(Log.id), ("task_id",))
_NEW_CHUNK = Statement[None](insert(LogChunk), ("log_id", "last", "count", "text", "at", "times"))


def append(
    caller: Caller, task_id: str, sent: Sequence[Chunk], seq: int | None, writer: str
) -> tuple[int, str]:
    """Append lines to a task's log; returns the number of lines and the task's status.

    `seq` is the number of the first line in `sent`; each `writer` counts its lines from 1. Lines
    that are already stored are skipped. The default writer's name is empty. An append without lines
    is a heartbeat. Raises 404, 409 for a gap or a finished task, 413 for a full log, and 422 for
    too many writers.
    """
    this_task = {"task_id": task_id, **caller.scope}
    with transaction() as connection:
        if seq is not None:
            before: Any = tasks.get_locked(
                connection, caller, task_id, _TASK_AND_SEQ, writer=writer
            )
            sent = _not_stored(before, sent, seq, writer)
        lines, size = _line_count(sent), sum([chunk.size for chunk in sent])
        if sent:
            new = {"lines": lines, "default_lines": 0 if writer else lines, "bytes": size}
            task = _ADD_LINES.one_or_none(connection, **this_task, **new, now=clock.now())
        else:
            task = _HEARTBEAT.one_or_none(connection, **this_task)
        if task is None:
            _require_open(tasks.get_locked(connection, caller, task_id))
            detail = f"The task's log is full: the limit is {terms.MAX_LOG} bytes"
            raise Problem(413, detail, code=error_codes.LOG_FULL)
        if sent and writer:
            _add_to_writer(connection, task, writer, lines)
        if sent:
            _store(connection, task, sent)
    return task.log_count, task.status


def _not_stored(task: Any, sent: Sequence[Chunk], seq: int, writer: str) -> Sequence[Chunk]:
    """The lines of `sent` that `writer` has not sent before. Raises 409 if lines are missing."""
    _require_open(task)
    stored = (task.seq or 0) if writer else task.default_writer_seq
    if seq > stored + 1:
        detail = f"Lines are missing: this writer's next line is number {stored + 1}"
        raise Problem(409, detail, code=error_codes.SEQ_GAP, members={"expected": stored + 1})
    return without_first(sent, stored + 1 - seq)


def _require_open(task: TaskRow) -> None:
    """Raises 409 unless `_accepts_lines` is true for this task."""
    if task.status != terms.RUNNING and task.error_type != terms.TIMEOUT:
        raise tasks.finished_problem(task)


def _add_to_writer(connection: Connection, task: TaskRow, writer: str, lines: int) -> None:
    """Add to the line count of a writer other than the default writer.

    Raises 422 for too many writers.
    """
    of_writer = {"of_task_id": task.id, "of_writer": writer}
    if _ADD_TO_WRITER.one_or_none(connection, lines=lines, **of_writer) is None:
        if _WRITER_COUNT.scalar(connection, task_id=task.id) >= terms.MAX_WRITERS:
            raise invalid({"writer": [f"The task has {terms.MAX_WRITERS:,} writers already."]})
        _NEW_WRITER.run(connection, task_id=task.id, writer=writer, seq=lines)


def _store(connection: Connection, task: TaskRow, chunks: Sequence[Chunk]) -> None:
    """Store chunks in a task's log, created if needed; `task.log_count` already includes them."""
    last = task.log_count - _line_count(chunks)
    # On PostgreSQL, RETURNING reads other tables as they were before the UPDATE waited for the lock
    # on the task. During the wait, retention may have dropped the log, or another request may have
    # created it.
    log_id = (
        (task.log_id if task.first_log <= last else None)
        or _LOG.scalar(connection, task_id=task.id)
        or NEW_LOG.scalar(connection, task_id=task.id)
    )
    # Times are limited to the period from the task's start, or its claim if earlier, until now.
    # If the clock has been set back since the start, all times become the time of the start.
    earliest = clock.milliseconds(min(task.created_at, task.claimed_at or task.created_at))
    latest = max(earliest, clock.milliseconds(clock.now()))
    for chunk in chunks:
        last += chunk.count
        times = [(line, max(earliest, min(time, latest))) for line, time in chunk.times]
        at, later = clock.encode(times or [(0, latest)])
        new = {"count": chunk.count, "text": chunk.text, "at": at, "times": later}
        _NEW_CHUNK.run(connection, log_id=log_id, last=last, **new)
