"""Routes for the current user, and for the user's API keys, sign-in links and callback secret."""

from typing import Any

from flask import Blueprint, Response

from taskservice.auth import Caller
from taskservice.error_codes import LAST_USER_KEY, TOO_MANY_REQUESTS
from taskservice.schemas import examples
from taskservice.schemas.requests import CreateKeySchema, CreateSignInLinkSchema
from taskservice.schemas.users import (
    WhoAmISchema,
    callback_secret_schema,
    key_schema,
    key_with_secret_schema,
    sign_in_link_schema,
    user_schema,
)
from taskservice.services import sign_in_links, users
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("users", __name__)
keys = Blueprint("keys", __name__)


@blueprint.get("/user")
@operation("getUser", WhoAmISchema())
def get(caller: Caller) -> Response:
    """Get the current user and key.

    Returns the user to whom the key belongs, and the key without its text.
    """
    user = user_schema.dump(users.get(caller.user_id))
    return responses.json(user | {"key": key_schema.dump(users.get_key(caller, caller.key_id))})


@keys.get("/key")
@operation("listKeys", [key_schema], user_key=True)
def list_all(caller: Caller) -> Response:
    """List API keys.

    Returns all keys of the user, including revoked and expired keys. The list is streamed: if an
    error occurs midway, the connection closes before the array is complete.
    """
    return responses.array(key_schema.dump(page, many=True) for page in users.keys_of_user(caller))


@keys.post("/key")
@operation(
    "createKey", responses={201: key_with_secret_schema}, user_key=True, body=CreateKeySchema()
)
def create(caller: Caller, body: dict[str, Any]) -> Response:
    """Create an API key.

    Creates an agent key if the request has an `agentId`, otherwise a user key. If `access` is
    `read`, an agent key can only read the data of its agent, and a user key can only read the data
    of the user. Only this response contains the text of the key.
    """
    return responses.dump(key_with_secret_schema, users.create_key(caller, body), 201)


@keys.delete("/key/<key_id>")
@operation(
    "revokeKey",
    key_schema,
    user_key=True,
    errors=[LAST_USER_KEY],
    example={"revokedAt": examples.TIME},
)
def revoke(caller: Caller, key_id: str) -> Response:
    """Revoke an API key.

    From now on, requests with the key are rejected. The last user key can be revoked only on the
    server, with `taskservice key revoke`.
    """
    return responses.dump(key_schema, users.revoke_key(caller, key_id))


@keys.post("/sign-in-link")
@operation(
    "createSignInLink",
    responses={201: sign_in_link_schema},
    user_key=True,
    body=CreateSignInLinkSchema(),
)
def create_sign_in_link(caller: Caller, body: dict[str, Any]) -> Response:
    """Create a sign-in link.

    The first person who opens the URL within 15 minutes and confirms is signed in to the dashboard
    with the rights of the key. Only the 5 newest links of a user are valid. A read key can only
    create a link with its own rights.
    """
    link = sign_in_links.create(caller, body.get("keyName"))
    link.url = responses.page_url(f"sign-in/{link.token}")
    return responses.dump(sign_in_link_schema, link, 201)


@keys.get("/callback-secret")
@operation("getCallbackSecret", callback_secret_schema, user_key=True, full_access=True)
def show_secret(caller: Caller) -> Response:
    """Get the callback secret.

    Returns the secret in the format that all Standard Webhooks libraries accept.
    """
    return responses.dump(callback_secret_schema, users.current_callback_secret(caller.user_id))


@keys.post("/callback-secret")
@operation(
    "rotateCallbackSecret",
    responses={201: callback_secret_schema},
    user_key=True,
    errors=[TOO_MANY_REQUESTS],
)
def rotate_secret(caller: Caller) -> Response:
    """Rotate the callback secret.

    Creates a new secret. For another 24 hours, webhooks are also signed with the old secret. At
    most 10 secrets are valid at a time.
    """
    return responses.dump(callback_secret_schema, users.rotate(caller), 201)
