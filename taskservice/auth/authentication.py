"""An API key becomes the caller: that in a request's headers, or that of a session."""

from threading import Lock
from typing import cast

from flask import g, request
from werkzeug.local import LocalProxy

from taskservice.auth import key_text, valid_keys
from taskservice.auth.caller import Caller
from taskservice.database import timestamps
from taskservice.database.rows import AnyRow
from taskservice.problems import invalid_key

# Where a request has its key: by these the answers to one URL differ.
KEY_HEADERS = ("apikey", "Authorization")
BEARER = "bearer"
# A moment's text up to its minute.
MINUTE = len("2026-11-24T13:36")

# Key id -> the minute of its last use that is not yet written down: no GET writes.
_uses: dict[str, str] = {}
_lock = Lock()


def authenticate() -> None:
    """Put the caller of this request where `caller` finds it; raises 401 for any other key."""
    set_caller(valid_key(key_in_headers(*map(request.headers.get, KEY_HEADERS))))


def key_in_headers(apikey: str | None, authorization: str | None) -> str:
    """The text of the key in these two headers; empty, as no key is, unless there is exactly one.

    A header that was sent twice is given joined by a comma, which no key contains.
    """
    credentials = (authorization or "").split(",")
    if not any(map(_is_bearer, credentials)):
        # Another scheme is for a proxy in front.
        return apikey or ""
    if apikey is not None or len(credentials) > 1:
        return ""
    return credentials[0].strip(" ")[len(BEARER) :].strip(" ")


def _is_bearer(credentials: str) -> bool:
    return credentials.lower().split()[:1] == [BEARER]


def valid_key(text: str) -> AnyRow:
    """The key with this text; raises 401, always the same, when it does not count."""
    key = None
    if key_text.is_well_formed(text):
        key = valid_keys.by_digest(key_text.digest(text), timestamps.now())
    if key is None:
        raise invalid_key()
    return key


def set_caller(key: AnyRow) -> None:
    """Let this request act for whoever holds `key`, and note that it was used."""
    with _lock:
        _uses[key.id] = timestamps.now()[:MINUTE]
    g.caller = Caller(user_id=key.user_id, agent_id=key.agent_id, key_id=key.id)


def is_key_valid() -> bool:
    """Whether the key of this request is by now neither revoked nor expired."""
    return valid_keys.by_id(caller.key_id, timestamps.now()) is not None


def require_valid_key() -> None:
    """Raises 401 when the key of this request has been revoked or has expired since it came."""
    if not is_key_valid():
        raise invalid_key()


def take_last_uses() -> dict[str, str]:
    """Key id -> the moment of its last use, to the minute, since the last call of this."""
    global _uses
    with _lock:
        taken, _uses = _uses, {}
    return {key_id: f"{minute}:00.000Z" for key_id, minute in taken.items()}


def _caller() -> Caller:
    current: Caller = g.caller
    return current


caller = cast(Caller, LocalProxy(_caller))
