"""Every read, as Core selects on the read engine."""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import eq, gt, lt
from types import SimpleNamespace
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)

from taskservice import stamps
from taskservice.access import Caller, visible_agents, visible_tasks
from taskservice.db import Timestamp, database_now, has_writer_queue, reading, writers_turn
from taskservice.models import (
    FAILED,
    PENDING,
    RUNNING,
    Agent,
    ApiKey,
    Attempt,
    CallbackSecret,
    Delivery,
    Identifier,
    Log,
    LogChunk,
    Task,
    User,
)
from taskservice.problems import Problem
from taskservice.schemas import SORTS

# The columns of a task that answers are made of, and `log_id`, where its lines are:
# a row of the database, or a namespace of the same names.
TaskRow: TypeAlias = Any
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyRow: TypeAlias = Row[*tuple[Any, ...]]

# About how much of the database a read takes into memory at once.
PAGE_BYTES = 1024 * 1024
# How many places of a list are looked up at once.
PLACES = 1_000
# A log of at most so many bytes is read together with those of its neighbours.
SMALL_LOG = 64 * 1024

# Deliveries that a list can be narrowed to, spelled out as the indexes of these rows have it.
_few = {
    PENDING: text("deliveries.state = 'pending'"),
    FAILED: text("deliveries.state IN ('failed', 'cancelled') AND deliveries.state = 'failed'"),
}

NEWEST_FIRST, OLDEST_FIRST, BY_END = SORTS

TASK_COLUMNS = (
    Task.id,
    Task.name,
    Task.agent_id,
    Task.user_id,
    Task.created_at,
    Task.updated_at,
    Task.claimed_at,
    Task.finished_at,
    Task.input,
    Task.first_log,
    Task.log_count,
    Task.log_bytes,
    Task.output,
    Task.status,
    Task.error_type,
    Task.error_message,
    Task.callback_url,
    Task.version,
)
# Those that may have a megabyte, by their names.
LARGE_COLUMNS = {"input": Task.input, "output": Task.output}
AGENT_COLUMNS = (Agent.id, Agent.name, Agent.description, Agent.user_id, Agent.created_at)
KEY_COLUMNS = (
    ApiKey.id,
    ApiKey.user_id,
    ApiKey.agent_id,
    ApiKey.name,
    ApiKey.hint,
    ApiKey.created_at,
    ApiKey.expires_at,
    ApiKey.last_used_at,
    ApiKey.revoked_at,
)
DELIVERY_COLUMNS = (
    Delivery.id,
    Delivery.task_id,
    Delivery.callback_url,
    Delivery.state,
    Delivery.created_at,
    Delivery.next_attempt_at,
)
ATTEMPT_COLUMNS = (
    Attempt.delivery_id,
    Attempt.at,
    Attempt.duration_ms,
    Attempt.status_code,
    Attempt.message,
)


class LogGone(Problem):
    """Lines that a row promised are no longer there: they were dropped while being read."""

    def __init__(self) -> None:
        super().__init__(503, "The log was dropped while it was read", headers={"Retry-After": "1"})


# --- tasks -------------------------------------------------------------------------------


def _with_log(columns: Iterable[Any]) -> AnySelect:
    statement: AnySelect = select(*columns, Log.id.label("log_id"))
    return statement.outerjoin(Log, Log.task_id == Task.id)


tasks_with_log = _with_log(TASK_COLUMNS)
_TASK = tasks_with_log.where(Task.id == bindparam("task_id"), visible_tasks)
_WAITING = (
    select(Task.id)
    .where(
        Task.user_id == bindparam("user_id"),
        Task.agent_id == bindparam("of_agent_id"),
        # As the index of just these tasks has it.
        Task.status == literal_column(f"'{RUNNING}'"),
        Task.claimed_at.is_(None),
    )
    .limit(1)
)
_TASK_BY_ID = tasks_with_log.where(Task.id == bindparam("task_id"))
# For how many seconds the oldest transaction that has begun to write has been under way.
_OLDEST_WRITE = text(
    "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float "
    "FROM pg_stat_activity WHERE datname = current_database() AND backend_xid IS NOT NULL"
)


