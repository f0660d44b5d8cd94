"""Appends lines to logs, once and in order."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, func, insert, select, update

from taskservice.auth.caller import Caller
from taskservice.contract.error_codes import LOG_FULL, SEQ_GAP
from taskservice.contract.terms import MAX_LOG, MAX_WRITERS
from taskservice.database import timestamps
from taskservice.database.models import Log, LogChunk, LogWriter, Task
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier
from taskservice.problems import Problem, invalid
from taskservice.services.chunks import Chunk, without_first
from taskservice.services.tasks import HEARTBEAT, finished_problem, is_open, lock

_SEQ = select(LogWriter.seq).where(
    LogWriter.task_id == bindparam("task_id", type_=Identifier),
    LogWriter.writer == bindparam("writer"),
)
_WRITERS = select(func.count()).where(LogWriter.task_id == bindparam("task_id", type_=Identifier))
_ADVANCE = (
    update(LogWriter)
    .where(
        LogWriter.task_id == bindparam("of_task_id", type_=Identifier),
        LogWriter.writer == bindparam("of_writer"),
    )
    .values(seq=bindparam("new_seq", type_=BigInteger()))
)
_OF_TASK = Task.id == bindparam("of_task_id", type_=Identifier)
_HEARTBEAT = update(Task).where(_OF_TASK).values(HEARTBEAT)
_COUNT = (
    update(Task)
    .where(_OF_TASK)
    .values(
        log_count=Task.log_count + bindparam("lines", type_=BigInteger()),
        log_bytes=Task.log_bytes + bindparam("bytes", type_=BigInteger()),
        version=Task.version + 1,
        updated_at=bindparam("now"),
        **HEARTBEAT,
    )
)
_NEW_LOG = insert(Log).returning(Log.id)


def append(
    caller: Caller, task_id: str, sent: Sequence[Chunk], seq: int | None, writer: str
) -> tuple[int, str]:
    """Append lines to a task's log, each once; returns its line count and the task's status.

    `seq` is the number of the first line sent, counted by `writer` from 1: lines already stored
    are skipped. An append without lines is a heartbeat. Raises 404, 409 for a gap or a finished
    task, 413 for a full log, 422 for too many writers.
    """
    with transaction() as connection:
        task = lock(connection, caller, task_id)
        if not is_open(task):
            raise finished_problem(task)
        stored = connection.scalar(_SEQ, {"task_id": task.id, "writer": writer})
        fresh = _new_lines(sent, seq, stored or 0)
        count = sum(chunk.count for chunk in fresh)
        if fresh:
            _advance(connection, task, writer, stored, count)
            _store(connection, task, fresh, count)
        else:
            connection.execute(_HEARTBEAT, {"of_task_id": task.id})
    return task.log_count + count, task.status


def _new_lines(sent: Sequence[Chunk], seq: int | None, stored: int) -> Sequence[Chunk]:
    if seq is None:
        return sent
    if seq > stored + 1:
        raise Problem(
            409,
            f"Lines are missing: the next one of this writer is number {stored + 1}",
            code=SEQ_GAP,
            more={"expected": stored + 1},
        )
    return without_first(sent, stored + 1 - seq)


def _advance(
    connection: Connection, task: TaskRow, writer: str, stored: int | None, count: int
) -> None:
    if stored is None:
        _check_writers(connection, task)
        values = {"task_id": task.id, "writer": writer, "seq": count}
        connection.execute(insert(LogWriter), values)
    else:
        connection.execute(
            _ADVANCE,
            {"of_task_id": task.id, "of_writer": writer, "new_seq": stored + count},
        )


def _check_writers(connection: Connection, task: TaskRow) -> None:
    if (connection.scalar(_WRITERS, {"task_id": task.id}) or 0) >= MAX_WRITERS:
        raise invalid({"writer": [f"The task has {MAX_WRITERS:,} writers already."]})


def _store(connection: Connection, task: TaskRow, chunks: Sequence[Chunk], count: int) -> None:
    size = sum(chunk.size for chunk in chunks)
    if task.log_bytes + size > MAX_LOG:
        detail = f"The task's log is full: the limit is {MAX_LOG} bytes"
        raise Problem(413, detail, code=LOG_FULL)
    connection.execute(
        _COUNT, {"of_task_id": task.id, "lines": count, "bytes": size, "now": timestamps.now()}
    )
    log_id = task.log_id or connection.scalar(_NEW_LOG, {"task_id": task.id})
    last = task.log_count
    rows: list[dict[str, Any]] = []
    for chunk in chunks:
        last += chunk.count
        rows.append({"log_id": log_id, "last": last, "count": chunk.count, "text": chunk.text})
    connection.execute(insert(LogChunk), rows)
