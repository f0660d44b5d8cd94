"""Users, their API keys and their callback secrets: made, replaced and revoked."""

from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from taskservice import api_key, stamps
from taskservice.access import Caller
from taskservice.db import transaction
from taskservice.error_codes import LAST_USER_KEY
from taskservice.models import Agent, ApiKey, CallbackSecret, Identifier, User
from taskservice.problems import Problem, not_found, unfit
from taskservice.queries import KEY_COLUMNS, AnyRow
from taskservice.schemas import MAX_NAME
from taskservice.webhooks import signing

FIRST_KEY_NAME = "first"

_USER_ID = select(User.id).where(User.name == bindparam("name"))
_LOCK_USER = select(User.id).where(User.id == bindparam("user_id")).with_for_update()
_AGENT = select(Agent.id).where(
    Agent.user_id == bindparam("user_id", type_=Identifier), Agent.id == bindparam("agent_id")
)
_KEY = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id", type_=Identifier))
_REVOKE = update(ApiKey).where(
    ApiKey.id == bindparam("of_key_id", type_=Identifier), ApiKey.revoked_at.is_(None)
)
_RECORD_USE = (
    update(ApiKey)
    .where(
        ApiKey.id == bindparam("of_key_id", type_=Identifier),
        # Another process may have seen it later.
        or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < bindparam("at")),
    )
    .values(last_used_at=bindparam("at"))
)
_REPLACE_SECRET = update(CallbackSecret).where(
    CallbackSecret.user_id == bindparam("of_user_id", type_=Identifier),
    CallbackSecret.replaced_at.is_(None),
)


# --- users -------------------------------------------------------------------------------


def add_user(name: str) -> Any:
    """Add a user with a callback secret and a first user key.

    Returns that key with its `text`, which is known at no other time. Raises 409 and 422.
    """
    _check_name(name)
    now = stamps.now()
    user = {"id": stamps.new_id(), "name": name, "created_at": now}
    try:
        with transaction() as connection:
            connection.execute(insert(User), user)
            _insert_secret(connection, user["id"], now)
            return _insert_key(connection, user["id"], FIRST_KEY_NAME, None, None)
    except IntegrityError:
        raise Problem(409, f"There is a user {name} already") from None


# --- keys --------------------------------------------------------------------------------


def add_key(user_name: str, name: str, agent_id: str | None, expires_at: str | None) -> Any:
    """Add a key to any user, narrowed to one agent if that is given; returned as by `add_user`.

    Raises 404 and 422.
    """
    _check_name(name)
    with transaction() as connection:
        user_id = connection.scalar(_USER_ID, {"name": user_name})
        if user_id is None:
            raise Problem(404, f"There is no user {user_name}")
        return _new_key(connection, user_id, name, agent_id, expires_at)


def create_key(caller: Caller, wishes: dict[str, Any]) -> Any:
    """Add a key to the caller's user by what CreateKeySchema loaded; returned as by `add_user`.

    Raises 422.
    """
    expires_at = wishes.get("expiresAt")
    if expires_at is not None and expires_at <= stamps.now():
        raise unfit({"expiresAt": ["Must lie ahead."]})
    with transaction() as connection:
        return _new_key(
            connection, caller.user_id, wishes["name"], wishes.get("agentId"), expires_at
        )


def revoke_key(key_id: str) -> AnyRow:
    """Revoke any user's key, from the next request on; again changes nothing. Raises 404."""
    with transaction() as connection:
        _revoke(connection, _known_key(connection, key_id))
        return _known_key(connection, key_id)


def revoke_own_key(caller: Caller, key_id: str) -> AnyRow:
    """Revoke a key of the caller's user. Raises 404, and 409 for the last user key."""
    with transaction() as connection:
        # Two requests may not each revoke the other's last resort.
        connection.execute(_LOCK_USER, {"user_id": caller.user_id})
        key = _known_key(connection, key_id)
        if key.user_id != caller.user_id:
            raise not_found("Key")
        if key.agent_id is None and _other_user_keys(connection, key) == 0:
            raise Problem(
                409, "This is the last user key; only the server can revoke it", code=LAST_USER_KEY
            )
        _revoke(connection, key)
        return _known_key(connection, key_id)


def record_uses(uses: dict[str, str]) -> None:
    """Write down when keys were last used: key id -> moment."""
    if uses:
        with transaction() as connection:
            connection.execute(
                _RECORD_USE, [{"of_key_id": key, "at": moment} for key, moment in uses.items()]
            )


def _known_key(connection: Connection, key_id: str) -> AnyRow:
    key = connection.execute(_KEY, {"key_id": key_id}).one_or_none()
    if key is None:
        raise not_found("Key")
    return key


def _other_user_keys(connection: Connection, key: AnyRow) -> int:
    """How many other keys of the same user can still do what a user key can."""
    valid = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > stamps.now())
    others = select(func.count()).where(
        ApiKey.user_id == key.user_id,
        ApiKey.id != key.id,
        ApiKey.agent_id.is_(None),
        ApiKey.revoked_at.is_(None),
        valid,
    )
    return connection.scalar(others) or 0


def _revoke(connection: Connection, key: AnyRow) -> None:
    connection.execute(_REVOKE.values(revoked_at=stamps.now()), {"of_key_id": key.id})


def _new_key(
    connection: Connection, user_id: str, name: str, agent_id: str | None, expires_at: str | None
) -> Any:
    agent = {"user_id": user_id, "agent_id": agent_id}
    if agent_id is not None and connection.scalar(_AGENT, agent) is None:
        raise unfit({"agentId": ["There is no such agent; register it first."]})
    return _insert_key(connection, user_id, name, agent_id, expires_at)


def _insert_key(
    connection: Connection, user_id: str, name: str, agent_id: str | None, expires_at: str | None
) -> Any:
    text = api_key.new(for_agent=agent_id is not None)
    key = {
        "id": stamps.new_id(),
        "user_id": user_id,
        "agent_id": agent_id,
        "name": name,
        "digest": api_key.digest(text),
        "hint": api_key.hint(text),
        "created_at": stamps.now(),
        "expires_at": expires_at,
        "last_used_at": None,
        "revoked_at": None,
    }
    connection.execute(insert(ApiKey), key)
    return SimpleNamespace(**key, text=text)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or "\0" in name:
        raise unfit({"name": [f"Must have 1 to {MAX_NAME} characters."]})


# --- callback secrets --------------------------------------------------------------------


def rotate_callback_secret(caller: Caller) -> Any:
    """Make a new callback secret for the caller's user; the replaced one signs for a day more."""
    with transaction() as connection:
        connection.execute(_LOCK_USER, {"user_id": caller.user_id})
        now = stamps.now()
        connection.execute(_REPLACE_SECRET.values(replaced_at=now), {"of_user_id": caller.user_id})
        return _insert_secret(connection, caller.user_id, now)


def _insert_secret(connection: Connection, user_id: str, now: str) -> Any:
    secret = {
        "id": stamps.new_id(),
        "user_id": user_id,
        "secret": signing.new_secret(),
        "created_at": now,
    }
    connection.execute(insert(CallbackSecret), secret)
    return SimpleNamespace(**secret)
