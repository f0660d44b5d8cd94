"""A task and its log as they change, as Server-Sent Events for its page."""

import time
from collections.abc import Iterator
from typing import Any

from taskservice import queries, stopping, strict_json
from taskservice.access import Caller
from taskservice.documents import Shape
from taskservice.models import RUNNING
from taskservice.queries import TaskRow
from taskservice.schemas import TASK_FIELDS

LOOK_SECONDS = 0.25
SILENCE_SECONDS = 15.0
LINES_AT_ONCE = 1_000

WITHOUT_LOGS = Shape(fields=tuple(name for name in TASK_FIELDS if name != "logs"))


def events(caller: Caller, task: TaskRow, after: int) -> Iterator[bytes]:
    """First `task`, then a `log` for each line after number `after`, and `task` at each change.

    Ends after the task has, when it is deleted, or when the process stops.
    """
    # Copied: `caller` may stand for that of a request.
    caller = Caller(caller.user_id, caller.agent_id, caller.key_id)
    current: TaskRow | None = task
    shown, heard = None, time.monotonic()
    while current is not None and not stopping.event.is_set():
        lines = queries.lines_after(current, after, LINES_AT_ONCE)
        if _state(current) != shown or lines:
            heard = time.monotonic()
        if _state(current) != shown:
            shown = _state(current)
            yield _event("task", WITHOUT_LOGS.schema().dump(current))
        if lines:
            after = max(after, current.first_log - 1)
            yield b"".join(
                _event("log", line, after + place) for place, line in enumerate(lines, start=1)
            )
            after += len(lines)
        if len(lines) < LINES_AT_ONCE:
            if current.status != RUNNING:
                return
            stopping.event.wait(LOOK_SECONDS)
        if time.monotonic() - heard > SILENCE_SECONDS:
            heard = time.monotonic()
            yield b": still there\n\n"
        current = queries.task(caller, task.id)


def _state(task: TaskRow) -> tuple[Any, ...]:
    """What differs after a change that is not of the log alone."""
    return task.status, task.name, task.output, task.claimed_at, task.error_type


def _event(kind: str, value: Any, number: int | None = None) -> bytes:
    identity = b"" if number is None else b"id: %d\n" % number
    return b"%bevent: %b\ndata: %b\n\n" % (identity, kind.encode(), strict_json.dumps(value))
