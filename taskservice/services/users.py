"""Users: added, with a first key and a callback secret."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.models import CallbackSecret, User
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import AnyRow, Identifier, Timestamp
from taskservice.errors import Problem
from taskservice.schemas.columns import USER_COLUMNS
from taskservice.services.keys import check_name, insert_key, lock_user_of
from taskservice.webhooks import signing

# Callback secrets: created, and rotated with a day of overlap.

# A replaced secret also signs for a day, so that receivers can change to the new one.
OVERLAP_SECONDS = 86_400.0
# Each secret that signs adds 48 bytes to a header, of which receivers accept a few KiB.
MAX_SIGNING = 10

_REPLACE_SECRET = update(CallbackSecret).where(
    CallbackSecret.user_id == bindparam("of_user_id", type_=Identifier),
    CallbackSecret.replaced_at.is_(None),
)

_REPLACED = (
    select(CallbackSecret.replaced_at)
    .where(
        CallbackSecret.user_id == bindparam("user_id", type_=Identifier),
        CallbackSecret.replaced_at > bindparam("since", type_=Timestamp()),
    )
    .order_by(CallbackSecret.replaced_at)
)


def rotate(caller: Caller) -> Any:
    """Create a callback secret for the caller's user; the replaced one signs for 24 h more.

    Raises 401, and 429 when MAX_SIGNING secrets sign already.
    """
    with transaction() as connection:
        lock_user_of(connection, caller)
        _check_count(connection, caller.user_id)
        now = clock.now()
        connection.execute(_REPLACE_SECRET.values(replaced_at=now), {"of_user_id": caller.user_id})
        return insert_secret(connection, caller.user_id, now)


def _check_count(connection: Connection, user_id: str) -> None:
    since = clock.now(-OVERLAP_SECONDS)
    replaced = connection.scalars(_REPLACED, {"user_id": user_id, "since": since}).all()
    if len(replaced) >= MAX_SIGNING - 1:
        wait = math.ceil(clock.seconds_between(since, str(replaced[0])))
        raise Problem(
            429,
            f"{len(replaced)} replaced secrets still sign for what is left of their 24 hours; "
            f"the next rotation is possible in {wait} s",
            headers={"Retry-After": str(wait)},
        )


def insert_secret(connection: Connection, user_id: str, now: str) -> Any:
    secret = {
        "id": clock.new_id(),
        "user_id": user_id,
        "secret": signing.new_secret(),
        "created_at": now,
    }
    connection.execute(insert(CallbackSecret), secret)
    return SimpleNamespace(**secret)


# Users: added, with a first key and a callback secret.

FIRST_KEY_NAME = "first"


def add(name: str) -> Any:
    """Add a user with a callback secret and a first user key.

    Returns that key with its `text`, which is not stored. Raises 409 and 422.
    """
    check_name(name)
    now = clock.now()
    user = {"id": clock.new_id(), "name": name, "created_at": now}
    try:
        with transaction() as connection:
            connection.execute(insert(User), user)
            insert_secret(connection, user["id"], now)
            return insert_key(connection, user["id"], FIRST_KEY_NAME, None, None)
    except IntegrityError:
        raise Problem(409, f"A user {name} already exists") from None


# Reads of users and of their callback secrets.

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
