"""Reads of API keys."""

from collections.abc import Iterator, Sequence

from sqlalchemy import and_, bindparam, not_, select, tuple_

from taskservice.auth import KEY_IS_VALID, Caller, visible_keys
from taskservice.database import clock
from taskservice.database.clock import EARLIEST, LOWEST_ID
from taskservice.database.models import ApiKey, User
from taskservice.database.transactions import reading
from taskservice.database.types import AnyRow, Identifier, Timestamp, in_pages
from taskservice.errors import not_found
from taskservice.schemas.columns import KEY_COLUMNS

# How many keys of a list one read takes.
KEYS_PER_READ = 1_000
_KEY = select(*KEY_COLUMNS).where(ApiKey.id == bindparam("key_id"), visible_keys)
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
        key = connection.execute(_KEY, {"key_id": key_id, **caller.scope}).one_or_none()
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
