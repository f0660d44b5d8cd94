"""Appends lines to logs, once and in order."""

from collections.abc import Sequence
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
from taskservice.services.tasks import (
    HEARTBEAT,
    IS_OPEN,
    TASK,
    VISIBLE,
    finished_problem,
    is_open,
    lock,
)


class _TaskAndSeq(TaskRow, Protocol):
    """A task, and how many lines its writers have sent: the one without a name, and the other."""

    default_writer_seq: int
    seq: int | None


class _Counted(Protocol):
    """A task after its lines were counted; `log_id` is None if it had no log."""

    id: str
    status: str
    log_count: int
    first_log: int
    log_id: int | None


_TASK_AND_SEQ = Statement[_TaskAndSeq](
    TASK.add_columns(Task.default_writer_seq, LogWriter.seq).outerjoin(
        LogWriter, and_(LogWriter.task_id == Task.id, LogWriter.writer == bindparam("writer"))
    )
)
# SQLAlchemy leaves out the names of tables here, and `id` alone would be the log's.
_LOG_ID = (
    select(Log.id)
    .where(Log.task_id == literal_column("tasks.id"))
    .scalar_subquery()
    .label("log_id")
)
_IF_OPEN = (
    update(Task)
    .where(*VISIBLE, IS_OPEN)
    .returning(Task.id, Task.status, Task.log_count, Task.first_log)
)
_HEARTBEAT = Statement[_Counted](_IF_OPEN.values(HEARTBEAT))
_COUNT = Statement[_Counted](
    _IF_OPEN.where(Task.log_bytes <= MAX_LOG - bindparam("bytes", type_=BigInteger()))
    .values(
        log_count=Task.log_count + bindparam("lines", type_=BigInteger()),
        log_bytes=Task.log_bytes + bindparam("bytes", type_=BigInteger()),
        default_writer_seq=Task.default_writer_seq + bindparam("unnamed", type_=BigInteger()),
        version=Task.version + 1,
        updated_at=bindparam("now"),
        **HEARTBEAT,
    )
    .returning(_LOG_ID)
)
_OF_WRITER = (
    LogWriter.task_id == bindparam("of_task_id", type_=Identifier),
    LogWriter.writer == bindparam("of_writer"),
)
_ADVANCE = Statement[Any](
    update(LogWriter)
    .where(*_OF_WRITER)
    .values(seq=LogWriter.seq + bindparam("lines", type_=BigInteger()))
    .returning(LogWriter.seq)
)
_WRITERS = Statement[Any](
    select(func.count()).where(LogWriter.task_id == bindparam("task_id", type_=Identifier))
)
_NEW_WRITER = Statement[None](insert(LogWriter), ("task_id", "writer", "seq"))
_LOG = Statement[Any](select(Log.id).where(Log.task_id == bindparam("task_id", type_=Identifier)))
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
        if seq is not None:
            sent = _not_stored(connection, caller, task_id, sent, seq, writer)
        task = _count(connection, caller, task_id, sent, writer)
        if sent and writer:
            _advance(connection, task, writer, _line_count(sent))
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
    """What `writer` has not sent before."""
    found = lock(connection, caller, task_id, _TASK_AND_SEQ, writer=writer)
    task = cast(_TaskAndSeq, found)
    if not is_open(task):
        raise finished_problem(task)
    stored = task.seq or 0 if writer else task.default_writer_seq
    if seq > stored + 1:
        raise Problem(
            409,
            f"Lines are missing: the next one of this writer is number {stored + 1}",
            code=SEQ_GAP,
            more={"expected": stored + 1},
        )
    return without_first(sent, stored + 1 - seq)


def _count(
    connection: Connection, caller: Caller, task_id: str, sent: Sequence[Chunk], writer: str
) -> _Counted:
    """Count these lines, which is a heartbeat too, if the task takes them; this locks it."""
    here = {"task_id": task_id, **caller.scope}
    if sent:
        lines = _line_count(sent)
        new = {
            "lines": lines,
            "unnamed": 0 if writer else lines,
            "bytes": sum(chunk.size for chunk in sent),
            "now": timestamps.now(),
        }
        counted = _COUNT.one_or_none(connection, **here, **new)
    else:
        counted = _HEARTBEAT.one_or_none(connection, **here)
    if counted is None:
        task = lock(connection, caller, task_id)
        if not is_open(task):
            raise finished_problem(task)
        detail = f"The task's log is full: the limit is {MAX_LOG} bytes"
        raise Problem(413, detail, code=LOG_FULL)
    return counted


def _line_count(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.count for chunk in chunks)


def _advance(connection: Connection, task: _Counted, writer: str, lines: int) -> None:
    """Count these lines as sent by a writer with a name."""
    of_writer = {"of_task_id": task.id, "of_writer": writer}
    if _ADVANCE.one_or_none(connection, lines=lines, **of_writer) is None:
        if _WRITERS.scalar(connection, task_id=task.id) >= MAX_WRITERS:
            raise invalid({"writer": [f"The task has {MAX_WRITERS:,} writers already."]})
        _NEW_WRITER.run(connection, task_id=task.id, writer=writer, seq=lines)


def _store(connection: Connection, task: _Counted, chunks: Sequence[Chunk]) -> None:
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
        _NEW_CHUNK.run(connection, log_id=log_id, last=last, count=chunk.count, text=chunk.text)
