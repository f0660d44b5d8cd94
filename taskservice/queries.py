"""Every read, as Core selects on the read engine."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Row, Select, bindparam, or_, select, tuple_

from taskservice.access import Caller, visible_agents, visible_tasks
from taskservice.db import Timestamp, reading
from taskservice.models import (
    Agent,
    ApiKey,
    CallbackSecret,
    Identifier,
    Log,
    LogChunk,
    Task,
    User,
)
from taskservice.problems import Problem

# The columns of a task that answers are made of, and `log_id`, where its lines are:
# a row of the database, or a namespace of the same names.
TaskRow: TypeAlias = Any
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyRow: TypeAlias = Row[*tuple[Any, ...]]

# About how much of the database a read takes into memory at once.
PAGE_BYTES = 1024 * 1024
# A log of at most so many bytes is read together with those of its neighbours.
SMALL_LOG = 64 * 1024

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


class LogGone(Problem):
    """Lines that a row promised are no longer there: they were dropped while being read."""

    def __init__(self) -> None:
        super().__init__(503, "The log was dropped while it was read", headers={"Retry-After": "1"})


# --- tasks -------------------------------------------------------------------------------

tasks_with_log: AnySelect = select(*TASK_COLUMNS, Log.id.label("log_id")).outerjoin(
    Log, Log.task_id == Task.id
)
_TASK = tasks_with_log.where(Task.id == bindparam("task_id"), visible_tasks)
_TASK_BY_ID = tasks_with_log.where(Task.id == bindparam("task_id"))


def task(caller: Caller, task_id: str) -> TaskRow | None:
    with reading() as connection:
        return connection.execute(_TASK, {"task_id": task_id, **caller.scope}).one_or_none()


def task_by_id(task_id: str) -> TaskRow | None:
    """A task whoever it belongs to: for the service itself, never for a caller."""
    with reading() as connection:
        return connection.execute(_TASK_BY_ID, {"task_id": task_id}).one_or_none()


def task_pages(caller: Caller) -> Iterator[list[TaskRow]]:
    """All tasks that the caller may see, newest first, in pages of bounded size.

    Each page is a read of its own, so that no reader, however slow, holds a transaction.
    """
    statement = tasks_with_log.where(Task.user_id == caller.user_id)
    if caller.agent_id is not None:
        statement = statement.where(Task.agent_id == caller.agent_id)
    statement = statement.order_by(Task.created_at.desc(), Task.id.desc())
    limit = 32
    page = _task_page(statement.limit(limit))
    while page:
        yield page
        limit = _next_limit(len(page), sum(map(_task_size, page)), 256)
        place = tuple_(_moment(page[-1].created_at), _identifier(page[-1].id))
        key = tuple_(Task.created_at, Task.id)
        page = _task_page(statement.where(key < place).limit(limit))


def _moment(value: str) -> Any:
    return bindparam(None, value, type_=Timestamp(), unique=True)


def _identifier(value: str) -> Any:
    return bindparam(None, value, type_=Identifier, unique=True)


def _task_page(statement: AnySelect) -> list[TaskRow]:
    page, size = [], 0
    with reading() as connection:
        for row in connection.execute(statement):
            page.append(row)
            size += _task_size(row)
            if size > PAGE_BYTES:
                break
    return page


def _task_size(row: TaskRow) -> int:
    return len(row.input) + len(row.output) + 500


def _next_limit(count: int, size: int, most: int) -> int:
    """How many rows to read next, where `count` rows came to `size` bytes."""
    return max(8, min(most, 4 * count, count * PAGE_BYTES // max(size, 1)))


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
_CHUNKS_OF_SEVERAL = (
    select(LogChunk.log_id, LogChunk.last, LogChunk.count, LogChunk.text)
    .where(LogChunk.log_id.in_(bindparam("log_ids", expanding=True)))
    .order_by(LogChunk.log_id, LogChunk.last)
)


def log_pages(row: TaskRow) -> Iterator[list[str]]:
    """The lines that `row` knows of, in pages of about a megabyte, each a read of its own.

    Raises LogGone when some have been dropped meanwhile.
    """
    after, until = row.first_log - 1, row.log_count
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


# --- agents, users, keys -----------------------------------------------------------------

_AGENTS = select(*AGENT_COLUMNS).where(visible_agents).order_by(Agent.id)
_AGENT = select(*AGENT_COLUMNS).where(visible_agents, Agent.id == bindparam("agent_id"))
_AGENTS_OF = select(*AGENT_COLUMNS).where(
    Agent.user_id == bindparam("user_id"), Agent.id.in_(bindparam("agent_ids", expanding=True))
)
_USER = select(User.id, User.name, User.created_at).where(User.id == bindparam("user_id"))
_USERS = select(User.id, User.name, User.created_at).order_by(User.name)
_KEY = select(*KEY_COLUMNS).where(
    ApiKey.digest == bindparam("digest"),
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now", type_=Timestamp())),
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
