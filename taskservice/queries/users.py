"""Reads of users and of their callback secrets."""

from collections.abc import Sequence

from sqlalchemy import bindparam, or_, select

from taskservice.database.models import CallbackSecret, User
from taskservice.database.transactions import reading
from taskservice.database.types import AnyRow, Timestamp
from taskservice.schemas.columns import USER_COLUMNS

_USER = select(*USER_COLUMNS).where(User.id == bindparam("user_id"))
_USERS = select(*USER_COLUMNS).order_by(User.name)
_CURRENT_SECRET = select(CallbackSecret.secret, CallbackSecret.created_at).where(
    CallbackSecret.user_id == bindparam("user_id"), CallbackSecret.replaced_at.is_(None)
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


def get(user_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_USER, {"user_id": user_id}).one()


def list_all() -> Sequence[AnyRow]:
    with reading() as connection:
        return connection.execute(_USERS).all()


def current_callback_secret(user_id: str) -> AnyRow:
    with reading() as connection:
        return connection.execute(_CURRENT_SECRET, {"user_id": user_id}).one()


def callback_secrets(user_id: str, since: str) -> Sequence[str]:
    """The secrets that sign now, newest first: the current one and those replaced after `since`."""
    with reading() as connection:
        return connection.execute(_SECRETS, {"user_id": user_id, "since": since}).scalars().all()
