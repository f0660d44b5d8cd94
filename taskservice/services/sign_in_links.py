"""Single-use links that sign a person in."""

import secrets
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Connection, bindparam, delete, insert, select

from taskservice import auth
from taskservice.auth import KEY_BY_ID, KEY_IS_VALID, Caller
from taskservice.database import clock
from taskservice.database.models import ApiKey, SignInLink, User
from taskservice.database.rows import KeyRow
from taskservice.database.transactions import read_one, transaction
from taskservice.database.types import Timestamp
from taskservice.error_codes import READ_ONLY
from taskservice.errors import Problem, invalid, require
from taskservice.services import users
from taskservice.terms import FULL

VALID_SECONDS = 900.0
# The maximum number of valid links of a user; a further link makes the oldest link invalid.
MAX_VALID = 5

_is_valid = SignInLink.expires_at > bindparam("now", type_=Timestamp())
_LINK = (
    select(SignInLink.key_id, SignInLink.expires_at, ApiKey.name, User.name.label("user_name"))
    .join(ApiKey, ApiKey.id == SignInLink.key_id)
    .join(User, User.id == SignInLink.user_id)
    .where(SignInLink.digest == bindparam("digest"), _is_valid, *KEY_IS_VALID)
)
_USE = delete(SignInLink).where(SignInLink.digest == bindparam("digest"), _is_valid)
# The valid keys of a user, oldest first, without agent keys and without keys that sign people in
# through a proxy.
_KEYS = (
    select(ApiKey.id, ApiKey.access)
    .where(
        ApiKey.user_id == bindparam("user_id"),
        ApiKey.agent_id.is_(None),
        ~ApiKey.login,
        *KEY_IS_VALID,
    )
    .order_by(ApiKey.created_at, ApiKey.id)
)


def create(caller: Caller, key_name: str | None = None) -> Any:
    """Create a link with the rights of the caller's key, or of the newest key named `key_name`.

    Returns the link with its `token`. Raises 401, 403 and 422.
    """
    with transaction() as connection:
        users.lock_user_of(connection, caller)
        key_id = caller.key_id
        if key_name is not None:
            key_id = _key(connection, caller.user_id, key_name).id
        if caller.access != FULL and key_id != caller.key_id:
            raise Problem(403, "A read key can't create a link for another key", code=READ_ONLY)
        return _insert(connection, caller.user_id, key_id)


def create_for(user_name: str, key_name: str | None = None) -> Any:
    """Create a link for a user, by default with the rights of the user's oldest full key.

    Returns the link with its `token`. Raises 404 and 422.
    """
    with transaction() as connection:
        user_id = users.get_id(connection, user_name)
        users.lock(connection, user_id)
        return _insert(connection, user_id, _key(connection, user_id, key_name).id)


def _key(connection: Connection, user_id: str, name: str | None) -> KeyRow:
    keys = _KEYS.where(ApiKey.access == FULL if name is None else ApiKey.name == name)
    rows = connection.execute(keys, {"user_id": user_id, "now": clock.now()}).all()
    if not rows:
        raise invalid({"keyName": ["No valid key with this name can be used to sign in."]})
    return cast(KeyRow, rows[0] if name is None else rows[-1])


def _insert(connection: Connection, user_id: str, key_id: str) -> Any:
    token, now = secrets.token_urlsafe(24), clock.now()
    link = {
        "id": clock.new_id(),
        "user_id": user_id,
        "key_id": key_id,
        "digest": auth.digest(token),
        "created_at": now,
        "expires_at": clock.now(VALID_SECONDS),
    }
    of_user = SignInLink.user_id == user_id
    newest = select(SignInLink.id).where(of_user, SignInLink.expires_at > now)
    newest = newest.order_by(SignInLink.created_at.desc(), SignInLink.id.desc())
    kept_ids = connection.scalars(newest.limit(MAX_VALID - 1)).all()
    connection.execute(delete(SignInLink).where(of_user, SignInLink.id.not_in(kept_ids)))
    connection.execute(insert(SignInLink), link)
    return SimpleNamespace(**link, token=token)


def find(token: str) -> Any:
    """The valid link of a token, with its `user_name` and the `name` of its key. Raises 404."""
    return require(read_one(_LINK, digest=auth.digest(token), now=clock.now()), "link")


def use(token: str) -> KeyRow:
    """Use the link and make it invalid; returns the key that it signs in with. Raises 404."""
    now = clock.now()
    with transaction() as connection:
        used = _USE.returning(SignInLink.key_id)
        key_id = connection.scalar(used, {"digest": auth.digest(token), "now": now})
    key: KeyRow = require(auth.find(KEY_BY_ID, key_id, now) if key_id else None, "link")
    return key
