"""Routes of a user's own API keys and callback secret."""

from typing import Any

from flask import Blueprint, Response

from taskservice import queries
from taskservice.api import answers
from taskservice.api.door import accepts
from taskservice.auth import caller
from taskservice.problems import not_found
from taskservice.schemas import (
    CreateKeySchema,
    callback_secret_schema,
    key_schema,
    new_key_schema,
    parse_id,
)
from taskservice.services import users as service

keys = Blueprint("keys", __name__)

create_schema = CreateKeySchema()


@keys.before_request
def require_user_key() -> None:
    caller.require_user_key()


@keys.get("/key")
@accepts()
def list_all() -> Response:
    """The user's own keys, without their secrets."""
    return answers.dumped(key_schema, queries.keys_of_user(caller.user_id), many=True)


@keys.post("/key")
@accepts(body=create_schema)
def create(body: dict[str, Any]) -> Response:
    """Create a key; only this answer has its text."""
    return answers.dumped(new_key_schema, service.create_key(caller, body), 201)


@keys.delete("/key/<key_id>")
@accepts()
def revoke(key_id: str) -> Response:
    """Revoke a key from the next request on."""
    parsed = parse_id(key_id)
    if parsed is None:
        raise not_found("Key")
    return answers.dumped(key_schema, service.revoke_own_key(caller, parsed))


@keys.get("/callback-secret")
@accepts()
def show_secret() -> Response:
    """The secret that signs the user's webhooks."""
    return answers.dumped(callback_secret_schema, queries.current_callback_secret(caller.user_id))


@keys.post("/callback-secret")
@accepts()
def rotate_secret() -> Response:
    """Make a new secret; the old one signs too for another day."""
    return answers.dumped(callback_secret_schema, service.rotate_callback_secret(caller), 201)
