"""The Keys page, with a user's keys and callback secret, and its forms."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.auth import caller
from taskservice.dashboard.pages import first_texts, page, redirect_to
from taskservice.dashboard.sessions import create_once
from taskservice.database import clock
from taskservice.errors import invalid
from taskservice.schemas.requests import CreateKeySchema
from taskservice.services import agents, sign_in_links, users
from taskservice.terms import CLIENTS, KEY_VARIABLE
from taskservice.web import responses
from taskservice.web.request import is_loopback, url_parts

blueprint = Blueprint("keys", __name__)
blueprint.before_request(lambda: caller.require_full_user_key())

create_key_schema = CreateKeySchema()

# Choice of a key's lifetime -> the number of days; 0 means that the key does not expire.
EXPIRIES = {"": 0, "7 days": 7, "30 days": 30, "90 days": 90, "1 year": 365}
# Maximum number of valid keys, and of invalid keys, on the page.
MAX_KEYS = 500


@blueprint.route("/keys", methods=["GET", "POST"], strict_slashes=False)
def list_all() -> Response:
    """List the keys, or create a key. A POST is not redirected, since only this response shows the
    key.
    """
    new = None
    if request.method == "POST":
        new = create_once(
            lambda form_id: users.create_key(caller, create_key_schema.load(_fields()), form_id)
        )
        if new is None:
            return redirect_to("keys.list_all")
    valid = users.newest_keys(caller, MAX_KEYS, are_valid=True)
    return page(
        "keys.html",
        201 if new else 200,
        valid=sorted(valid, key=lambda key: bool(key.id == caller.key_id), reverse=True),
        invalid=users.newest_keys(caller, MAX_KEYS, are_valid=False),
        max_keys=MAX_KEYS,
        agent_ids=agents.ids(caller, agents.MAX_CHOICES),
        secret=users.current_callback_secret(caller.user_id),
        expiries=EXPIRIES,
        default_expiry="90 days",
        new=new,
        mcp_clients=CLIENTS.values(),
        mcp_key_variable=KEY_VARIABLE,
    )


@blueprint.post("/keys/sign-in-link")
def sign_in_elsewhere() -> Response:
    """Create a sign-in link for another device. The response is not a redirect, since only this
    response shows the link.
    """
    # Imported here, since few requests need this module.
    import segno

    link = sign_in_links.create(caller)
    url = responses.page_url(f"sign-in/{link.token}")
    code = segno.make(url).svg_inline(omitsize=True, dark="#000", light="#fff")
    is_local = is_loopback(url_parts(url).hostname)
    return page("sign_in_elsewhere.html", 201, link=link, url=url, code=code, is_local=is_local)


@blueprint.route("/keys/<key_id>/revoke", methods=["GET", "POST"])
def revoke(key_id: str) -> Response:
    if request.method != "POST":
        return page("revoke.html", key=users.get_key(caller, key_id))
    key = users.revoke_key(caller, key_id)
    return redirect_to("keys.list_all", f"Revoked the key “{key.name}”.")


@blueprint.route("/callback-secret/rotate", methods=["GET", "POST"])
def rotate() -> Response:
    if request.method != "POST":
        return page("rotate.html")
    users.rotate(caller)
    message = "The callback secret was rotated. The old secret is valid for one more day."
    return redirect_to("keys.list_all", message, _anchor="secret")


def _fields() -> dict[str, Any]:
    """The fields of the form, converted to the JSON body of the API."""
    form = first_texts(request.form)
    if form["expires"] not in EXPIRIES:
        raise invalid({"expires": ["Must be one of the choices."]})
    days = EXPIRIES[form["expires"]]
    return {
        "name": form["name"].strip(),
        "agentId": form["agent"] or None,
        "access": form.get("access"),
        "expiresAt": clock.now(days * 86_400) if days else None,
    }
