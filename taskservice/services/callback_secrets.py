"""Callback secrets: created, and rotated with a day of overlap."""

from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from taskservice.auth.caller import Caller
from taskservice.database import timestamps
from taskservice.database.models import CallbackSecret, Identifier, User
from taskservice.database.transactions import transaction
from taskservice.webhooks import signing

LOCK_USER = select(User.id).where(User.id == bindparam("user_id")).with_for_update()
_REPLACE_SECRET = update(CallbackSecret).where(
    CallbackSecret.user_id == bindparam("of_user_id", type_=Identifier),
    CallbackSecret.replaced_at.is_(None),
)


def rotate(caller: Caller) -> Any:
    """Create a callback secret for the caller's user; the replaced one signs for 24 h more."""
    with transaction() as connection:
        connection.execute(LOCK_USER, {"user_id": caller.user_id})
        now = timestamps.now()
        connection.execute(_REPLACE_SECRET.values(replaced_at=now), {"of_user_id": caller.user_id})
        return insert_secret(connection, caller.user_id, now)


def insert_secret(connection: Connection, user_id: str, now: str) -> Any:
    secret = {
        "id": timestamps.new_id(),
        "user_id": user_id,
        "secret": signing.new_secret(),
        "created_at": now,
    }
    connection.execute(insert(CallbackSecret), secret)
    return SimpleNamespace(**secret)
