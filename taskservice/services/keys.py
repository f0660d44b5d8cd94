"""API keys: created and revoked; records when each was last used."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, and_, bindparam, func, insert, not_, or_, select, tuple_, update

from taskservice import auth
from taskservice.auth import KEY_IS_VALID, Caller, visible_keys
from taskservice.database import clock
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.models import Agent, ApiKey, User
from taskservice.database.transactions import reading, retry_on_conflict, transaction
from taskservice.database.types import AnyRow, Identifier, Timestamp, in_pages
from taskservice.errors import Problem, invalid, invalid_key, no_such_user, not_found
from taskservice.schemas.columns import KEY_COLUMNS
from taskservice.terms import LAST_USER_KEY, MAX_NAME

LOCK_USER = select(User.id).where(User.id == bindparam("user_id")).with_for_update()
_VALID_ID = select(ApiKey.id).where(ApiKey.id == bindparam("key_id"), *KEY_IS_VALID)
_USER_ID = select(User.id).where(User.name == bindparam("name"))
_AGENT = select(Agent.id).where(
    Agent.user_id == bindparam("user_id", type_=Identifier), Agent.id == bindparam("agent_id")
)
_KEY = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id", type_=Identifier))
_REVOKE = update(ApiKey).where(
    ApiKey.id == bindparam("of_key_id", type_=Identifier), ApiKey.revoked_at.is_(None)
)
_REVOKE_ALL = update(ApiKey).where(
    ApiKey.user_id == bindparam("of_user_id", type_=Identifier), ApiKey.revoked_at.is_(None)
)
_RECORD_USE = (
    update(ApiKey)
    .where(
        ApiKey.id == bindparam("of_key_id", type_=Identifier),
        # Another process may have stored a later use.
        or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("at")),
    )
    .values(last_used_at=bindparam("at"))
)


def add(user_name: str, name: str, agent_id: str | None, expires_at: str | None) -> Any:
    """Create a key for any user; with `agent_id` it is an agent key.

    Returns the key with its `text`, which is not stored. Raises 404 and 422.
    """
    check_name(name)
    with transaction() as connection:
        user_id = get_user_id(connection, user_name)
        return insert_key(connection, user_id, name, agent_id, expires_at)


@retry_on_conflict
def create(caller: Caller, fields: dict[str, Any], key_id: str | None = None) -> Any:
    """Create a key for the caller's user from what CreateKeySchema loaded.

    Returns the key with its `text`, which is not stored; None if there is a key with the id
    `key_id`. Raises 401 and 422.
    """
    expires_at = fields.get("expiresAt")
    if expires_at is not None and expires_at <= clock.now():
        raise invalid({"expiresAt": ["Must be in the future."]})
    with transaction() as connection:
        lock_user_of(connection, caller)
        if key_id and connection.execute(_KEY, {"key_id": key_id}).one_or_none():
            return None
        return insert_key(
            connection, caller.user_id, fields["name"], fields.get("agentId"), expires_at, key_id
        )


def revoke_any(key_id: str) -> AnyRow:
    """Revoke a key of any user; revoking it again changes nothing. Raises 404."""
    with transaction() as connection:
        _revoke(connection, _get_key(connection, key_id))
        return _get_key(connection, key_id)


def revoke_all(user_name: str) -> int:
    """Revoke all keys of a user; returns how many were not revoked before. Raises 404."""
    with transaction() as connection:
        user_id = get_user_id(connection, user_name)
        # The lock waits for keys that are being added.
        connection.execute(LOCK_USER, {"user_id": user_id})
        return revoke_keys_of(connection, user_id)


def revoke_keys_of(connection: Connection, user_id: str) -> int:
    """Revoke all keys of a user; returns how many were not revoked before."""
    revoked = _REVOKE_ALL.values(revoked_at=clock.now())
    return connection.execute(revoked, {"of_user_id": user_id}).rowcount


def revoke(caller: Caller, key_id: str) -> AnyRow:
    """Revoke a key of the caller's user. Raises 401, 404, and 409 for the last user key."""
    with transaction() as connection:
        # The lock keeps two requests from revoking the last two user keys.
        lock_user_of(connection, caller)
        own = {"key_id": key_id, **caller.scope}
        key = _require(connection.execute(_KEY.where(visible_keys), own).one_or_none())
        if key.agent_id is None and _other_user_keys(connection, key) == 0:
            raise Problem(
                409, "The last user key can only be revoked on the server", code=LAST_USER_KEY
            )
        _revoke(connection, key)
        return _get_key(connection, key_id)


def lock_user_of(connection: Connection, caller: Caller) -> None:
    """Let no other transaction change the user's keys and secrets until this one ends.

    Raises 401 if the caller's key was revoked since its request was authenticated: what it creates
    now would outlive the revocation.
    """
    connection.execute(LOCK_USER, {"user_id": caller.user_id})
    own = {"key_id": caller.key_id, "now": clock.now()}
    if connection.scalar(_VALID_ID, own) is None:
        raise invalid_key()


