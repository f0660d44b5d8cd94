"""Logs: lines appended once and in order, and swept when their task is gone."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, select, update

from taskservice import stamps
from taskservice.access import Caller
from taskservice.db import database_now, transaction
from taskservice.models import Identifier, Log, LogChunk, LogWriter, Task
from taskservice.problems import Problem, unfit
from taskservice.queries import TaskRow
from taskservice.schemas import MAX_LINE
from taskservice.services.batches import CHORE_SECONDS, in_batches
from taskservice.services.tasks import HEARD, finished, is_open, locked

MAX_LOG = 100 * 1024 * 1024
# A chunk is read whole, even for one line of it.
CHUNK_BYTES = 64 * 1024
CHUNK_LINES = 4_096
# What is removed at once, so that no writer notices.
SWEEP_CHUNKS = 100
# A dropped log may still be on its way to whoever deleted its task.
SWEEP_AFTER_SECONDS = 60

_SEQ = select(LogWriter.seq).where(
    LogWriter.task_id == bindparam("task_id", type_=Identifier),
    LogWriter.writer == bindparam("writer"),
)
_ADVANCE = (
    update(LogWriter)
    .where(
        LogWriter.task_id == bindparam("of_task_id", type_=Identifier),
        LogWriter.writer == bindparam("of_writer"),
    )
    .values(seq=bindparam("new_seq", type_=BigInteger()))
)
_OF_TASK = Task.id == bindparam("of_task_id", type_=Identifier)
_HEAR = update(Task).where(_OF_TASK).values(HEARD)
_COUNT = (
    update(Task)
    .where(_OF_TASK)
    .values(
        log_count=Task.log_count + bindparam("lines", type_=BigInteger()),
        log_bytes=Task.log_bytes + bindparam("bytes", type_=BigInteger()),
        version=Task.version + 1,
        updated_at=bindparam("now"),
        **HEARD,
    )
)
_NEW_LOG = insert(Log).returning(Log.id)
_SWEEPABLE = (
    select(Log.id)
    .where(Log.dropped_at < database_now(-SWEEP_AFTER_SECONDS))
    .order_by(Log.dropped_at)
    .limit(1)
)


def split_text(text: str) -> list[str]:
    """The lines of a text: each ends at a line feed, the last one also without.

    One carriage return before the line feed is dropped; NUL becomes U+FFFD.
    """
    *lines, rest = text.replace("\0", "\ufffd").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    return [*lines, rest] if rest else lines


def split_strings(strings: Iterable[str]) -> list[str]:
    """The lines of several texts, where an empty text is an empty line."""
    return [line for text in strings for line in (split_text(text) or [""])]


def append(
    caller: Caller, task_id: str, lines: Sequence[str], seq: int | None, writer: str
) -> tuple[int, str]:
    """Add lines to a task's log, each once; returns its line count and the task's status.

    `seq` is the number, counted by `writer` from 1, of the first line sent: lines of it
    that are stored already are skipped. No lines at all are a sign of life.
    Raises 404, 409 for a gap or a finished task, 413 for a log that is full, 422.
    """
    _check_lines(lines)
    with transaction() as connection:
        task = locked(connection, caller, task_id)
        if not is_open(task):
            raise finished(task)
        stored = connection.scalar(_SEQ, {"task_id": task.id, "writer": writer})
        fresh = _fresh_lines(lines, seq, stored or 0)
        if fresh:
            _advance(connection, task, writer, stored, len(fresh))
            _store(connection, task, fresh)
        else:
            connection.execute(_HEAR, {"of_task_id": task.id})
    return task.log_count + len(fresh), task.status


def _check_lines(lines: Sequence[str]) -> None:
    too_long = [
        number
        for number, line in enumerate(lines)
        if len(line) * 4 > MAX_LINE and len(line.encode()) > MAX_LINE
    ]
    if too_long:
        messages = {str(number): [f"Longer than {MAX_LINE} bytes."] for number in too_long[:10]}
        raise unfit({"logs": messages})


def _fresh_lines(lines: Sequence[str], seq: int | None, stored: int) -> Sequence[str]:
    if seq is None:
        return lines
    if seq > stored + 1:
        raise Problem(
            409,
            f"Lines are missing: the next one of this writer is number {stored + 1}",
            more={"expected": stored + 1},
        )
    return lines[stored + 1 - seq :]


def _advance(
    connection: Connection, task: TaskRow, writer: str, stored: int | None, count: int
) -> None:
    if stored is None:
        values = {"task_id": task.id, "writer": writer, "seq": count}
        connection.execute(insert(LogWriter), values)
    else:
        connection.execute(
            _ADVANCE,
            {"of_task_id": task.id, "of_writer": writer, "new_seq": stored + count},
        )


def _store(connection: Connection, task: TaskRow, lines: Sequence[str]) -> None:
    chunks = list(_chunks(lines))
    size = sum(len(text.encode()) for text, _ in chunks) + len(chunks)
    if task.log_bytes + size > MAX_LOG:
        raise Problem(413, f"The task's log is full: it may have {MAX_LOG} bytes")
    connection.execute(
        _COUNT, {"of_task_id": task.id, "lines": len(lines), "bytes": size, "now": stamps.now()}
    )
    log_id = task.log_id or connection.scalar(_NEW_LOG, {"task_id": task.id})
    last = task.log_count
    rows: list[dict[str, Any]] = []
    for text, count in chunks:
        last += count
        rows.append({"log_id": log_id, "last": last, "count": count, "text": text})
    connection.execute(insert(LogChunk), rows)


def _chunks(lines: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Lines joined into texts of bounded size, each with its number of lines."""
    start, size = 0, 0
    for number, line in enumerate(lines):
        size += len(line) + 1
        if number > start and (size > CHUNK_BYTES or number - start == CHUNK_LINES):
            yield "\n".join(lines[start:number]), number - start
            start, size = number, len(line) + 1
    yield "\n".join(lines[start:]), len(lines) - start


def sweep(seconds: float = CHORE_SECONDS) -> None:
    """Remove the lines of logs that were dropped a while ago, for so many seconds at most."""
    in_batches(_sweep_batch, seconds)


def _sweep_batch() -> bool:
    with transaction() as connection:
        log_id = connection.scalar(_SWEEPABLE)
        if log_id is None:
            return False
        batch = (
            select(LogChunk.last)
            .where(LogChunk.log_id == log_id)
            .order_by(LogChunk.last)
            .limit(SWEEP_CHUNKS)
        )
        until = connection.scalar(select(func.max(batch.subquery().c.last)))
        if until is None:
            connection.execute(delete(Log).where(Log.id == log_id))
        else:
            connection.execute(
                delete(LogChunk).where(LogChunk.log_id == log_id, LogChunk.last <= until)
            )
    return True
