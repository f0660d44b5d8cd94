"""Determines the caller from the API key in a request's headers or in a session."""

import hashlib
import re
import secrets
import string
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

from flask import g
from sqlalchemy import ColumnElement, and_, bindparam, or_, select
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.types import Text
from werkzeug.local import LocalProxy

from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Agent, ApiKey, Link, Task, User
from taskservice.database.rows import KeyRow
from taskservice.database.transactions import read_one, share_reading
from taskservice.database.types import Identifier, Timestamp
from taskservice.error_codes import READ_ONLY
from taskservice.errors import Problem, invalid_key, require
from taskservice.schemas.users import KEY_COLUMNS
from taskservice.terms import AGENT_PREFIX, FULL, LINK, READ


class Caller(NamedTuple):
    """The user of an API key or a link, and the agent to which an agent key is limited."""

    user_id: str
    agent_id: str | None
    key_id: str
    key_name: str
    user_name: str
    access: str = FULL
    task_id: str = ""  # the task that a link shows; empty for a key

    @property
    def can_manage(self) -> bool:
        """Whether this is a user key with full access."""
        return self.agent_id is None and self.access == FULL

    @property
    def scope(self) -> dict[str, str | None]:
        """The bind parameters of `visible_tasks`, `visible_agents` and `visible_keys`."""
        return {"caller_user_id": self.user_id, "caller_agent_id": self.agent_id}

    def require_user_key(self) -> None:
        if self.agent_id is not None:
            raise Problem(403, "An agent key can't do this; use a user key")

    def require_full_access(self) -> None:
        if self.access != FULL:
            raise Problem(403, "A read key can't do this; use another key", code=READ_ONLY)

    def require_full_user_key(self) -> None:
        self.require_full_access()
        self.require_user_key()


_user_id = bindparam("caller_user_id", type_=Identifier)
_agent_id = bindparam("caller_agent_id", type_=Text())

visible_tasks = (Task.user_id == _user_id) & (_agent_id.is_(None) | (Task.agent_id == _agent_id))
visible_agents = (Agent.user_id == _user_id) & (_agent_id.is_(None) | (Agent.id == _agent_id))
visible_keys: ColumnElement[bool] = ApiKey.user_id == _user_id
# Lists use this condition and filter by agent separately, since the `OR` above would prevent SQLite
# from using an index.
tasks_of_user: ColumnElement[bool] = Task.user_id == bindparam("user_id", type_=Identifier)
# Joins compare the user too, since an agent's ID is unique only within its user.
is_of_agent = and_(Task.user_id == Agent.user_id, Task.agent_id == Agent.id)


# Functions that create and check the text of an API key, without reading the database.

USER_PREFIX = "tsk_user_"
READ_PREFIX = "tsk_read_"

_ALPHABET = string.digits + string.ascii_letters
_RANDOM_LENGTH = 40  # characters from an alphabet of 62, so a key has 238 random bits
# The 6 characters of the checksum are computed as three pairs, for speed.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_CHECKSUM_LENGTH = 6
_SHAPE = re.compile(rf"tsk_(?:user|agent|read)_[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECKSUM_LENGTH}}}")


def new(*, for_agent: bool, access: str = FULL) -> str:
    """The text of a new key: a prefix, 238 random bits, and a checksum of both."""
    prefix = READ_PREFIX if access == READ else AGENT_PREFIX if for_agent else USER_PREFIX
    unchecked = prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return unchecked + _checksum(unchecked)


def is_well_formed(text: str) -> bool:
    """Whether `text` has the form and the checksum of a key; a mistyped key fails this check."""
    body, checksum = text[:-_CHECKSUM_LENGTH], text[-_CHECKSUM_LENGTH:]
    return bool(_SHAPE.fullmatch(text)) and _checksum(body) == checksum


def digest(text: str) -> str:
    """The SHA-256 of a key or a token, in hexadecimal; only this digest is stored.

    A key or a token has too many random bits to be guessed, so a slow hash is not necessary.
    """
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(text: str) -> str:
    first, rest = divmod(zlib.crc32(text.encode()), len(_PAIRS) ** 2)
    second, third = divmod(rest, len(_PAIRS))
    return _PAIRS[first] + _PAIRS[second] + _PAIRS[third]


