"""Reads of API keys."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select

from taskservice.database.models import ApiKey, User
from taskservice.database.rows import AnyRow
from taskservice.database.transactions import reading
from taskservice.schemas.columns import KEY_COLUMNS

_KEY_BY_ID = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id"))
_KEYS_OF_USER = (
    select(*KEY_COLUMNS)
    .where(ApiKey.user_id == bindparam("user_id"))
    .order_by(ApiKey.created_at, ApiKey.id)
)
_KEYS = (
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .order_by(User.name, ApiKey.created_at, ApiKey.id)
)


def get(key_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_KEY_BY_ID, {"key_id": key_id}).one()


def list_all() -> Sequence[AnyRow]:
    """All keys of all users, each with its `user_name`."""
    with reading() as connection:
        return connection.execute(_KEYS).all()


def list_of_user(user_id: str) -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_KEYS_OF_USER, {"user_id": user_id}).all()
