"""Adds and lists users, creates and revokes their API keys, and rotates their callback secrets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, and_, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from taskservice import auth
from taskservice.auth import KEY_IS_VALID, Caller, visible_keys
from taskservice.database import clock, transactions
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, ApiKey, CallbackSecret, User
from taskservice.database.rows import KeyRow, UserRow
from taskservice.database.transactions import read_all, reading, retry_on_conflict, transaction
from taskservice.database.types import AnyRow, has_prefix
from taskservice.error_codes import LAST_USER_KEY
from taskservice.errors import Problem, invalid, invalid_key, require
from taskservice.schemas.users import KEY_COLUMNS, USER_COLUMNS
from taskservice.services.agents import tool_since
from taskservice.services.events import this_agent
from taskservice.terms import FULL, MAX_NAME, key_hint
from taskservice.webhooks import signing

_USERS = select(*USER_COLUMNS)
_USER = _USERS.where(User.id == bindparam("user_id"))


def add(name: str) -> Any:
    """Add a user with a callback secret and a key; returns the key with its `text`.

    Raises 409 and 422.
    """
    _check_name(name)
    user = {"id": clock.new_id(), "name": name, "created_at": clock.now()}
    try:
        with transaction() as connection:
            connection.execute(insert(User), user)
            _insert_secret(connection, user["id"], user["created_at"])
            return _insert_key(connection, user["id"], "first")
    except IntegrityError:
        raise Problem(409, f"A user {name} already exists") from None


def get(user_id: str) -> UserRow:
    with reading() as connection:
        return cast(UserRow, connection.execute(_USER, {"user_id": user_id}).one())


def list_all() -> Sequence[UserRow]:
    return read_all(_USERS.order_by(User.name))


def get_id(connection: Connection, name: str) -> str:
    """The ID of the user with this name. Raises 404."""
    user_id = connection.scalar(select(User.id).where(User.name == name))
    if user_id is None:
        raise Problem(404, f"No such user: {name}")
    return user_id


def lock(connection: Connection, user_id: str) -> None:
    """Lock a user, so that only this transaction can change the user's keys and secrets."""
    connection.execute(select(User.id).where(User.id == user_id).with_for_update())


def lock_user_of(connection: Connection, caller: Caller) -> None:
    """Lock the caller's user. Raises 401 if the caller's key is no longer valid."""
    lock(connection, caller.user_id)
    # The key is checked after the lock: it may have been revoked during the wait for the lock.
    is_valid = select(ApiKey.id).where(ApiKey.id == caller.key_id, *KEY_IS_VALID)
    if connection.scalar(is_valid, {"now": clock.now()}) is None:
        raise invalid_key()


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or "\0" in name:
        raise invalid({"name": [f"Must have 1 to {MAX_NAME} characters."]})


# API keys.

KEYS_PER_READ = 1_000
_KEYS = select(*KEY_COLUMNS)
_USER_KEYS = select(ApiKey.id).where(
    visible_keys, ApiKey.agent_id.is_(None), ApiKey.access == FULL, ~ApiKey.login
)


def add_key(
    user_name: str,
    name: str,
    agent_id: str | None,
    expires_at: str | None,
    access: str = FULL,
    *,
    login: bool = False,
) -> Any:
    """Create a key for any user; returns the key with its `text`. Raises 404, 409 and 422."""
    _check_name(name)
    if login and (name != name.strip() or "," in name):
        raise invalid({"name": ["Must not contain a comma, or begin or end with a space."]})
    try:
        with transaction() as connection:
            user_id = get_id(connection, user_name)
            options = {"expires_at": expires_at, "login": login}
            return _insert_key(connection, user_id, name, agent_id, access, **options)
    except IntegrityError:
        raise Problem(409, f"Another key already signs in {name}") from None


@retry_on_conflict
def create_key(caller: Caller, fields: dict[str, Any], key_id: str | None = None) -> Any:
    """Create a key; returns the key with its `text`, or None if the ID `key_id` already exists.

    Raises 401 and 422.
    """
    expires_at = fields.get("expiresAt")
    if expires_at is not None and expires_at <= clock.now():
        raise invalid({"expiresAt": ["Must be in the future."]})
    with transaction() as connection:
        lock_user_of(connection, caller)
        if key_id and connection.scalar(select(ApiKey.id).where(ApiKey.id == key_id)):
            return None
        return _insert_key(
            connection,
            caller.user_id,
            fields["name"],
            fields.get("agentId"),
            fields.get("access") or FULL,
            expires_at=expires_at,
            id=key_id or clock.new_id(),
        )


