"""Callback secrets: created, and rotated with a day of overlap."""

import math
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.models import CallbackSecret
from taskservice.database.transactions import transaction
from taskservice.database.types import Identifier, Timestamp
from taskservice.errors import Problem
from taskservice.services.keys import LOCK_USER
from taskservice.webhooks import signing

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

    Raises 429 when MAX_SIGNING secrets sign already.
    """
    with transaction() as connection:
        connection.execute(LOCK_USER, {"user_id": caller.user_id})
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
