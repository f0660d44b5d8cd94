"""Reads of users, and of their agents, API keys and callback secrets."""

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, func, or_, select

from taskservice.access import Caller, visible_agents
from taskservice.db import Timestamp, reading
from taskservice.models import Agent, ApiKey, CallbackSecret, Task, User
from taskservice.queries.rows import AGENT_COLUMNS, KEY_COLUMNS, AnyRow

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


_USER = select(User.id, User.name, User.created_at).where(User.id == bindparam("user_id"))
_USERS = select(User.id, User.name, User.created_at).order_by(User.name)
# Neither revoked nor expired.
key_counts = (
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now", type_=Timestamp())),
)
_KEY = select(*KEY_COLUMNS).where(ApiKey.digest == bindparam("digest"), *key_counts)
_KEY_OF_SESSION = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.id == bindparam("key_id"), *key_counts)
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
