"""Reads of API keys."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select

from taskservice.auth.caller import Caller, visible_keys
from taskservice.database.models import ApiKey, User
from taskservice.database.rows import AnyRow
from taskservice.database.transactions import reading
from taskservice.problems import not_found
from taskservice.schemas.columns import KEY_COLUMNS

_KEY = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id"), visible_keys)
_KEYS_OF_USER = select(*KEY_COLUMNS).where(visible_keys).order_by(ApiKey.created_at, ApiKey.id)
_KEYS = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .order_by(User.name, ApiKey.created_at, ApiKey.id)
)


def get(caller: Caller, key_id: str) -> AnyRow:
    """A key of the caller's user. Raises 404."""
    with reading() as connection:
        key = connection.execute(_KEY, {"key_id": key_id, **caller.scope}).one_or_none()
    if key is None:
        raise not_found("key")
    return key


def list_all() -> Sequence[AnyRow]:
    """All keys of all users, each with its `user_name`."""
    with reading() as connection:
        return connection.execute(_KEYS).all()


def list_of_user(caller: Caller) -> Sequence[AnyRow]:
    """All keys of the caller's user, also those that are revoked or expired."""
    with reading() as connection:
        return connection.execute(_KEYS_OF_USER, caller.scope).all()
