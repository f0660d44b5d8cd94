"""Searches in logs without an index: for a text, and for what is new since a good run."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from threading import Lock
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Integer, Text, bindparam, func, literal, select

from taskservice.auth import Caller
from taskservice.database import clock, types
from taskservice.database.connections import Statement
from taskservice.database.models import LogChunk, Task
from taskservice.database.transactions import read_all, read_one
from taskservice.database.types import AnyRow, TaskRow, Timestamp
from taskservice.errors import Problem, invalid
from taskservice.services import lists, logs, tasks
from taskservice.services.lists import Filters, Position, Selection, TaskList
from taskservice.terms import COMPLETE, ERROR, NO_GOOD_RUN
from taskservice.user_slots import UserSlots

slots = UserSlots(2, 1.0, "Too many searches at once; try again later")
# A search ends after this time, and after this many bytes of logs. At most 64 MiB are read, since
# the sizes of the next chunks of a large log, CHUNKS_PER_READ of them, may have been read too.
SEARCH_SECONDS = 1.0
SEARCH_BYTES = 48 * types.PAGE_BYTES
# How many tasks one statement reads at most.
TASKS_PER_READ = 400
# How many tasks a search in error messages reads at most.
MAX_ERRORS = 5_000
# A longer line is cut, around the text that was found.
MAX_SHOWN_LINE = 400
# No line has a higher number.
LAST_LINE = (1 << 63) - 1

_part: Any = bindparam("part", type_=Text())
# Searches take turns at it, so that other requests have a processor.
_turn = Lock()
_chunks = select(LogChunk.log_id, *logs.CHUNK_COLUMNS).where(
    types.is_among(LogChunk.log_id, "log_ids"),
    LogChunk.last > bindparam("after"),
    LogChunk.last <= bindparam("until"),
)
_contains = types.position_in_text(types.ascii_lower(LogChunk.text), types.ascii_lower(_part)) > 0
# The database searches: Python would keep other requests of the process waiting.
_CHUNKS = Statement[Any](_chunks.where(_contains))
_EXACT_CHUNKS = Statement[Any](_chunks.where(types.position_in_text(LogChunk.text, _part) > 0))
_next_chunks = (
    select(LogChunk.last, types.byte_length(LogChunk.text).label("size"))
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
    .order_by(LogChunk.last)
    .limit(bindparam("count"))
    .subquery()
)
_RANGE = Statement[Any](
    select(
        func.max(_next_chunks.c.last).label("last"),
        func.count().label("count"),
        func.sum(_next_chunks.c.size, type_=Integer()).label("size"),
    )
)


# Where a search has stopped: at the position of a task, with the number of the last line that was
# read if there are more.
End: TypeAlias = Sequence[Any]


class Found(NamedTuple):
    """The hits of a search as JSON, how much it has read, and where it stopped before the end."""

    hits: list[dict[str, Any]]
    tasks: int
    bytes: int
    end: End | None

    def as_json(self) -> dict[str, Any]:
        until = self.end[0] if self.end else None
        searched = {"tasks": self.tasks, "bytes": self.bytes, "until": until}
        return {"hits": self.hits, "searched": searched}


class _Part(NamedTuple):
    """Chunks of some logs from one line to another; a search that has read it has reached `end`."""

    tasks: Sequence[AnyRow]
    after: int
    until: int
    size: int
    end: End


def search(
    caller: Caller,
    selection: Selection,
    text: str,
    *,
    is_exact: bool = False,
    start: End | None = None,
    limit: int,
) -> Found:
    """The next lines with `text`; ASCII in any case unless `is_exact`. Raises 422 and 503."""
    if "\n" in text:
        raise invalid({"text": ["Must be one line."]})
    text = text.replace("\0", "\ufffd")
    hits: list[dict[str, Any]] = []
    searched, size = set[str](), 0
    with slots.hold(caller.user_id):
        deadline = monotonic() + SEARCH_SECONDS
        for part in _parts(TaskList(caller, selection), start):
            searched.update(row.id for row in part.tasks)
            size += part.size
            for row, hit in _hits(part, text, is_exact=is_exact):
                hits.append(hit)
                if len(hits) == limit:
                    return Found(hits, len(searched), size, (*_position(row), hit["line"]))
            if size >= SEARCH_BYTES or monotonic() >= deadline:
                return Found(hits, len(searched), size, part.end)
    return Found(hits, len(searched), size, None)


def in_errors(
    caller: Caller, selection: Selection, text: str, after: Position | None, limit: int
) -> lists.Positions:
    """The next tasks whose error contains `text`, among MAX_ERRORS. Raises 503."""
    tasks = TaskList(caller, selection._replace(status=ERROR))
    with slots.hold(caller.user_id):
        end = tasks.position(after, MAX_ERRORS)
        rows = tasks.run(_errors_statement, after, end, part=text, count=limit)
    found = [Position(*row) for row in rows]
    return found, found[-1] if len(found) == limit else end


@lru_cache(maxsize=lists.STATEMENTS)
def _errors_statement(scan: lists.Scan) -> Statement[AnyRow]:
    contains = (
        types.position_in_text(types.ascii_lower(Task.error_message), types.ascii_lower(_part)) > 0
    )
    return Statement(lists.in_order(scan, contains).limit(bindparam("count")))


def _parts(tasks: TaskList, start: End | None) -> Iterator[_Part]:
    """The logs of all tasks of a list from `start` on, in parts of about a megabyte."""
    after = Position(*start[:2]) if start else None
    if after and start and len(start) > len(after):
        yield from _parts_of(tasks, [after], start[-1])
    while True:
        positions, after = tasks.positions(after, TASKS_PER_READ)
        yield from _parts_of(tasks, positions)
        if after is None:
            return
        yield _Part((), 0, 0, 0, after)


def _parts_of(tasks: TaskList, positions: Sequence[Position], line: int = 0) -> Iterator[_Part]:
    small: list[AnyRow] = []
    size = 0
    for row in tasks.read([position.id for position in positions], _tasks_statement):
        if small and size + row.log_bytes > types.PAGE_BYTES:
            yield _Part(small, line, LAST_LINE, size, _position(small[-1]))
            small, size = [], 0
        if row.log_bytes > types.PAGE_BYTES:
            yield from _ranges(row, line)
        else:
            small.append(row)
            size += row.log_bytes
    if small:
        yield _Part(small, line, LAST_LINE, size, _position(small[-1]))


@lru_cache(maxsize=lists.STATEMENTS)
def _tasks_statement(filters: Filters) -> Statement[Any]:
    columns = (Task.id, Task.name, Task.agent_id, Task.status, Task.first_log, Task.log_bytes)
    found = tasks.with_log_id([*columns, Task.log_count, Task.created_at])
    return Statement(found.where(*lists.still_match(filters)))


def _position(row: AnyRow) -> Position:
    return Position(row.created_at, row.id)


def _ranges(row: AnyRow, after: int) -> Iterator[_Part]:
    count = 16
    while True:
        with _turn:
            [found] = read_all(_RANGE, log_id=row.log_id, after=after, count=count)
        if not found.count:
            return
        count = types.next_limit(found.count, found.size, logs.CHUNKS_PER_READ)
        if found.size > 2 * types.PAGE_BYTES and found.count > 1:
            continue
        end = (*_position(row), found.last) if found.last < row.log_count else _position(row)
        yield _Part([row], after, found.last, found.size, end)
        after = found.last


def _hits(part: _Part, text: str, *, is_exact: bool) -> Iterator[tuple[AnyRow, dict[str, Any]]]:
    log_ids = [row.log_id for row in part.tasks if row.log_id is not None]
    if not log_ids:
        return
    statement = _EXACT_CHUNKS if is_exact else _CHUNKS
    between = {"after": part.after, "until": part.until}
    with _turn:
        found = read_all(statement, log_ids=log_ids, part=text, **between)
    chunks: dict[int, list[Any]] = {}
    for chunk in sorted(found, key=lambda chunk: chunk.last):
        chunks.setdefault(chunk.log_id, []).append(chunk)
    for row in part.tasks:
        after = max(part.after, row.first_log - 1)
        for chunk in chunks.get(row.log_id, ()):
            # Other threads get their turn.
            sleep(0.0001)
            hits = _hits_in(chunk, text, row, after, is_exact=is_exact)
            yield from ((row, hit) for hit in hits)


def _hits_in(
    chunk: Any, text: str, row: AnyRow, after: int, *, is_exact: bool
) -> Iterator[dict[str, Any]]:
    first = number = chunk.last - chunk.count + 1
    times: list[int] | None = None
    # `lower` of bytes, as of the database, knows ASCII alone; it is many times as fast as a
    # regular expression, during which no other thread runs.
    data, part = chunk.text.encode(), text.encode()
    searched, part = (data, part) if is_exact else (data.lower(), part.lower())
    counted = 0
    while (place := searched.find(part, counted)) >= 0:
        start = data.rfind(b"\n", 0, place) + 1
        end = data.find(b"\n", place)
        end = len(data) if end < 0 else end
        number += data.count(b"\n", counted, start)
        counted = end
        if number > after:
            if times is None and chunk.at is not None:
                times = clock.decode(chunk.at, chunk.times, chunk.count)
            at = clock.from_milliseconds(times[number - first]) if times else None
            line, begin = data[start:end].decode(), len(data[start:place].decode())
            yield {
                "taskId": row.id,
                "name": row.name,
                "agentId": row.agent_id,
                "status": row.status,
                "line": number,
                "at": at,
                "text": excerpt(line, begin, begin + len(text)),
            }


def excerpt(line: str, start: int, end: int) -> str:
    """A line, or the part of a long one that has its characters from `start` in the middle."""
    begin = max(0, min((start + end - MAX_SHOWN_LINE) // 2, len(line) - MAX_SHOWN_LINE))
    return line[begin : begin + MAX_SHOWN_LINE]


# The lines of a log that another log does not have, apart from numbers, times and ids.

MAX_NEW_LINES = 200
# A comparison reads this much of the start of each log, and of its end, in at most this time.
COMPARED_BYTES = 8 * 1024 * 1024
COMPARED_SECONDS = 1.8
# A good run is looked for among this many tasks of the agent, those that ended last.
MAX_EARLIER = 5_000

_earlier = (*tasks.of_this_agent, Task.finished_at < bindparam("before"))
# Where the search ends, from the index alone.
_end = select(Task.finished_at).where(*_earlier).order_by(Task.finished_at.desc()).limit(1)
_nth_end = _end.offset(bindparam("skipped")).scalar_subquery()
_is_near = Task.finished_at >= func.coalesce(_nth_end, literal(clock.EARLIEST, Timestamp()))
_LAST_GOOD = Statement[TaskRow](
    tasks.tasks_with_log_id.where(*_earlier, _is_near, lists.unindexed([Task.status == COMPLETE]))
    .order_by(Task.finished_at.desc())
    .limit(1)
)

_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_HEX = bytes(ord("h") if chr(code) in "0123456789abcdefABCDEF" else 0 for code in range(256))
_H = rb"[0a-fA-F]"
# Each begins with a set of bytes or a literal: so Python finds candidates quickly. UUIDs, and 16
# or more hexadecimal digits; then hexadecimal numbers and temporary paths; then names in dates.
_LONG_HEX = re.compile(
    _H + _H + rb"{7}(?:-" + (_H + rb"{4}-") * 3 + _H + rb"{12}|" + _H + rb"{8,})"
)
_SHORT_HEX = re.compile(rb"0[xX][0a-fA-F]+")
_TEMPORARY = re.compile(rb"/tmp/[^\s'\":,)]*")
# After its first three letters, a name must not have begun before them, and may be abbreviated.
_IS_WHOLE = rb"(?<!\w.{3})"
_MONTH = re.compile(
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    + _IS_WHOLE
    + rb"(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|ember)?\.?[ /-]+(?=0)"
)
_WEEKDAY = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)" + _IS_WHOLE + rb"(?:day|sday|nesday|rsday|urday)?,? +(?=0)"
)
# What comes before a sign, and which parts of numbers become one zero.
_SIGNS = [f"{before}{sign}0".encode() for before in "\n\t =:,([" for sign in "-+"]
_NUMBERS = (b"00", b"0.0", b"0:0", b"0,0", b"0e0", b"0e-0", b"0e+0", b"0E0", b"0E-0", b"0E+0")
# Spaces that align numbers; each series of spaces is looked at once.
_SPACES = re.compile(rb"  (?<! {3}) *+(?=0)")


def last_good_run(task: TaskRow) -> TaskRow | None:
    """The agent's latest complete task that had ended when this task started."""
    of_agent = {"user_id": task.user_id, "agent_id": task.agent_id}
    return read_one(_LAST_GOOD, **of_agent, before=task.created_at, skipped=MAX_EARLIER - 1)


