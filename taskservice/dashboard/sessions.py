"""Sessions: a signed cookie with the id of the key that signed in, never the key itself."""

import hmac
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import Flask, current_app, flash, request, session

from taskservice import auth
from taskservice.auth import set_caller
from taskservice.database import clock
from taskservice.database.types import AnyRow
from taskservice.errors import Problem
from taskservice.web.request import Sessions

# Checked in the session too: a copied cookie must not be valid longer.
LIFETIME = timedelta(days=7)


def init_app(app: Flask) -> None:
    # The name differs between services on one host, since browsers share cookies between ports.
    digest = hmac.digest(str(app.config["SECRET_KEY"]).encode(), b"cookie name", "sha256")
    app.config.update(
        SESSION_COOKIE_NAME=f"taskservice-{digest.hex()[:8]}",
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=LIFETIME,
    )
    app.session_interface = Sessions()


def begin(key: AnyRow) -> None:
    """Sign this browser in with `key`, whose caller this request then has."""
    set_caller(key, clock.now())
    session.clear()
    session["key"] = key.id
    # The cookie is renewed with each change of the session; this end stays.
    session["until"] = clock.now(LIFETIME.total_seconds())


def resume() -> AnyRow | None:
    """Set the caller of this request, and return its key, with `user_name`.

    None if there is no session, or its key is no longer valid. Raises 403 for someone whom the
    proxy names but who has no key.
    """
    now = clock.now()
    if current_app.config["LOGIN_HEADER"]:
        key = _of_proxy(now)
    else:
        key = auth.by_id(session["key"], now) if is_unexpired() else None
    if key is None:
        session.pop("key", None)
    else:
        set_caller(key, now)
    return key


def _of_proxy(now: str) -> AnyRow | None:
    """The key of the person in the proxy's header; None if the header is empty. Raises 403."""
    # WSGI gives the bytes of a header as Latin-1. One that is sent twice is joined by a comma.
    sent = request.headers.get(current_app.config["LOGIN_HEADER"], "").strip()
    name = sent.encode("latin-1").decode(errors="replace")
    key = auth.of_login(name, now) if name and "," not in name else None
    if name and key is None:
        raise Problem(
            403,
            f"{name} can't sign in here: ask the people who run this service to add this name with "
            "taskservice key add --login",
        )
    return key


def is_unexpired() -> bool:
    """Whether the session of this request has not expired; a proxy has its own sessions."""
    if current_app.config["LOGIN_HEADER"]:
        return True
    return "key" in session and clock.now() < session.get("until", "")


def token() -> str:
    """The CSRF token in each form of this session."""
    if "token" not in session:
        session["token"] = secrets.token_urlsafe(32)
    return str(session["token"])


def submission_id() -> str:
    """The id in a form that can be sent only once; it changes after each submission."""
    if "submission_id" not in session:
        session["submission_id"] = clock.new_id()
    return str(session["submission_id"])


def create_once(create: Callable[[str], Any]) -> Any:
    """What `create` makes of the form and its id; None, with a message, if it was sent before.

    The new row gets this id, so the database accepts only one of two concurrent submissions, and
    `create` returns None for the other one.
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
    """Raises Problem 403 unless this form comes from a page of this session."""
    submitted = request.form.get("token", "").encode()
    is_foreign = request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if is_foreign or not secrets.compare_digest(submitted, token().encode()):
        raise Problem(
            403, "This form is out of date, or cookies are disabled: go back, reload and try again"
        )
