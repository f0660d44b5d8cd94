"""Pages of a user's own keys and callback secret."""

from typing import Any

from flask import Blueprint, Response, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice import queries, stamps
from taskservice.auth import caller
from taskservice.dashboard import sessions, words
from taskservice.dashboard.door import clean, page, to
from taskservice.problems import not_found, unfit
from taskservice.queries import AnyRow
from taskservice.schemas import CreateKeySchema, parse_id
from taskservice.services import users as service

keys = Blueprint("keys", __name__)

create_schema = CreateKeySchema()

# Words of the form -> days.
EXPIRIES = {"": 0, "7 days": 7, "30 days": 30, "90 days": 90, "1 year": 365}
DEFAULT_EXPIRY = "90 days"


@keys.before_request
def require_user_key() -> None:
    caller.require_user_key()


@keys.get("/keys", strict_slashes=False)
def list_all() -> Response:
    return _page()


@keys.post("/keys")
def create() -> AnyResponse:
    """The answer itself has the new key, which is shown at no other time."""
    if not sessions.is_unsent():
        flash("That form was used already.")
        return to("keys.list_all")
    new = service.create_key(caller, create_schema.load(_wishes()))
    sessions.note_sent()
    return _page(201, new=new)


@keys.get("/keys/<key_id>/revoke")
def ask_to_revoke(key_id: str) -> Response:
    return page("revoke.html", key=_key(key_id))


@keys.post("/keys/<key_id>/revoke")
def revoke(key_id: str) -> AnyResponse:
    key = service.revoke_own_key(caller, _key(key_id).id)
    flash(f"Revoked the key “{key.name}”.")
    return to("keys.list_all")


@keys.get("/callback-secret/rotate")
def ask_to_rotate() -> Response:
    return page("rotate.html")


@keys.post("/callback-secret/rotate")
def rotate() -> AnyResponse:
    service.rotate_callback_secret(caller)
    flash("The callback secret is new. For a day the old one signs too.")
    return to("keys.list_all", _anchor="secret")


def _page(status: int = 200, new: Any = None) -> Response:
    keys = sorted(queries.keys_of_user(caller.user_id), key=_is_of_this_session)[::-1]
    return page(
        "keys.html",
        status,
        valid=[key for key in keys if words.counts(key)],
        void=[key for key in keys if not words.counts(key)],
        agents=queries.agents(caller),
        secret=queries.current_callback_secret(caller.user_id),
        expiries=EXPIRIES,
        default_expiry=DEFAULT_EXPIRY,
        new=new,
    )


def _is_of_this_session(key: AnyRow) -> bool:
    return bool(key.id == caller.key_id)


def _wishes() -> dict[str, Any]:
    """The form as the API's body would have it."""
    form = clean(request.form)
    expiry = form.get("expires", "")
    if expiry not in EXPIRIES:
        raise unfit({"expires": ["Must be one of the choices."]})
    days = EXPIRIES[expiry]
    return {
        "name": form.get("name", "").strip(),
        "agentId": form.get("agent") or None,
        "expiresAt": stamps.now(days * 86_400) if days else None,
    }


def _key(key_id: str) -> AnyRow:
    parsed = parse_id(key_id)
    found = [key for key in queries.keys_of_user(caller.user_id) if key.id == parsed]
    if not found:
        raise not_found("Key")
    return found[0]