def task(caller: Caller, task_id: str) -> TaskRow | None:
    with reading() as connection:
        return connection.execute(_TASK, {"task_id": task_id, **caller.scope}).one_or_none()


def has_waiting_task(caller: Caller, agent_id: str) -> bool:
    """Whether there is a task that the agent could claim."""
    with reading() as connection:
        wanted = {"user_id": caller.user_id, "of_agent_id": agent_id}
        return connection.scalar(_WAITING, wanted) is not None


def task_by_id(task_id: str) -> TaskRow | None:
    """A task whoever it belongs to: for the service itself, never for a caller."""
    with reading() as connection:
        return connection.execute(_TASK_BY_ID, {"task_id": task_id}).one_or_none()


@dataclass(frozen=True)
class Selection:
    """Which tasks a list has, and in which order; all bounds are exclusive."""

    status: str | None = None
    agent_id: str | None = None
    name_part: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    finished_after: str | None = None
    # The state of a delivery of theirs.
    delivery: str | None = None
    sort: str = NEWEST_FIRST


@dataclass(frozen=True)
class Place:
    """The place of one task in a list: what a cursor stands for.

    By end, tasks that ended after the list was begun (`since`) count as running, so that
    none changes its place while somebody reads on; and one that was ended for silence
    before keeps that place when its late word comes. `stage` is 1 among those, else 0.
    """

    since: str
    stage: int
    moment: str
    id: str


def places(caller: Caller, selection: Selection, after: Place | None, count: int) -> list[Place]:
    """The next `count` places of the list, or fewer at its end."""
    start = after or _beginning(selection)
    found: list[Place] = []
    for stage in range(start.stage, 2 if selection.sort == BY_END else 1):
        after = start if start.id and stage == start.stage else None
        statement = _keys(caller, selection, stage, start.since, after, count - len(found))
        with reading() as connection:
            rows = connection.execute(statement).all()
        found += [Place(start.since, stage, row[0], row[1]) for row in rows]
        if len(found) == count:
            break
    return found


def tasks_at(
    caller: Caller,
    selection: Selection,
    wanted: Sequence[Place],
    large: Sequence[str] = tuple(LARGE_COLUMNS),
) -> Iterator[list[TaskRow]]:
    """The tasks at these places, in their order, in pages of bounded size.

    Of the columns that may be large their rows have those in `large` only.
    Each page is a read of its own, so that no reader, however slow, holds a transaction.
    A task that was deleted meanwhile, or that the selection no longer has, is left out.
    """
    limit = 4 if large else 32
    left_out = [column for name, column in LARGE_COLUMNS.items() if name not in large]
    columns = [column for column in TASK_COLUMNS if column not in left_out]
    fits = _checked(_conditions(caller, selection))
    while wanted:
        now, wanted = wanted[:limit], wanted[limit:]
        ids = [place.id for place in now]
        with reading() as connection:
            found = connection.execute(_with_log(columns).where(Task.id.in_(ids), fits))
            rows = {row.id: row for row in found}
        page = [rows[task_id] for task_id in ids if task_id in rows]
        yield page
        limit = _next_limit(len(ids), sum(_task_size(row, large) for row in page), 256)


def all_tasks(
    caller: Caller, selection: Selection, large: Sequence[str] = tuple(LARGE_COLUMNS)
) -> Iterator[list[TaskRow]]:
    """The whole list, as `tasks_at` has it."""
    after: Place | None = None
    while wanted := places(caller, selection, after, PLACES):
        yield from tasks_at(caller, selection, wanted, large)
        after = wanted[-1]


def _beginning(selection: Selection) -> Place:
    if selection.sort != BY_END:
        return Place(stamps.now(), stage=0, moment="", id="")
    # What runs has no place by its end; to look for it there would read all that ended.
    stage = 1 if selection.status == RUNNING else 0
    return Place(_settled(), stage, moment="", id="")


