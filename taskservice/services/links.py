"""Links with which everyone can look at one task: created, listed and revoked."""

import secrets
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from taskservice import auth
from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.models import Link
from taskservice.database.transactions import read_all, transaction
from taskservice.database.types import AnyRow, AnySelect, Identifier, Timestamp
from taskservice.errors import Problem, invalid, require
from taskservice.schemas.tasks import LINK_COLUMNS
from taskservice.services import tasks
from taskservice.terms import LINK_DAYS, MAX_LINK_DAYS, MAX_LINKS, TOO_MANY_LINKS

_TOKEN_BYTES = 24
_DAY_SECONDS = 86_400.0
_OF_TASK = Link.task_id == bindparam("task_id", type_=Identifier)
_LIVE: AnySelect = (
    select(*LINK_COLUMNS)
    .where(_OF_TASK, Link.expires_at > bindparam("now", type_=Timestamp()))
    .order_by(Link.created_at, Link.id)
)


def create(caller: Caller, task_id: str, expires_at: str | None) -> Any:
    """Create a link to a task; returns it with its `token`. Raises 404, 409 and 422."""
    now = clock.now()
    expires_at = expires_at or clock.now(LINK_DAYS * _DAY_SECONDS)
    if not now < expires_at <= clock.now(MAX_LINK_DAYS * _DAY_SECONDS):
        raise invalid({"expiresAt": [f"Must be within the next {MAX_LINK_DAYS} days."]})
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    link = {
        "id": clock.new_id(),
        "task_id": task_id,
        "digest": auth.digest(token),
        "created_at": now,
        "expires_at": expires_at,
    }
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        connection.execute(delete(Link).where(Link.task_id == task_id, Link.expires_at <= now))
        if len(connection.execute(_LIVE, {"task_id": task_id, "now": now}).all()) >= MAX_LINKS:
            raise Problem(409, f"The task has {MAX_LINKS} links already", code=TOO_MANY_LINKS)
        connection.execute(insert(Link), link)
    return SimpleNamespace(**link, token=token)


def list_all(caller: Caller, task_id: str) -> Sequence[AnyRow]:
    """The links to a task that have not expired, oldest first. Raises 404."""
    tasks.get_version(caller, task_id)
    return read_all(_LIVE, task_id=task_id, now=clock.now())


def revoke(caller: Caller, task_id: str, link_id: str) -> AnyRow:
    """Delete a link to a task; what shows the task by it ends soon. Raises 404."""
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        here = (Link.task_id == task_id, Link.id == link_id)
        link = connection.execute(delete(Link).where(*here).returning(*LINK_COLUMNS)).one_or_none()
    return require(link, "link")
