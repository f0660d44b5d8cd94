"""Sessions: a signed cookie with the ID of the key used to sign in, never the key itself."""

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import current_app, flash, g, request, session

from taskservice.auth import KEY_BY_ID, KEY_OF_LOGIN, find, set_caller, valid_key
from taskservice.database import clock
from taskservice.database.rows import KeyRow
from taskservice.errors import Problem
from taskservice.web.request import SPACE

# The session also contains its expiry time, so that a copied cookie can't be used later.
LIFETIME = timedelta(days=7)


def resume_session() -> bool:
    """Set the caller of this request, and set `g.signed_in` to the key that signed in.

    Returns False without a session or a valid key. Raises 403 if the proxy sends the name of a
    person who has no key.
    """
    now = clock.now()
    if current_app.config["LOGIN_HEADER"]:
        key = _of_proxy(now)
    else:
        key = find(KEY_BY_ID, session["key"], now) if is_session_unexpired() else None
    if key is None:
        session.pop("key", None)
    else:
        set_caller(key, now)
        g.signed_in = key
    return key is not None


def _of_proxy(now: str) -> KeyRow | None:
    """The key of the person whom the proxy names; None if the header is empty. Raises 403."""
    # WSGI decodes headers as Latin-1. If a header is sent twice, a comma separates its values.
    sent = request.headers.get(current_app.config["LOGIN_HEADER"], "").strip(SPACE)
    name = sent.encode("latin-1").decode(errors="replace")
    key = find(KEY_OF_LOGIN, name, now) if name and "," not in name else None
    if name and key is None:
        remedy = "ask the people who run this service to add this name with"
        raise Problem(403, f"{name} can't sign in here: {remedy} taskservice key add --login")
    return key


def is_session_unexpired() -> bool:
    """Whether the session of this request is valid; always true if a proxy signs people in."""
    if current_app.config["LOGIN_HEADER"]:
        return True
    return "key" in session and clock.now() < session.get("until", "")


def form_token() -> str:
    """The CSRF token in each form of this session."""
    return str(session.setdefault("token", secrets.token_urlsafe(32)))


def submission_id() -> str:
    """An ID for a form that can be sent only once; it changes after each submission."""
    return str(session.setdefault("submission_id", clock.new_id()))


def create_once(create: Callable[[str], Any]) -> Any:
    """Call `create` with the ID of the form, which becomes the ID of the new row.

    Returns None, and shows a message, if the form was already sent. If the form is sent twice at
    the same time, `create` returns None for one of the requests.
    """
    submitted = request.form.get("submission_id", "").encode()
    is_first = secrets.compare_digest(submitted, submission_id().encode())
    created = create(submission_id()) if is_first else None
    if created is None:
        flash("This form was already sent.")
    else:
        session.pop("submission_id", None)
    return created


def check_form() -> None:
    """Raises Problem 403 unless this form was rendered for this session."""
    submitted = request.form.get("token", "").encode()
    is_foreign = request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if is_foreign or not secrets.compare_digest(submitted, form_token().encode()):
        remedy = "go back, reload and try again"
        raise Problem(403, f"This form is out of date, or cookies are disabled: {remedy}")


def form_key() -> KeyRow:
    """The key in the form. Raises 401 with the same message for all invalid keys."""
    return valid_key(request.form.get("key", "").strip(), clock.now())


def require_own_sign_in() -> None:
    """Raises 403 if a proxy signs people in."""
    if current_app.config["LOGIN_HEADER"]:
        raise Problem(403, "Sign in at the proxy: sign-in with a key is disabled")


def begin_session(key: KeyRow) -> None:
    """Sign this browser in with the rights of a key."""
    set_caller(key, clock.now())
    session.clear()
    session["key"] = key.id
    # The expiry time stays the same, although each change of the session renews the cookie.
    session["until"] = clock.now(LIFETIME.total_seconds())