def _settled() -> str:
    """A moment close to now; whatever a transaction stamps as earlier can be read already.

    Raises OperationalError when SQLite's writers do not let it come to its turn.
    """
    asked = time.monotonic()
    if has_writer_queue():
        # Once it is our turn all that came before is written.
        with writers_turn():
            age = 0.0
    else:
        with reading() as connection:
            age = connection.scalar(_OLDEST_WRITE) or 0.0
    return stamps.now(asked - time.monotonic() - age)


def _conditions(caller: Caller, selection: Selection) -> list[ColumnElement[bool]]:
    bounds: list[tuple[Any, Any, str | None]] = [
        (Task.agent_id, eq, caller.agent_id),
        (Task.agent_id, eq, selection.agent_id),
        (Task.status, eq, selection.status),
        (Task.created_at, gt, selection.created_after),
        (Task.created_at, lt, selection.created_before),
        (Task.finished_at, gt, selection.finished_after),
    ]
    conditions: list[ColumnElement[bool]] = [Task.user_id == caller.user_id]
    conditions += [compare(column, value) for column, compare, value in bounds if value]
    if selection.name_part is not None:
        part = selection.name_part.casefold()
        conditions.append(Task.name_folded.contains(part, autoescape=True))
    if selection.delivery is not None:
        few = select(Delivery.task_id).where(_few[selection.delivery])
        conditions.append(Task.id.in_(few))
    return conditions