def new_lines(caller: Caller, task_id: str, against_id: str | None) -> dict[str, Any]:
    """The new lines of a task, by default since the last good run. Raises 404 and 503."""
    task = tasks.get(caller, task_id)
    good = last_good_run(task) if against_id is None else tasks.get(caller, against_id)
    if good is None:
        raise Problem(404, "No good run of the agent to compare with", code=NO_GOOD_RUN)
    return lines_not_in(good, task)


def lines_not_in(good: TaskRow, task: TaskRow) -> dict[str, Any]:
    """The lines of `task` that `good` does not have, as JSON. Raises 503."""
    is_cut = max(task.log_bytes, good.log_bytes) > 2 * COMPARED_BYTES
    known, lines = set[bytes](), list[dict[str, Any]]()
    with slots.hold(task.user_id):
        began = monotonic()
        for chunk in logs.ends_of(good, COMPARED_BYTES):
            known.update(_without_values(chunk.text).split(b"\n"))
            if is_late := monotonic() > began + COMPARED_SECONDS / 2:
                is_cut |= is_late
                break
        for chunk in logs.ends_of(task, COMPARED_BYTES):
            lines += _unknown(chunk, known, task.first_log)
            if is_late := monotonic() > began + COMPARED_SECONDS:
                is_cut |= is_late
                break
    lines.sort(key=itemgetter("line"))
    # The error is at the end.
    shown, is_cut = lines[-MAX_NEW_LINES:], is_cut or len(lines) > MAX_NEW_LINES
    against = {"id": good.id, "finishedAt": good.finished_at}
    return {"against": against, "lines": shown, "cut": is_cut}


