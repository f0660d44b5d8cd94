"""The page of a user's keys and callback secret, and its forms."""

from typing import Any

from flask import Blueprint, Response, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard.pages import create_once, first_texts, page, redirect_to
from taskservice.database import clock
from taskservice.errors import invalid
from taskservice.schemas.requests import CreateKeySchema
from taskservice.services import agents, users
from taskservice.terms import CLIENTS, KEY_VARIABLE

blueprint = Blueprint("keys", __name__)
blueprint.before_request(lambda: caller.require_full_user_key())

# Choice in the form -> days.
EXPIRIES = {"": 0, "7 days": 7, "30 days": 30, "90 days": 90, "1 year": 365}
DEFAULT_EXPIRY = "90 days"
# Maximum number of valid keys, and of invalid keys, on the page.
MAX_KEYS = 500


@blueprint.get("/keys", strict_slashes=False)
def list_all() -> Response:
    return _page()


@blueprint.post("/keys")
def create() -> AnyResponse:
    """No redirect: only this response shows the key."""
    new = create_once(
        lambda form_id: users.create_key(caller, CreateKeySchema().load(_fields()), form_id)
    )
    return redirect_to("keys.list_all") if new is None else _page(201, new=new)


@blueprint.get("/keys/<key_id>/revoke")
def confirm_revoke(key_id: str) -> Response:
    return page("revoke.html", key=users.get_key(caller, key_id))


@blueprint.post("/keys/<key_id>/revoke")
def revoke(key_id: str) -> AnyResponse:
    key = users.revoke_key(caller, key_id)
    flash(f"Revoked the key “{key.name}”.")
    return redirect_to("keys.list_all")


@blueprint.get("/callback-secret/rotate")
def confirm_rotate() -> Response:
    return page("rotate.html")


@blueprint.post("/callback-secret/rotate")
def rotate() -> AnyResponse:
    users.rotate(caller)
    flash("The callback secret was rotated. The old secret stays valid for one day.")
    return redirect_to("keys.list_all", _anchor="secret")


def _page(status: int = 200, new: Any = None) -> Response:
    valid = users.newest_keys(caller, MAX_KEYS, are_valid=True)
    return page(
        "keys.html",
        status,
        valid=sorted(valid, key=lambda key: bool(key.id == caller.key_id), reverse=True),
        invalid=users.newest_keys(caller, MAX_KEYS, are_valid=False),
        max_keys=MAX_KEYS,
        agent_ids=agents.ids(caller, agents.MAX_CHOICES),
        secret=users.current_callback_secret(caller.user_id),
        expiries=EXPIRIES,
        default_expiry=DEFAULT_EXPIRY,
        new=new,
        mcp_clients=CLIENTS.values(),
        mcp_key_variable=KEY_VARIABLE,
    )


def _fields() -> dict[str, Any]:
    """The form as the JSON body of the API."""
    form = first_texts(request.form)
    expiry = form.get("expires", "")
    if expiry not in EXPIRIES:
        raise invalid({"expires": ["Must be one of the choices."]})
    days = EXPIRIES[expiry]
    return {
        "name": form.get("name", "").strip(),
        "agentId": form.get("agent") or None,
        "access": form.get("access"),
        "expiresAt": clock.now(days * 86_400) if days else None,
    }