def revoke_key(caller: Caller, key_id: str) -> KeyRow:
    """Revoke a key of the caller's user. Raises 401, 404, and 409 for the last user key."""
    with transaction() as connection:
        # The lock prevents two requests from revoking the last two user keys.
        lock_user_of(connection, caller)
        _key(connection, key_id, caller)
        values = {**caller.scope, "now": clock.now()}
        others = _USER_KEYS.where(ApiKey.id != key_id, *KEY_IS_VALID).limit(1)
        is_user_key = connection.scalar(_USER_KEYS.where(ApiKey.id == key_id), values) is not None
        if is_user_key and connection.scalar(others, values) is None:
            detail = "The last user key can only be revoked on the server"
            raise Problem(409, detail, code=LAST_USER_KEY)
        _revoke(connection, ApiKey.id == key_id)
        return _key(connection, key_id)


def matching_key_ids(prefix: str) -> Sequence[str]:
    """At most two key IDs that begin with `prefix`, among the keys of all users."""
    with reading() as connection:
        matching = select(ApiKey.id).where(has_prefix(ApiKey.id, prefix)).limit(2)
        return connection.scalars(matching).all()


def revoke_any_key(key_id: str) -> KeyRow:
    """Revoke a key of any user; revoking it again changes nothing. Raises 404."""
    with transaction() as connection:
        _revoke(connection, ApiKey.id == key_id)
        return _key(connection, key_id)


def revoke_keys(user_name: str) -> int:
    """Revoke all keys of a user; returns the number of newly revoked keys. Raises 404."""
    with transaction() as connection:
        user_id = get_id(connection, user_name)
        # The lock waits for transactions that are adding keys.
        lock(connection, user_id)
        return _revoke(connection, ApiKey.user_id == user_id)


def _revoke(connection: Connection, which: ColumnElement[bool]) -> int:
    valid = update(ApiKey).where(which, ApiKey.revoked_at.is_(None))
    return connection.execute(valid.values(revoked_at=clock.now())).rowcount


def record_last_uses() -> None:
    """Store the minute in which this process last saw each key, and each agent's workers."""
    keys = auth.take_minutes(auth.key_uses)
    of_keys = [{"of_id": key, "at": time} for key, time in keys.items()]
    _store_last_uses(of_keys, ApiKey.last_used_at, ApiKey.id == bindparam("of_id"))
    workers = auth.take_minutes(auth.worker_claims)
    # Update the agents in the same order as other transactions; otherwise, two transactions could
    # deadlock.
    of_workers = [
        {"of_user_id": user_id, "of_agent_id": agent_id, "at": time}
        for (user_id, agent_id), time in sorted(workers.items())
    ]
    # When a worker asks for an agent's tasks, the agent may become an MCP tool.
    since = {"tool_since": tool_since(clock.now())}
    _store_last_uses(of_workers, Agent.worker_seen_at, and_(*this_agent), since)