def _checked(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """All of `conditions`, in a form by which SQLite looks for nothing.

    Without figures about the data it takes any index over a better one of fewer columns.
    """
    return and_(*conditions).is_(true())


def _keys(
    caller: Caller, selection: Selection, stage: int, since: str, after: Place | None, count: int
) -> AnySelect:
    """The select of the moments and ids of this stage's next places."""
    conditions = _conditions(caller, selection)
    if selection.sort != BY_END:
        return _next_keys(Task.created_at, conditions, after, count, selection.sort == NEWEST_FIRST)
    beginning = selection.finished_after if after is None else None
    return _keys_by_end(caller, conditions, stage, since, after, beginning, count)


def _keys_by_end(
    caller: Caller,
    conditions: list[ColumnElement[bool]],
    stage: int,
    since: str,
    after: Place | None,
    beginning: str | None,
    count: int,
) -> AnySelect:
    own, ended_since = Task.user_id == caller.user_id, Task.finished_at >= since
    # What ended since has its place by another moment than its end: it comes from a select
    # of its own, by the index of ends, and there are few.
    if stage == 0:
        ended = [own, Task.finished_at < since, _checked(conditions)]
        if beginning is not None:
            ended.append(Task.finished_at > beginning)
        others = [*conditions, Task.timed_out_at < since]
        moment: Any = Task.timed_out_at
        most = _next_keys(Task.finished_at, ended, after, count)
    else:
        running = [own, Task.status == RUNNING, _checked(conditions)]
        others = [*conditions, or_(Task.timed_out_at.is_(None), Task.timed_out_at >= since)]
        moment = Task.created_at
        most = _next_keys(moment, running, after, count)
    if after is not None:
        others.append(_beyond(moment, after))
    few = select(moment, Task.id).where(own, ended_since, _checked(others))
    both = union_all(select(most.subquery()), few).subquery()
    return select(both).order_by(*both.c).limit(count)


def _next_keys(
    column: Any,
    conditions: Sequence[ColumnElement[bool]],
    after: Place | None,
    count: int,
    newest_first: bool = False,
) -> AnySelect:
    statement: AnySelect = select(column, Task.id).where(*conditions).limit(count)
    if after is not None:
        statement = statement.where(_beyond(column, after, newest_first))
    if newest_first:
        return statement.order_by(column.desc(), Task.id.desc())
    return statement.order_by(column, Task.id)


def _beyond(column: Any, place: Place, newest_first: bool = False) -> ColumnElement[bool]:
    key = tuple_(column, Task.id)
    here = tuple_(literal(place.moment, Timestamp()), literal(place.id, Identifier))
    beyond: ColumnElement[bool] = key < here if newest_first else key > here
    return beyond


_SUMMARIES = select(
    Task.id,
    Task.name,
    Task.agent_id,
    Task.status,
    Task.error_type,
    Task.created_at,
    Task.claimed_at,
    Task.finished_at,
    Task.log_count,
).where(Task.id.in_(bindparam("task_ids", expanding=True)), visible_tasks)


def summaries(caller: Caller, wanted: Sequence[Place]) -> list[AnyRow]:
    """What a list shows of the tasks at these places, in their order: nothing that is large."""
    ids = [place.id for place in wanted]
    with reading() as connection:
        found = connection.execute(_SUMMARIES, {"task_ids": ids, **caller.scope})
        rows = {row.id: row for row in found}
    return [rows[task_id] for task_id in ids if task_id in rows]


def counts(
    caller: Caller, selection: Selection, statuses: Sequence[str], most: int
) -> dict[str, int]:
    """How many tasks stand so, for each of `statuses`; `most` where there are more."""
    counted = {
        status: select(func.count()).select_from(
            select(Task.id)
            .where(*_conditions(caller, replace(selection, status=status)))
            .limit(most)
            .subquery()
        )
        for status in statuses
    }
    with reading() as connection:
        row = connection.execute(select(*(one.scalar_subquery() for one in counted.values())))
        return dict(zip(statuses, row.one(), strict=True))


def starts(
    caller: Caller, selection: Selection, moments: Sequence[str], statuses: Sequence[str]
) -> list[list[int]]:
    """For each of `statuses`: how many tasks were started from each of `moments` to the next."""
    fit = _conditions(caller, selection)
    # Each count is of a part of one index.
    counts = [
        select(func.count())
        .where(*fit, Task.status == status)
        .where(Task.created_at >= since, Task.created_at < until)
        .scalar_subquery()
        for status in statuses
        for since, until in pairwise(moments)
    ]
    with reading() as connection:
        row = connection.execute(select(*counts)).one()
    places = len(moments) - 1
    return [list(row[start : start + places]) for start in range(0, len(row), places)]


def _task_size(row: TaskRow, large: Sequence[str]) -> int:
    return sum(len(getattr(row, name)) for name in large) + 500


def _next_limit(count: int, size: int, most: int) -> int:
    """How many rows to read next, where `count` rows came to `size` bytes."""
    return max(1, min(most, 4 * count, count * PAGE_BYTES // max(size, 1)))


# --- logs --------------------------------------------------------------------------------

_CHUNKS = (
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(
        LogChunk.log_id == bindparam("log_id"),
        LogChunk.last > bindparam("after"),
        LogChunk.last - LogChunk.count < bindparam("until", type_=BigInteger),
    )
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
_LAST_CHUNKS = (
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last <= bindparam("until"))
    .order_by(LogChunk.last.desc())
    .limit(bindparam("limit"))
)
_NEXT_CHUNKS = (
    select(LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id == bindparam("log_id"), LogChunk.last > bindparam("after"))
    .order_by(LogChunk.last)
    .limit(bindparam("limit"))
)
_CHUNKS_OF_SEVERAL = (
    select(LogChunk.log_id, LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id.in_(bindparam("log_ids", expanding=True)))
    .order_by(LogChunk.log_id, LogChunk.last)
)


def log_pages(row: TaskRow, after: int = 0, count: int | None = None) -> Iterator[list[str]]:
    """The lines that `row` knows of, in pages of about a megabyte, each a read of its own.

    All that are there, or at most `count` of those after number `after`. Raises LogGone when
    some have been dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = row.log_count if count is None else min(row.log_count, after + count)
    if until < row.log_count:
        # To look for where these end would lead through all that follows.
        while after < until:
            yield (lines := lines_after(row, after, until - after))
            after += len(lines)
        return
    limit = 4096 if row.log_bytes <= PAGE_BYTES else 16
    while after < until:
        with reading() as connection:
            chunks = connection.execute(
                _CHUNKS,
                {"log_id": row.log_id, "after": after, "until": until, "limit": limit},
            ).all()
        lines = _lines(chunks, after, until)
        yield lines
        after += len(lines)
        limit = _next_limit(len(chunks), sum(len(chunk.text) for chunk in chunks), 4096)


def lines_after(row: TaskRow, after: int, most: int) -> list[str]:
    """The lines that follow number `after`: `most` of them, or fewer past about a megabyte.

    Raises LogGone when some have been dropped meanwhile.
    """
    after = max(after, row.first_log - 1)
    until = min(after + most, row.log_count)
    if after >= until:
        return []
    chunks, size = [], 0
    with reading() as connection:
        place = {"log_id": row.log_id, "after": after, "limit": until - after}
        for chunk in connection.execute(_NEXT_CHUNKS, place):
            chunks.append(chunk)
            size += len(chunk.text)
            if chunk.last >= until or size >= PAGE_BYTES:
                break
    return _lines(chunks, after, until)


def small_logs(rows: Sequence[TaskRow]) -> dict[int, list[str]]:
    """The lines of those of `rows` whose logs are small, by `log_id`, in one read."""
    wanted = [row for row in rows if is_small(row) and row.first_log <= row.log_count]
    if not wanted:
        return {}
    with reading() as connection:
        chunks = connection.execute(
            _CHUNKS_OF_SEVERAL, {"log_ids": [row.log_id for row in wanted]}
        ).all()
    of_log = {log_id: list(some) for log_id, some in groupby(chunks, lambda chunk: chunk.log_id)}
    return {
        row.log_id: _lines(of_log.get(row.log_id, []), row.first_log - 1, row.log_count)
        for row in wanted
    }


def is_small(row: TaskRow) -> bool:
    return bool(row.log_bytes <= SMALL_LOG)


def last_lines(row: TaskRow, most_lines: int, most_bytes: int) -> list[str]:
    """The end of a log: at most `most_lines` lines and `most_bytes` bytes of UTF-8."""
    lines: list[str] = []
    until, limit = row.log_count, 8
    while until >= row.first_log and len(lines) < most_lines:
        with reading() as connection:
            chunks = connection.execute(
                _LAST_CHUNKS, {"log_id": row.log_id, "until": until, "limit": limit}
            ).all()
        if not chunks:
            raise LogGone()
        before = [line for chunk in reversed(chunks) for line in chunk.text.split("\n")]
        lines = before + lines
        until -= len(before)
        size = sum(len(chunk.text) for chunk in chunks)
        if size > most_bytes:
            break
        limit = _next_limit(len(chunks), size, most_lines)
    return _cut(lines[-most_lines:], most_bytes)


def _cut(lines: list[str], most_bytes: int) -> list[str]:
    """The longest end of `lines` that has at most `most_bytes` bytes."""
    kept, size = 0, 0
    for line in reversed(lines):
        size += len(line.encode())
        if size > most_bytes:
            break
        kept += 1
    return lines[len(lines) - kept :]


def _lines(chunks: Sequence[AnyRow], after: int, until: int) -> list[str]:
    """Lines `after + 1` to at most `until` out of consecutive chunks."""
    if not chunks or chunks[0].last - chunks[0].count > after:
        raise LogGone()
    lines = [line for chunk in chunks for line in chunk.text.split("\n")]
    first = chunks[0].last - chunks[0].count + 1
    if first + len(lines) - 1 != chunks[-1].last:
        raise LogGone()
    return lines[after + 1 - first : until + 1 - first]


# --- deliveries --------------------------------------------------------------------------

# Spelled out, as the indexes of these rows have it.
is_pending: ColumnElement[bool] = Delivery.state == literal_column(f"'{PENDING}'")
# While a lease holds, somebody is at it and nobody else posts; an attempt is much shorter.
LEASE_SECONDS = 60.0
# One that would hold for longer than any was given (and a moment, since PostgreSQL rounds)
# was given before the clock was set back.
is_unleased: ColumnElement[bool] = or_(
    Delivery.leased_until.is_(None),
    Delivery.leased_until <= database_now(),
    Delivery.leased_until > database_now(LEASE_SECONDS + 1),
)
is_due: ColumnElement[bool] = and_(
    is_pending, Delivery.next_attempt_at <= database_now(), is_unleased
)

_DELIVERIES = (
    select(*DELIVERY_COLUMNS, User.name.label("user_name"))
    .join(Task, Task.id == Delivery.task_id)
    .join(User, User.id == Task.user_id)
    .order_by(Delivery.created_at.desc(), Delivery.id.desc())
)
_OF_TASK = _DELIVERIES.where(Task.id == bindparam("task_id", type_=Identifier), visible_tasks)
_BY_ID = _DELIVERIES.where(Delivery.id == bindparam("delivery_id", type_=Identifier))
_ATTEMPTS = (
    select(*ATTEMPT_COLUMNS)
    .where(Attempt.delivery_id.in_(bindparam("delivery_ids", expanding=True)))
    .order_by(Attempt.delivery_id, Attempt.id)
)
_STATES = (
    select(Delivery.task_id, Delivery.state)
    .where(Delivery.task_id.in_(bindparam("task_ids", expanding=True)))
    .order_by(Delivery.created_at, Delivery.id)
)


def deliveries_of_task(caller: Caller, task_id: str) -> list[Any]:
    """A task's deliveries, newest first, each with its `attempts`, oldest first."""
    with reading() as connection:
        rows = connection.execute(_OF_TASK, {"task_id": task_id, **caller.scope}).all()
    return _with_attempts(rows)


def delivery(delivery_id: str) -> Any | None:
    """One delivery, whoever it belongs to, with its `attempts`, oldest first."""
    with reading() as connection:
        rows = connection.execute(_BY_ID, {"delivery_id": delivery_id}).all()
    return next(iter(_with_attempts(rows)), None)


def all_deliveries(state: str | None, limit: int) -> list[Any]:
    """The newest deliveries of all users, as `delivery` has them, with their `user_name`."""
    statement = _DELIVERIES.limit(limit)
    if state is not None:
        statement = statement.where(Delivery.state == state)
    with reading() as connection:
        rows = connection.execute(statement).all()
    return _with_attempts(rows)


def _with_attempts(rows: Sequence[AnyRow]) -> list[Any]:
    with reading() as connection:
        found = connection.execute(_ATTEMPTS, {"delivery_ids": [row.id for row in rows]}).all()
    made = {key: list(some) for key, some in groupby(found, lambda each: each.delivery_id)}
    return [SimpleNamespace(**row._asdict(), attempts=made.get(row.id, [])) for row in rows]


def delivery_states(rows: Sequence[AnyRow]) -> dict[str, str]:
    """Task id -> the state of its newest delivery, for those of `rows` that have one."""
    with reading() as connection:
        found = connection.execute(_STATES, {"task_ids": [row.id for row in rows]})
        return {row.task_id: row.state for row in found}


# --- agents, users, keys -----------------------------------------------------------------

_AGENTS = select(*AGENT_COLUMNS).where(visible_agents).order_by(Agent.id)
_AGENT = select(*AGENT_COLUMNS).where(visible_agents, Agent.id == bindparam("agent_id"))
_LAST_USED_AT = (
    select(func.max(Task.created_at))
    .where(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)
    .scalar_subquery()
    .label("last_used_at")
)
_AGENTS_BY_USE = (
    select(*AGENT_COLUMNS, _LAST_USED_AT)
    .where(visible_agents)
    .order_by(_LAST_USED_AT.desc().nulls_last(), Agent.id)
    .offset(bindparam("start"))
    .limit(bindparam("count"))
)
_AGENTS_OF = select(*AGENT_COLUMNS).where(
    Agent.user_id == bindparam("user_id"), Agent.id.in_(bindparam("agent_ids", expanding=True))
)
_USER = select(User.id, User.name, User.created_at).where(User.id == bindparam("user_id"))
_USERS = select(User.id, User.name, User.created_at).order_by(User.name)
_COUNTS_NOW = (
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now", type_=Timestamp())),
)
_KEY = select(*KEY_COLUMNS).where(ApiKey.digest == bindparam("digest"), *_COUNTS_NOW)
_KEY_OF_SESSION = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.id == bindparam("key_id"), *_COUNTS_NOW)
)
_KEY_BY_ID = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id"))
_KEYS_OF_USER = (
    select(*KEY_COLUMNS)
    .where(ApiKey.user_id == bindparam("user_id"))
    .order_by(ApiKey.created_at, ApiKey.id)
)
_CURRENT_SECRET = select(CallbackSecret.secret, CallbackSecret.created_at).where(
    CallbackSecret.user_id == bindparam("user_id"), CallbackSecret.replaced_at.is_(None)
)
_KEYS = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .order_by(User.name, ApiKey.created_at, ApiKey.id)
)
_SECRETS = (
    select(CallbackSecret.secret)
    .where(
        CallbackSecret.user_id == bindparam("user_id"),
        or_(
            CallbackSecret.replaced_at.is_(None),
            CallbackSecret.replaced_at > bindparam("since", type_=Timestamp()),
        ),
    )
    .order_by(CallbackSecret.id.desc())
)


