"""Turns the API key of a request's headers, or of a session, into the caller."""

from collections.abc import Mapping
from threading import Lock
from typing import cast

from flask import g, request
from sqlalchemy.exc import IntegrityError, NoResultFound
from werkzeug.local import LocalProxy

from taskservice.auth import key_text, valid_keys
from taskservice.auth.caller import Caller
from taskservice.context import current
from taskservice.database import clock
from taskservice.database.rows import AnyRow
from taskservice.database.transactions import share_reading
from taskservice.errors import invalid_key

# The headers that carry a key; the value of `Vary`.
KEY_HEADERS = "apikey, Authorization"
BEARER = "bearer"
# What a write or a read raises if the user of its request was deleted meanwhile.
ERRORS_OF_DELETED_USER = (IntegrityError, NoResultFound)
# The length of a moment's text up to the minute.
MINUTE = len("2026-11-24T13:36")

# Key id -> the minute of its last use; upkeep stores it, so that no GET writes.
_uses: dict[str, str] = {}
_lock = Lock()


def authenticate() -> None:
    """Set `caller` from the key in the request's headers; raises 401 unless it is valid."""
    share_reading()
    headers = current(request).environ
    text = key_in_headers(headers.get("HTTP_APIKEY"), headers.get("HTTP_AUTHORIZATION"))
    now = clock.now()
    set_caller(valid_key(text, now), now)


def key_in_headers(apikey: str | None, authorization: str | None) -> str:
    """The key in these two headers; empty unless there is exactly one, or the same in both.

    gunicorn joins a header that was sent twice with a comma, which no key contains.
    """
    if authorization is None:
        return apikey or ""
    credentials = authorization.split(",")
    if not any(map(_is_bearer, credentials)):
        # Another scheme, such as Basic, is meant for a proxy.
        return apikey or ""
    if len(credentials) > 1:
        return ""
    key = credentials[0].strip(" ")[len(BEARER) :].strip(" ")
    return key if apikey in (None, key) else ""


def _is_bearer(credentials: str) -> bool:
    return credentials.lower().split()[:1] == [BEARER]


def valid_key(text: str, now: str) -> AnyRow:
    """The key with this text; raises 401, always the same, unless it is valid now."""
    key = None
    if key_text.is_well_formed(text):
        key = valid_keys.by_digest(key_text.digest(text), now)
    if key is None:
        raise invalid_key()
    return key


def set_caller(key: AnyRow, now: str) -> None:
    """Let this request act as the caller of `key`, and record the key's use."""
    with _lock:
        _uses[key.id] = now[:MINUTE]
    current(g).caller = Caller(key.user_id, key.agent_id, key.id, key.name, key.user_name)


def is_key_valid() -> bool:
    """Whether the key of this request is still neither revoked nor expired."""
    return valid_keys.by_id(caller.key_id, clock.now()) is not None


def require_valid_key() -> None:
    """Raises 401 if the key of this request has been revoked or has expired meanwhile."""
    if not is_key_valid():
        raise invalid_key()


def take_last_uses() -> dict[str, str]:
    """Key id -> the minute of its last use, for keys used since the last call."""
    global _uses
    with _lock:
        taken, _uses = _uses, {}
    return {key_id: f"{minute}:00.000Z" for key_id, minute in taken.items()}


def return_last_uses(taken: Mapping[str, str]) -> None:
    """Keep what `take_last_uses` gave for its next call, unless the key was used since."""
    with _lock:
        for key_id, moment in taken.items():
            _uses.setdefault(key_id, moment[:MINUTE])


def _caller() -> Caller:
    found: Caller = current(g).caller
    return found


caller = cast(Caller, LocalProxy(_caller))
