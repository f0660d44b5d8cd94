"""Routes of the user: who am I."""

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers
from taskservice.api.door import accepts
from taskservice.auth import caller
from taskservice.schemas import key_schema, user_schema

users = Blueprint("users", __name__)


@users.get("/user")
@accepts()
def get() -> Response:
    """The user of the key, and the key itself."""
    user = user_schema.dump(queries.user(caller.user_id))
    return answers.json(user | {"key": key_schema.dump(queries.key(caller.key_id))})