def _unknown(chunk: Any, known: set[bytes], first_log: int) -> Iterator[dict[str, Any]]:
    """The last lines of a chunk that are not known."""
    found = _without_values(chunk.text).split(b"\n")
    places = [place for place, line in enumerate(found) if line not in known]
    first = chunk.last - chunk.count + 1
    places = [place for place in places if first + place >= first_log][-MAX_NEW_LINES - 1 :]
    if places:
        texts, times = chunk.text.split("\n"), logs.times_of(chunk)
        for place in places:
            text = texts[place][:MAX_SHOWN_LINE]
            yield {"line": first + place, "at": times[place], "text": text}


def _without_values(text: str) -> bytes:
    """The lines, with one zero for each number, id, time and temporary path."""
    # Replacing bytes is several times as fast as one pattern for all of these.
    # Other threads get their turn.
    sleep(0.0001)
    data = f"\n{text}".encode().translate(_DIGITS)
    if b"h" * 12 in data.translate(_HEX):
        data = _LONG_HEX.sub(b"0", data)
    for mark, pattern in ((b"0x", _SHORT_HEX), (b"0X", _SHORT_HEX), (b"/tmp/", _TEMPORARY)):
        if mark in data:
            data = pattern.sub(b"0", data)
    if _MONTH.search(data):
        data = _MONTH.sub(b"0", data)
        data = _WEEKDAY.sub(b"0", data)
    data = data.replace(b"0000", b"0")
    for signed in _SIGNS:
        data = data.replace(signed, signed[:1] + b"0")
    for digits in _NUMBERS:
        while digits in data:
            data = data.replace(digits, b"0")
    return _SPACES.sub(b" ", data[1:])
