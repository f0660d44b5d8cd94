"""Sessions: a signed cookie that says which key signed in, and never the key itself."""

import hmac
import secrets
from datetime import timedelta

from flask import Flask, request, session
from flask.sessions import SecureCookieSessionInterface

from taskservice.auth import valid_keys
from taskservice.auth.authentication import is_key_valid, set_caller
from taskservice.database import timestamps
from taskservice.database.rows import AnyRow
from taskservice.problems import Problem

# After so long a session has ended, in a copy of its cookie too.
LIFETIME = timedelta(days=7)


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, in a cookie for this service alone.

    Its path is the prefix under which a proxy has the service; its name tells services
    apart that share a host, since a browser ignores ports.
    """

    def get_cookie_name(self, app: Flask) -> str:
        key = str(app.config["SECRET_KEY"]).encode()
        return f"taskservice-{hmac.digest(key, b'cookie name', 'sha256').hex()[:8]}"

    def get_cookie_path(self, app: Flask) -> str:
        return f"{request.script_root}/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


class SessionEndedError(Exception):
    """Nobody is signed in, or the key no longer counts."""


def init_app(app: Flask) -> None:
    app.config.update(
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=LIFETIME,
    )
    app.session_interface = Sessions()


def begin(key: AnyRow) -> None:
    """Let this browser act for the holder of `key`."""
    session.clear()
    session["key"] = key.id
    # Each change makes a fresh cookie of the session, which keeps this moment.
    session["until"] = timestamps.now(LIFETIME.total_seconds())


def resume() -> AnyRow:
    """Admit the caller of this request; returns the key, with its `user_name`.

    Raises SessionEndedError.
    """
    key = valid_keys.by_id(session["key"], timestamps.now()) if _is_young() else None
    if key is None:
        session.pop("key", None)
        raise SessionEndedError
    set_caller(key)
    return key


def is_active() -> bool:
    """Whether the session that admitted this request still counts."""
    return _is_young() and is_key_valid()


def _is_young() -> bool:
    return "key" in session and timestamps.now() < session.get("until", "")


def token() -> str:
    """What each form of this session carries, and no other site can know."""
    if "token" not in session:
        session["token"] = secrets.token_urlsafe(32)
    return str(session["token"])


def number() -> str:
    """What a form carries that may be sent once; the same until one has been."""
    if "number" not in session:
        session["number"] = secrets.token_urlsafe(8)
    return str(session["number"])


def is_unsent() -> bool:
    """Whether this form, with its `number`, has not been sent before."""
    return secrets.compare_digest(request.form.get("number", "").encode(), number().encode())


def note_sent() -> None:
    session.pop("number", None)


def check_form() -> None:
    """Raises 403 unless this form came from a page of this session."""
    given = request.form.get("token", "").encode()
    elsewhere = request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")
    if elsewhere or not secrets.compare_digest(given, token().encode()):
        raise Problem(
            403, "This form is out of date, or cookies are off: go back, reload, and try again"
        )
