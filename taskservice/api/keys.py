"""Routes of a user's own API keys and callback secret."""

from typing import Any

from flask import Blueprint, Response

from taskservice.auth.authentication import caller
from taskservice.contract.error_codes import LAST_USER_KEY
from taskservice.problems import not_found
from taskservice.queries import keys as key_queries
from taskservice.queries import users as user_queries
from taskservice.schemas.answers import callback_secret_schema, key_schema, new_key_schema
from taskservice.schemas.fields import EXAMPLE_MOMENT, parse_id
from taskservice.schemas.requests import CreateKeySchema
from taskservice.services import callback_secrets as secret_service
from taskservice.services import keys as key_service
from taskservice.web import responses
from taskservice.web.request import operation

keys = Blueprint("keys", __name__)

create_schema = CreateKeySchema()


@keys.get("/key")
@operation("listKeys", user_key=True, answers={200: [key_schema]})
def list_all() -> Response:
    """List API keys.

    All keys of the user, also those that are revoked or expired.
    """
    return responses.dump(key_schema, key_queries.list_of_user(caller.user_id), many=True)


@keys.post("/key")
@operation("createKey", user_key=True, body=create_schema, answers={201: new_key_schema})
def create(body: dict[str, Any]) -> Response:
    """Create an API key.

    A user key, or with `agentId` an agent key. Only this answer has its text.
    """
    return responses.dump(new_key_schema, key_service.create(caller, body), 201)


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
    return responses.dump(key_schema, key_service.revoke(caller, parsed))


@keys.get("/callback-secret")
@operation("getCallbackSecret", user_key=True, answers={200: callback_secret_schema})
def show_secret() -> Response:
    """Get the callback secret.

    Any library for Standard Webhooks takes it as it is.
    """
    return responses.dump(
        callback_secret_schema, user_queries.current_callback_secret(caller.user_id)
    )


@keys.post("/callback-secret")
@operation("rotateCallbackSecret", user_key=True, answers={201: callback_secret_schema})
def rotate_secret() -> Response:
    """Rotate the callback secret.

    For another day the old one signs too.
    """
    return responses.dump(callback_secret_schema, secret_service.rotate(caller), 201)
