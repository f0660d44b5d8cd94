"""Users and their API keys: made and revoked."""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from taskservice import api_key, stamps
from taskservice.db import transaction
from taskservice.models import Agent, ApiKey, CallbackSecret, Identifier, User
from taskservice.problems import Problem, not_found, unfit
from taskservice.schemas import MAX_NAME
from taskservice.webhooks import signing

FIRST_KEY_NAME = "first"

_USER_ID = select(User.id).where(User.name == bindparam("name"))
_AGENT = select(Agent.id).where(
    Agent.user_id == bindparam("user_id", type_=Identifier), Agent.id == bindparam("agent_id")
)
_REVOKE = (
    update(ApiKey)
    .where(ApiKey.id == bindparam("key_id", type_=Identifier), ApiKey.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only moment at which its text is known."""

    id: str
    text: str


def add_user(name: str) -> NewKey:
    """Add a user with a first user key and a callback secret. Raises 409 and 422."""
    _check_name(name)
    now = stamps.now()
    user = {"id": stamps.new_id(), "name": name, "created_at": now}
    secret = {
        "id": stamps.new_id(),
        "user_id": user["id"],
        "secret": signing.new_secret(),
        "created_at": now,
    }
    try:
        with transaction() as connection:
            connection.execute(insert(User), user)
            connection.execute(insert(CallbackSecret), secret)
            return _insert_key(connection, user["id"], FIRST_KEY_NAME, None, None)
    except IntegrityError:
        raise Problem(409, f"There is a user {name} already") from None


def add_key(user_name: str, name: str, agent_id: str | None, expires_at: str | None) -> NewKey:
    """Add a key to a user, narrowed to one agent if that is given. Raises 404 and 422."""
    _check_name(name)
    with transaction() as connection:
        user_id = connection.scalar(_USER_ID, {"name": user_name})
        if user_id is None:
            raise Problem(404, f"There is no user {user_name}")
        agent = {"user_id": user_id, "agent_id": agent_id}
        if agent_id is not None and connection.scalar(_AGENT, agent) is None:
            raise unfit({"agentId": ["There is no such agent; register it first."]})
        return _insert_key(connection, user_id, name, agent_id, expires_at)


def revoke_key(key_id: str) -> None:
    """Revoke a key whoever it belongs to, from the next request on; again changes nothing."""
    with transaction() as connection:
        known = connection.scalar(select(ApiKey.id).where(ApiKey.id == key_id))
        if known is None:
            raise not_found("Key")
        connection.execute(_REVOKE, {"key_id": key_id, "now": stamps.now()})


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME or "\0" in name:
        raise unfit({"name": [f"Must have 1 to {MAX_NAME} characters."]})


def _insert_key(
    connection: Connection, user_id: str, name: str, agent_id: str | None, expires_at: str | None
) -> NewKey:
    key = NewKey(stamps.new_id(), api_key.new(for_agent=agent_id is not None))
    connection.execute(
        insert(ApiKey),
        {
            "id": key.id,
            "user_id": user_id,
            "agent_id": agent_id,
            "name": name,
            "digest": api_key.digest(key.text),
            "hint": api_key.hint(key.text),
            "created_at": stamps.now(),
            "expires_at": expires_at,
        },
    )
    return key
