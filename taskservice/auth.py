"""The `apikey` header becomes the caller."""

from typing import cast

from flask import g, request
from werkzeug.local import LocalProxy

from taskservice import api_key, queries, stamps
from taskservice.access import Caller
from taskservice.problems import Problem


def authenticate() -> None:
    """Put the caller of this request where `caller` finds it; raises 401 for any other key.

    Two `apikey` headers arrive joined by a comma, which no key contains.
    """
    text = request.headers.get("apikey", "")
    key = None
    if api_key.is_well_formed(text):
        key = queries.valid_key(api_key.digest(text), stamps.now())
    if key is None:
        raise Problem(401, "API key is invalid")
    g.caller = Caller(user_id=key.user_id, agent_id=key.agent_id, key_id=key.id)


def _caller() -> Caller:
    current: Caller = g.caller
    return current


caller = cast(Caller, LocalProxy(_caller))
