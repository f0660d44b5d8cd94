"""The types of rows, and how many rows one read takes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Row, Select

AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyRow: TypeAlias = Row[*tuple[Any, ...]]


class TaskRow(Protocol):
    """What code reads of a task's row; TaskSchema writes its answer from all its columns.

    It is a row of the database, or a namespace of the same names.
    """

    id: str
    name: str
    agent_id: str
    user_id: str
    created_at: str
    claimed_at: str | None
    finished_at: str | None
    input: str
    output: str
    labels: str
    # The open ones as JSON; see `schemas.rows.open_questions`.
    questions: str
    callback_url: str | None
    status: str
    error_type: str | None
    error_message: str | None
    progress: str | None
    note: str | None
    parent_id: str | None
    rerun_of: str | None
    updated_at: str
    version: int
    # Of its log: its id, None before the first line; the numbers of the first and the last line;
    # and the bytes that were ever appended.
    log_id: int | None
    first_log: int
    log_count: int
    log_bytes: int


class TaskVersion(Protocol):
    """What tells whether a task has changed, or ended."""

    version: int
    status: str
    questions: str


class TaskAndLines(TaskRow, Protocol):
    """A task's row with its `lines`, joined by line feeds; None if the log is large or has none."""

    lines: str | None


class ListedTask(TaskRow, Protocol):
    """A task of a list: its `json` as the database has written it, or else None and its row."""

    json: bytes | None


# The approximate number of bytes that one read takes into memory.
PAGE_BYTES = 1024 * 1024


def next_limit(count: int, size: int, maximum: int) -> int:
    """How many rows to read next, so that they have about PAGE_BYTES; `count` rows had `size`.

    At least 1, and at most `maximum` and four times `count`.
    """
    return max(1, min(maximum, 4 * count, count * PAGE_BYTES // max(size, 1)))


def in_pages(
    read: Callable[[AnyRow | None, int], Sequence[AnyRow]], count: int
) -> Iterator[Sequence[AnyRow]]:
    """All rows of a list, `count` at a time: `read` returns the next ones after a row."""
    rows = read(None, count)
    while rows:
        yield rows
        rows = read(rows[-1], count) if len(rows) == count else []
