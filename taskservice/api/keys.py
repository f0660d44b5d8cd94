"""Routes of a user's own API keys and callback secret."""

from typing import Any

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers
from taskservice.api.door import operation
from taskservice.auth import caller
from taskservice.error_codes import LAST_USER_KEY
from taskservice.problems import not_found
from taskservice.schemas import (
    EXAMPLE_MOMENT,
    CreateKeySchema,
    callback_secret_schema,
    key_schema,
    new_key_schema,
    parse_id,
)
from taskservice.services import users as service

keys = Blueprint("keys", __name__)

create_schema = CreateKeySchema()


@keys.get("/key")
@operation("listKeys", user_key=True, answers={200: [key_schema]})
def list_all() -> Response:
    """List API keys.

    All keys of the user, also those that are revoked or expired.
    """
    return answers.dumped(key_schema, queries.keys_of_user(caller.user_id), many=True)


@keys.post("/key")
@operation("createKey", user_key=True, body=create_schema, answers={201: new_key_schema})
def create(body: dict[str, Any]) -> Response:
    """Create an API key.

    A user key, or with `agentId` an agent key. Only this answer has its text.
    """
    return answers.dumped(new_key_schema, service.create_key(caller, body), 201)


@keys.delete("/key/<key_id>")
@operation(
    "revokeKey",
    user_key=True,
    answers={200: key_schema},
    errors=[LAST_USER_KEY],
    example={"revokedAt": EXAMPLE_MOMENT},
)
def revoke(key_id: str) -> Response:
    """Revoke an API key.

    From the next request on it counts no more. The last user key can be revoked on the server
    only.
    """
    parsed = parse_id(key_id)
    if parsed is None:
        raise not_found("Key")
    return answers.dumped(key_schema, service.revoke_own_key(caller, parsed))


@keys.get("/callback-secret")
@operation("getCallbackSecret", user_key=True, answers={200: callback_secret_schema})
def show_secret() -> Response:
    """Get the callback secret.

    Any library for Standard Webhooks takes it as it is.
    """
    return answers.dumped(callback_secret_schema, queries.current_callback_secret(caller.user_id))


@keys.post("/callback-secret")
@operation("rotateCallbackSecret", user_key=True, answers={201: callback_secret_schema})
def rotate_secret() -> Response:
    """Rotate the callback secret.

    For another day the old one signs too.
    """
    return answers.dumped(callback_secret_schema, service.rotate_callback_secret(caller), 201)
