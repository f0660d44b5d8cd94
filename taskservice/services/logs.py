"""Appends lines to logs, once and in order."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from sqlalchemy import BigInteger, Connection, and_, bindparam, func, insert, select, update

from taskservice.auth.caller import Caller
from taskservice.contract.error_codes import LOG_FULL, SEQ_GAP
from taskservice.contract.terms import MAX_LOG, MAX_WRITERS
from taskservice.database import timestamps
from taskservice.database.models import Log, LogChunk, LogWriter, Task
from taskservice.database.rows import TaskRow
from taskservice.database.statements import Statement
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier
from taskservice.problems import Problem, invalid
from taskservice.services.chunks import Chunk, without_first
from taskservice.services.tasks import HEARTBEAT, TASK, finished_problem, is_open, lock


class _TaskAndSeq(TaskRow, Protocol):
    """A task, and how many lines the writer of this request has sent; None before the first."""

    seq: int | None


_TASK_AND_SEQ = Statement[_TaskAndSeq](
    TASK.add_columns(LogWriter.seq).outerjoin(
        LogWriter, and_(LogWriter.task_id == Task.id, LogWriter.writer == bindparam("writer"))
    )
)
_WRITERS = Statement[Any](
    select(func.count()).where(LogWriter.task_id == bindparam("task_id", type_=Identifier))
)
_NEW_WRITER = Statement[None](insert(LogWriter), ("task_id", "writer", "seq"))
_ADVANCE = Statement[None](
    update(LogWriter)
    .where(
        LogWriter.task_id == bindparam("of_task_id", type_=Identifier),
        LogWriter.writer == bindparam("of_writer"),
    )
    .values(seq=bindparam("new_seq", type_=BigInteger()))
)
_OF_TASK = Task.id == bindparam("of_task_id", type_=Identifier)
_HEARTBEAT = Statement[None](update(Task).where(_OF_TASK).values(HEARTBEAT))
_COUNT = Statement[None](
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
_NEW_LOG = Statement[Any](insert(Log).returning(Log.id), ("task_id",))
_NEW_CHUNK = Statement[None](insert(LogChunk), ("log_id", "last", "count", "text"))


def append(
    caller: Caller, task_id: str, sent: Sequence[Chunk], seq: int | None, writer: str
) -> tuple[int, str]:
    """Append lines to a task's log, each once; returns its line count and the task's status.

    `seq` is the number of the first line sent, counted by `writer` from 1: lines already stored
    are skipped. An append without lines is a heartbeat. Raises 404, 409 for a gap or a finished
    task, 413 for a full log, 422 for too many writers.
    """
    with transaction() as connection:
        found = lock(connection, caller, task_id, _TASK_AND_SEQ, writer=writer)
        task = cast(_TaskAndSeq, found)
        if not is_open(task):
            raise finished_problem(task)
        fresh = _new_lines(sent, seq, task.seq or 0)
        count = sum(chunk.count for chunk in fresh)
        if fresh:
            _advance(connection, task, writer, task.seq, count)
            _store(connection, task, fresh, count)
        else:
            _HEARTBEAT.run(connection, of_task_id=task.id)
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
        _NEW_WRITER.run(connection, task_id=task.id, writer=writer, seq=count)
    else:
        _ADVANCE.run(connection, of_task_id=task.id, of_writer=writer, new_seq=stored + count)


def _check_writers(connection: Connection, task: TaskRow) -> None:
    if _WRITERS.scalar(connection, task_id=task.id) >= MAX_WRITERS:
        raise invalid({"writer": [f"The task has {MAX_WRITERS:,} writers already."]})


def _store(connection: Connection, task: TaskRow, chunks: Sequence[Chunk], count: int) -> None:
    size = sum(chunk.size for chunk in chunks)
    if task.log_bytes + size > MAX_LOG:
        detail = f"The task's log is full: the limit is {MAX_LOG} bytes"
        raise Problem(413, detail, code=LOG_FULL)
    _COUNT.run(connection, of_task_id=task.id, lines=count, bytes=size, now=timestamps.now())
    log_id = task.log_id or _NEW_LOG.scalar(connection, task_id=task.id)
    last = task.log_count
    for chunk in chunks:
        last += chunk.count
        _NEW_CHUNK.run(connection, log_id=log_id, last=last, count=chunk.count, text=chunk.text)
