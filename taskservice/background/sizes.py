"""Estimates the bytes on disk of a task, with its log, deliveries and index entries."""

from typing import Any

from sqlalchemy import ColumnElement, case, func, select

from taskservice.database.models import Attempt, Delivery, Log, LogChunk, LogWriter, Task
from taskservice.database.types import byte_length

# Bytes of a row without its longer texts, in its table and all indexes; measured on SQLite, and
# about the same on PostgreSQL.
TASK = 760
DELIVERY = 260
ATTEMPT = 120
LOG = 80
CHUNK = 30
WRITER = 100


def _sum(size: Any, *of_task: ColumnElement[bool]) -> ColumnElement[int]:
    total = select(func.coalesce(func.sum(size), 0)).where(*of_task)
    return total.correlate(Task).scalar_subquery()


_TEXTS = (Task.name, Task.name_folded, Task.input, Task.output)
_DELIVERIES = _sum(
    DELIVERY + byte_length(Delivery.callback_url) + byte_length(Delivery.host),
    Delivery.task_id == Task.id,
)
_ATTEMPTS = _sum(
    ATTEMPT + byte_length(Attempt.message),
    Attempt.delivery_id == Delivery.id,
    Delivery.task_id == Task.id,
)
_WRITERS = _sum(WRITER + byte_length(LogWriter.writer), LogWriter.task_id == Task.id)
_CHUNKS = _sum(CHUNK, LogChunk.log_id == Log.id, Log.task_id == Task.id)

OF_LOG = LOG + Task.log_bytes + _CHUNKS
OF_TASK = (
    TASK
    + sum(byte_length(text) for text in _TEXTS)
    + _WRITERS
    + _DELIVERIES
    + _ATTEMPTS
    + case((Task.first_log <= Task.log_count, OF_LOG), else_=0)
)
