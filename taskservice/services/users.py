"""Users: added, with a first key and a callback secret."""

from typing import Any

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from taskservice.database import clock
from taskservice.database.models import User
from taskservice.database.transactions import transaction
from taskservice.errors import Problem
from taskservice.services.callback_secrets import insert_secret
from taskservice.services.keys import check_name, insert_key

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
