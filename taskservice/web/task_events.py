"""The changes of a task as they happen, as objects and as Server-Sent Events."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from taskservice import resources
from taskservice.auth import Caller
from taskservice.database import watcher
from taskservice.database.types import TaskRow
from taskservice.database.watcher import Watcher
from taskservice.schemas import strict_json
from taskservice.schemas.columns import TASK_COLUMNS
from taskservice.schemas.tasks import TASK_FIELDS
from taskservice.services import logs, task_json, tasks
from taskservice.services.logs import LogGone, TimedLine
from taskservice.services.task_json import Shape
from taskservice.terms import RUNNING

# A comment after this time without an event keeps proxies from closing the stream.
COMMENT_SECONDS = 15.0
COMMENT = b":\n\n"

# Columns that an append changes, or nothing: a follower gets no `task` for them.
_UNNOTICED = {"input", "first_log", "log_count", "log_bytes", "updated_at", "version"}
_state = attrgetter(*(it.key for it in TASK_COLUMNS if it.key not in _UNNOTICED))

WITHOUT_LOGS = Shape(fields=tuple(name for name in TASK_FIELDS if name != "logs"))


class Lines(NamedTuple):
    """Lines of the log; the first one has the number `first`."""

    first: int
    lines: list[TimedLine]


@dataclass(frozen=True)
class Quiet:
    """Nothing has changed for a second."""


Event: TypeAlias = TaskRow | Lines | Quiet


def follow(caller: Caller, task_id: str, after: int) -> Iterator[Event]:
    """Yields the task, its lines after number `after`, and each change, until the task ends.

    The row comes first, again whenever anything but the log has changed, and last when the task
    has ended. The iterator also ends when the task is deleted or the process stops.
    """
    shown: tuple[object, ...] | None = None
    watch = resources.find(Watcher)
    with watch.watching():
        while not resources.stopping.is_set():
            since = watch.changes
            row = tasks.find(caller, task_id)
            if row is None:
                return
            if shown is None:
                yield row
                # A number past the end would hide the next lines.
                after = min(after, row.log_count)
            begin = after = max(after, row.first_log - 1)
            for lines in _present_lines(row, after):
                yield Lines(after + 1, lines)
                after += len(lines)
            has_ended = row.status != RUNNING
            is_news = shown is not None and shown != _state(row)
            if is_news or (has_ended and after > begin):
                yield row
            shown = _state(row)
            if has_ended and after >= row.log_count:
                return
            if watch.changes == since:
                yield Quiet()
                watch.wait(since, watcher.CLIENT_CHECK_SECONDS)


def as_text(events: Iterator[Event], *, has_times: bool = False) -> Iterator[bytes]:
    """Events as `text/event-stream`, with comments while nothing changes."""
    sent_at = time.monotonic()
    for event in events:
        now = time.monotonic()
        if not isinstance(event, Quiet):
            yield _lines(event, has_times) if isinstance(event, Lines) else _task(event)
        elif now - sent_at >= COMMENT_SECONDS:
            yield COMMENT
        else:
            continue
        sent_at = now


def _present_lines(row: TaskRow, after: int) -> Iterator[list[TimedLine]]:
    try:
        yield from logs.timed_pages(row, after)
    except LogGone:
        # Retention or a deletion removed it: the next read of the task shows which.
        return


def _task(row: TaskRow) -> bytes:
    return b"event: task\ndata: " + b"".join(task_json.task(row, WITHOUT_LOGS)) + b"\n\n"


def _lines(event: Lines, has_times: bool) -> bytes:
    return b"".join(
        b"id: %d\nevent: log\ndata: %b\n\n" % (number, strict_json.dumps(_data(line, has_times)))
        for number, line in enumerate(event.lines, event.first)
    )


def _data(line: TimedLine, has_time: bool) -> Any:
    return {"at": line.at, "line": line.text} if has_time else line.text
