"""The route of the user: who am I."""

from flask import Blueprint, Response

from taskservice.auth import caller
from taskservice.schemas.users import key_schema, user_schema, who_am_i_schema
from taskservice.services import keys, users
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("users", __name__)


@blueprint.get("/user")
@operation("getUser", answers={200: who_am_i_schema})
def get() -> Response:
    """Who am I.

    The user that the key belongs to, and the key without its text.
    """
    user = user_schema.dump(users.get(caller.user_id))
    return responses.json(user | {"key": key_schema.dump(keys.get(caller, caller.key_id))})
