"""Finds an API key that is neither revoked nor expired."""

from sqlalchemy import bindparam, or_, select

from taskservice.database.models import ApiKey, User
from taskservice.database.rows import AnyRow
from taskservice.database.statements import Statement
from taskservice.database.transactions import reading
from taskservice.database.types import Timestamp
from taskservice.schemas.columns import KEY_COLUMNS

KEY_IS_VALID = (
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now", type_=Timestamp())),
)
_KEY = Statement[AnyRow](
    select(ApiKey.id, ApiKey.user_id, ApiKey.agent_id, ApiKey.name, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.digest == bindparam("digest"), *KEY_IS_VALID)
)
_KEY_OF_SESSION = Statement[AnyRow](
    select(*KEY_COLUMNS, User.name.label("user_name"))
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.id == bindparam("key_id"), *KEY_IS_VALID)
)


def by_digest(digest: str, now: str) -> AnyRow | None:
    """What `set_caller` needs of the valid key with this digest; None without one."""
    with reading() as connection:
        return _KEY.one_or_none(connection, digest=digest, now=now)


def by_id(key_id: str, now: str) -> AnyRow | None:
    """The valid key with this id, with all its columns and its `user_name`; None without one."""
    with reading() as connection:
        return _KEY_OF_SESSION.one_or_none(connection, key_id=key_id, now=now)