def record_uses(uses: dict[str, str]) -> None:
    """Store when keys were last used: key id -> moment."""
    if uses:
        with transaction() as connection:
            connection.execute(
                _RECORD_USE, [{"of_key_id": key, "at": moment} for key, moment in uses.items()]
            )


def get_user_id(connection: Connection, name: str) -> str:
    """The id of the user with this name. Raises 404."""
    user_id: str | None = connection.scalar(_USER_ID, {"name": name})
    if user_id is None:
        raise no_such_user(name)
    return user_id


def _get_key(connection: Connection, key_id: str) -> AnyRow:
    return _require(connection.execute(_KEY, {"key_id": key_id}).one_or_none())


def _require(key: AnyRow | None) -> AnyRow:
    if key is None:
        raise not_found("key")
    return key


def _other_user_keys(connection: Connection, key: AnyRow) -> int:
    """How many other keys of the same user can still do what a user key can."""
    valid = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > clock.now())
    others = select(func.count()).where(
        ApiKey.user_id == key.user_id,
        ApiKey.id != key.id,
        ApiKey.agent_id.is_(None),
        ApiKey.revoked_at.is_(None),
        valid,
    )
    return connection.scalar(others) or 0


def _revoke(connection: Connection, key: AnyRow) -> None:
    connection.execute(_REVOKE.values(revoked_at=clock.now()), {"of_key_id": key.id})


def insert_key(
    connection: Connection,
    user_id: str,
    name: str,
    agent_id: str | None,
    expires_at: str | None,
    key_id: str | None = None,
) -> Any:
    """Insert a key; returns it with its `text`. Raises 422 for an unknown agent."""
    if agent_id is not None:
        _require_agent(connection, user_id, agent_id)
    text = auth.new(for_agent=agent_id is not None)
    key = {
        "id": key_id or clock.new_id(),
        "user_id": user_id,
        "agent_id": agent_id,
        "name": name,
        "digest": auth.digest(text),
        "hint": auth.hint(text),
        "created_at": clock.now(),
        "expires_at": expires_at,
        "last_used_at": None,
        "revoked_at": None,
    }
    connection.execute(insert(ApiKey), key)
    return SimpleNamespace(**key, text=text)


def _require_agent(connection: Connection, user_id: str, agent_id: str) -> None:
    agent = {"user_id": user_id, "agent_id": agent_id}
    if connection.scalar(_AGENT, agent) is None:
        raise invalid({"agentId": ["No such agent; register it first."]})


def check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or "\0" in name:
        raise invalid({"name": [f"Must have 1 to {MAX_NAME} characters."]})


# Reads of API keys.

# How many keys of a list one read takes.
KEYS_PER_READ = 1_000
_ONE_KEY = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id"), visible_keys)
_KEYS_OF_USER = select(*KEY_COLUMNS).where(visible_keys).order_by(ApiKey.created_at, ApiKey.id)
_PAGE = _KEYS_OF_USER.where(
    tuple_(ApiKey.created_at, ApiKey.id)
    > tuple_(bindparam("after", type_=Timestamp()), bindparam("after_id", type_=Identifier))
).limit(bindparam("count"))
_NEWEST = (
    select(*KEY_COLUMNS)
    .where(visible_keys)
    .order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
    .limit(bindparam("count"))
)
_NEWEST_VALID = _NEWEST.where(*KEY_IS_VALID)
_NEWEST_INVALID = _NEWEST.where(not_(and_(*KEY_IS_VALID)))
_KEYS = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .order_by(User.name, ApiKey.created_at, ApiKey.id)
)


def get(caller: Caller, key_id: str) -> AnyRow:
    """A key of the caller's user. Raises 404."""
    with reading() as connection:
        key = connection.execute(_ONE_KEY, {"key_id": key_id, **caller.scope}).one_or_none()
    if key is None:
        raise not_found("key")
    return key


def list_all() -> Sequence[AnyRow]:
    """All keys of all users, each with its `user_name`."""
    with reading() as connection:
        return connection.execute(_KEYS).all()


def list_of_user(caller: Caller) -> Iterator[Sequence[AnyRow]]:
    """All keys of the caller's user, also those that are revoked or expired, some at a time."""

    def read(last: AnyRow | None, count: int) -> Sequence[AnyRow]:
        after, after_id = (last.created_at, last.id) if last else (EARLIEST, LOWEST_ID)
        wanted = {"after": after, "after_id": after_id, "count": count, **caller.scope}
        with reading() as connection:
            return connection.execute(_PAGE, wanted).all()

    return in_pages(read, KEYS_PER_READ)


def newest(caller: Caller, count: int, *, are_valid: bool) -> Sequence[AnyRow]:
    """The newest keys of the caller's user among those that are valid, or among all others."""
    wanted = {"count": count, "now": clock.now(), **caller.scope}
    with reading() as connection:
        return connection.execute(_NEWEST_VALID if are_valid else _NEWEST_INVALID, wanted).all()