KEY_IS_VALID = (
    ApiKey.revoked_at.is_(None),
    or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > bindparam("now", type_=Timestamp())),
)
_user_name = User.name.label("user_name")
_KEYS = select(*KEY_COLUMNS, _user_name).join(User, User.id == ApiKey.user_id).where(*KEY_IS_VALID)
# This statement runs for each request, so it reads only the columns that a `Caller` needs.
_KEY = Statement[KeyRow](
    select(ApiKey.id, ApiKey.user_id, ApiKey.agent_id, ApiKey.name, ApiKey.access, _user_name)
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.digest == bindparam("value"), *KEY_IS_VALID)
)
KEY_BY_ID = Statement[KeyRow](_KEYS.where(ApiKey.id == bindparam("value")))
KEY_OF_LOGIN = Statement[KeyRow](_KEYS.where(ApiKey.login, ApiKey.name == bindparam("value")))
_LINKS = (
    select(Link.id, Link.task_id, Link.expires_at, Task.user_id, _user_name)
    .join(Task, Task.id == Link.task_id)
    .join(User, User.id == Task.user_id)
    .where(Link.expires_at > bindparam("now", type_=Timestamp()))
)
_LINK = Statement[KeyRow](_LINKS.where(Link.digest == bindparam("value")))
_LINK_BY_ID = Statement[KeyRow](_LINKS.where(Link.id == bindparam("value")))


def find(statement: Statement[KeyRow], value: str, now: str) -> KeyRow | None:
    """The key or link with its `user_name`, or None if it is not valid."""
    return read_one(statement, value=value, now=now)


# The headers that can contain a key, as the value of `Vary`.
KEY_HEADERS = "apikey, Authorization"
BEARER = "bearer"
# The errors that a read or a write raises if the user is deleted during the request.
ERRORS_OF_DELETED_USER = (IntegrityError, NoResultFound)
MINUTE = len("2026-11-24T13:36")  # the length of a timestamp without its seconds
T = TypeVar("T")


# The time of the last use of each key, by the key's ID. Maintenance stores these times, so that
# GET requests need no writes.
key_uses: dict[str, str] = {}
# The time of the last claim by a worker, by user ID and agent ID.
worker_claims: dict[tuple[str, str], str] = {}


def take_minutes(uses: dict[T, str]) -> dict[T, str]:
    """Remove all times from `uses`, and return them rounded down to the minute.

    Other threads can add times while this function runs.
    """
    return {used: f"{uses.pop(used)[:MINUTE]}:00.000Z" for used in list(uses)}


def authenticate(environ: Mapping[str, Any]) -> Caller:
    """Set `caller` from the key in a request's headers; raises 401 unless the key is valid."""
    share_reading()
    text = key_in_headers(environ.get("HTTP_APIKEY"), environ.get("HTTP_AUTHORIZATION"))
    now = clock.now()
    return set_caller(valid_key(text, now), now)


def key_in_headers(apikey: str | None, authorization: str | None) -> str:
    """The key in these two headers; empty if they contain no key or different keys.

    A header without a key is ignored, since some generated clients send both headers, one of them
    empty.
    """
    credentials = authorization.split(",") if authorization else []
    if not any(text.lower().split()[:1] == [BEARER] for text in credentials):
        # Ignore credentials of another scheme, such as Basic, which are meant for a proxy.
        return apikey or ""
    # If a header was sent twice, gunicorn joins the values with a comma, which no key contains.
    if len(credentials) > 1:
        return ""
    key = credentials[0].strip(" ")[len(BEARER) :].strip(" ")
    if key and apikey and key != apikey:
        return ""
    return key or apikey or ""


def valid_key(text: str, now: str) -> KeyRow:
    """The valid key with this text; raises 401, without the reason, if there is none."""
    key = find(_KEY, digest(text), now) if is_well_formed(text) else None
    if key is None:
        raise invalid_key()
    return key


def set_caller(key: KeyRow, now: str) -> Caller:
    """Set the owner of `key` as the caller of this request, and record the use of the key."""
    key_uses[key.id] = now
    caller = Caller(key.user_id, key.agent_id, key.id, key.name, key.user_name, key.access)
    g.caller = caller
    return caller


def authenticate_link(token: str) -> None:
    """Set `caller` from the token of a link; raises 404, without the reason, unless it is valid."""
    share_reading()
    link = require(find(_LINK, digest(token), clock.now()), "link")
    g.caller = Caller(link.user_id, None, link.id, LINK, link.user_name, READ, link.task_id)


def still_valid() -> KeyRow | None:
    """The key or link of this request, or None if it is no longer valid."""
    return find(_LINK_BY_ID if caller.task_id else KEY_BY_ID, caller.key_id, clock.now())


def current_caller() -> Caller:
    request_caller: Caller = g.caller
    return request_caller


caller = cast(Caller, LocalProxy(current_caller))
