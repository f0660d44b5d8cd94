"""Routes of the user: who am I."""

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers
from taskservice.api.door import operation
from taskservice.auth import caller
from taskservice.schemas import key_schema, user_schema, who_am_i_schema

users = Blueprint("users", __name__)


@users.get("/user")
@operation("getUser", answers={200: who_am_i_schema})
def get() -> Response:
    """Who am I.

    The user that the key belongs to, and the key itself.
    """
    user = user_schema.dump(queries.user(caller.user_id))
    return answers.json(user | {"key": key_schema.dump(queries.key(caller.key_id))})