def agents(caller: Caller) -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_AGENTS, caller.scope).all()


def agent(caller: Caller, agent_id: str) -> AnyRow | None:
    with reading() as connection:
        return connection.execute(_AGENT, {"agent_id": agent_id, **caller.scope}).one_or_none()


def agents_by_use(caller: Caller, start: int, count: int) -> Sequence[AnyRow]:
    """Agents with the moment of their last task, `last_used_at`: newest first, unused ones last."""
    with reading() as connection:
        wanted = {"start": start, "count": count, **caller.scope}
        return connection.execute(_AGENTS_BY_USE, wanted).all()


def agents_by_id(user_id: str, agent_ids: Collection[str]) -> dict[str, AnyRow]:
    with reading() as connection:
        rows = connection.execute(_AGENTS_OF, {"user_id": user_id, "agent_ids": sorted(agent_ids)})
        return {row.id: row for row in rows}


def user(user_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_USER, {"user_id": user_id}).one()


def users() -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_USERS).all()


def valid_key(digest: str, now: str) -> AnyRow | None:
    """The key with this digest, if it is neither revoked nor expired."""
    with reading() as connection:
        return connection.execute(_KEY, {"digest": digest, "now": now}).one_or_none()


def valid_key_by_id(key_id: str, now: str) -> AnyRow | None:
    """The key with this id and its `user_name`, if it is neither revoked nor expired."""
    with reading() as connection:
        return connection.execute(_KEY_OF_SESSION, {"key_id": key_id, "now": now}).one_or_none()


def key(key_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_KEY_BY_ID, {"key_id": key_id}).one()


def all_keys() -> Sequence[AnyRow]:
    """All keys of all users, each with its `user_name`."""
    with reading() as connection:
        return connection.execute(_KEYS).all()


def keys_of_user(user_id: str) -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_KEYS_OF_USER, {"user_id": user_id}).all()


def current_callback_secret(user_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_CURRENT_SECRET, {"user_id": user_id}).one()


def callback_secrets(user_id: str, since: str) -> Sequence[str]:
    """The secrets that sign now, newest first: the current one and those replaced after `since`."""
    with reading() as connection:
        return connection.execute(_SECRETS, {"user_id": user_id, "since": since}).scalars().all()
