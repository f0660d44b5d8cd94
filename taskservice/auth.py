"""The `apikey` header becomes the caller."""

from typing import cast

from flask import g, request
from werkzeug.local import LocalProxy

from taskservice import api_key, queries, stamps
from taskservice.access import Caller
from taskservice.problems import Problem

# A moment's text up to its minute.
MINUTE = len("2026-11-24T13:36")

# Key id -> the minute of its last use that is not yet written down: no GET writes.
_uses: dict[str, str] = {}


def authenticate() -> None:
    """Put the caller of this request where `caller` finds it; raises 401 for any other key.

    Two `apikey` headers arrive joined by a comma, which no key contains.
    """
    text = request.headers.get("apikey", "")
    now = stamps.now()
    key = None
    if api_key.is_well_formed(text):
        key = queries.valid_key(api_key.digest(text), now)
    if key is None:
        raise Problem(401, "API key is invalid")
    _uses[key.id] = now[:MINUTE]
    g.caller = Caller(user_id=key.user_id, agent_id=key.agent_id, key_id=key.id)


def take_uses() -> dict[str, str]:
    """Key id -> the moment of its last use, to the minute, since the last call of this."""
    global _uses
    taken, _uses = _uses, {}
    return {key_id: f"{minute}:00.000Z" for key_id, minute in taken.items()}


def _caller() -> Caller:
    current: Caller = g.caller
    return current


caller = cast(Caller, LocalProxy(_caller))