def _store_last_uses(
    uses: list[dict[str, str]],
    column: Any,
    is_this: ColumnElement[bool],
    values: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    # Another process may have stored a later time.
    is_later = column.is_(None) | (column < bindparam("at"))
    used = update(column.class_).where(is_this, is_later)
    used = used.values({**values, column.key: bindparam("at")})
    if uses:
        with transaction() as connection:
            connection.execute(used, uses)


def get_key(caller: Caller, key_id: str) -> KeyRow:
    """A key of the caller's user. Raises 404."""
    with reading() as connection:
        return _key(connection, key_id, caller)


def list_keys() -> Sequence[KeyRow]:
    """All keys of all users, each with its `user_name`."""
    keys = _KEYS.add_columns(User.name.label("user_name")).join(User, User.id == ApiKey.user_id)
    return read_all(keys.order_by(User.name, ApiKey.created_at, ApiKey.id))


def keys_of_user(caller: Caller) -> Iterator[Sequence[KeyRow]]:
    """All keys of the caller's user, including revoked and expired keys, in batches."""
    keys = _KEYS.where(visible_keys)
    return transactions.in_pages(keys, (ApiKey.created_at, ApiKey.id), KEYS_PER_READ, caller.scope)


def newest_keys(caller: Caller, count: int, *, are_valid: bool) -> Sequence[KeyRow]:
    """The newest valid keys of the caller's user, or the newest revoked and expired keys."""
    is_valid = and_(*KEY_IS_VALID)
    keys = _KEYS.where(visible_keys, is_valid if are_valid else ~is_valid)
    newest_first = keys.order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
    return read_all(newest_first.limit(count), now=clock.now(), **caller.scope)


def _key(connection: Connection, key_id: str, caller: Caller | None = None) -> KeyRow:
    key = _KEYS.where(ApiKey.id == key_id)
    if caller is not None:
        key = key.where(visible_keys).params(caller.scope)
    return cast(KeyRow, require(connection.execute(key).one_or_none(), "key"))


def _insert_key(
    connection: Connection,
    user_id: str,
    name: str,
    agent_id: str | None = None,
    access: str = FULL,
    **columns: Any,
) -> Any:
    """Insert a key; returns it with its `text`. Raises 422 for an unknown agent."""
    agent = select(Agent.id).where(Agent.user_id == user_id, Agent.id == agent_id)
    if agent_id is not None and connection.scalar(agent) is None:
        raise invalid({"agentId": ["No such agent; register it first."]})
    text = auth.new(for_agent=agent_id is not None, access=access)
    of_user = {"id": clock.new_id(), "user_id": user_id, "created_at": clock.now()}
    secret = {"digest": auth.digest(text), "hint": "" if columns.get("login") else key_hint(text)}
    key = {**of_user, "name": name, "agent_id": agent_id, "access": access, **secret, **columns}
    row = connection.execute(insert(ApiKey).returning(*KEY_COLUMNS), key).one()
    return SimpleNamespace(**row._asdict(), text=text)


# Callback secrets.

# A replaced secret remains in use for this many seconds, so that receivers can switch to the new
# secret.
OVERLAP_SECONDS = 86_400.0
# The maximum number of secrets with which a webhook is signed. Each secret adds 48 bytes to a
# header, and receivers accept headers of a few KiB.
MAX_SIGNING = 10


def rotate(caller: Caller) -> Any:
    """Create a callback secret; webhooks are also signed with the replaced secret for 24 hours.

    Raises 401 and 429.
    """
    of_user = CallbackSecret.user_id == caller.user_id
    with transaction() as connection:
        lock_user_of(connection, caller)
        since = clock.now(-OVERLAP_SECONDS)
        replaced_at = CallbackSecret.replaced_at
        recent = select(replaced_at).where(of_user, replaced_at > since).order_by(replaced_at)
        replaced = connection.scalars(recent).all()
        if len(replaced) >= MAX_SIGNING - 1:
            wait = math.ceil(clock.seconds_between(since, str(replaced[0])))
            raise Problem(
                429,
                f"{len(replaced)} replaced secrets are still within their 24-hour overlap; "
                f"the next rotation is possible in {wait} s",
                headers={"Retry-After": str(wait)},
            )
        now = clock.now()
        current = update(CallbackSecret).where(of_user, replaced_at.is_(None))
        if connection.execute(current.values(replaced_at=now)).rowcount == 0:
            # The user is being deleted, and a new secret would let webhooks be sent again.
            raise invalid_key()
        return _insert_secret(connection, caller.user_id, now)


def _insert_secret(connection: Connection, user_id: str, now: str) -> Any:
    secret = {"id": clock.new_id(), "user_id": user_id, "created_at": now}
    secret["secret"] = signing.new_secret()
    connection.execute(insert(CallbackSecret), secret)
    return SimpleNamespace(**secret)


def current_callback_secret(user_id: str) -> AnyRow:
    """Raises 401 for a user who is being deleted."""
    current = select(CallbackSecret.secret, CallbackSecret.created_at).where(
        CallbackSecret.user_id == user_id, CallbackSecret.replaced_at.is_(None)
    )
    with reading() as connection:
        secret = connection.execute(current).one_or_none()
    if secret is None:
        raise invalid_key()
    return secret


_SIGNING = Statement[AnyRow](
    select(CallbackSecret.secret)
    .where(
        CallbackSecret.user_id == bindparam("user_id"),
        or_(CallbackSecret.replaced_at.is_(None), CallbackSecret.replaced_at > bindparam("since")),
    )
    .order_by(CallbackSecret.id.desc())
)


def callback_secrets(user_id: str, overlap: float = OVERLAP_SECONDS) -> list[str]:
    """The secrets with which webhooks are signed now, newest first.

    A replaced secret remains in use for `overlap` seconds.
    """
    since = clock.now(-overlap)
    return [row.secret for row in read_all(_SIGNING, user_id=user_id, since=since)]
