"""Answers that wait for news, as `Prefer: wait=s` (RFC 7240) asks for."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flask import after_this_request, request
from flask.wrappers import Response
from werkzeug.http import parse_dict_header

from taskservice import resources
from taskservice.auth.authentication import caller, require_valid_key
from taskservice.database import watcher
from taskservice.database.rows import TaskRow
from taskservice.database.watcher import WaitSlots
from taskservice.queries import tasks as task_queries
from taskservice.services import claims as claim_service

T = TypeVar("T")

MAX_SECONDS = 60


def until(look: Callable[[], T], is_enough: Callable[[T], bool]) -> T:
    """What `look` finds, at once or, if the caller prefers to wait, when it is enough."""
    with _granted_seconds() as seconds:
        if not seconds:
            return look()
        return watcher.wait_until(look, is_enough, seconds, _goes_on)


def for_claim(agent_id: str, key: str | None) -> tuple[TaskRow | None, bool]:
    """A task that is now the caller's, and whether it was before; None when none came in time."""

    def claim_if_any() -> TaskRow | None:
        # A look costs little; a claim waits for its turn to write.
        if not task_queries.has_waiting_task(caller, agent_id):
            return None
        return claim_service.claim(caller, agent_id, key)[0]

    # The first one also finds that there is no such agent.
    task, replayed = claim_service.claim(caller, agent_id, key)
    return task or until(claim_if_any, lambda task: task is not None), replayed


def _goes_on() -> bool:
    """Asked before each further look; raises 401 when the key has been revoked or has expired."""
    require_valid_key()
    return client_is_here()


def client_is_here() -> bool:
    """Whether whoever sent this request still listens."""
    client: socket.socket | None = request.environ.get("gunicorn.socket")
    if client is None:
        return True
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextmanager
def _granted_seconds() -> Iterator[int]:
    """How long to wait: as long as preferred, or not at all where too many wait already."""
    seconds = _preferred_seconds()
    if not seconds:
        yield 0
        return
    with resources.find(WaitSlots).acquire() as is_acquired:
        if is_acquired:
            after_this_request(_applied(seconds))
        yield seconds if is_acquired else 0


def _preferred_seconds() -> int:
    """A preference that cannot be understood is none (RFC 7240, section 2)."""
    preferences = parse_dict_header(request.headers.get("Prefer", ""))
    # Their names have no case.
    given = {name.lower(): value for name, value in preferences.items()}
    text = (given.get("wait") or "").partition(";")[0].strip()
    is_number = text.isascii() and text.isdigit()
    return min(int(text[:9]), MAX_SECONDS) if is_number else 0


def _applied(seconds: int) -> Callable[[Response], Response]:
    def say(response: Response) -> Response:
        if response.status_code < 400:
            response.headers["Preference-Applied"] = f"wait={seconds}"
        return response

    return say
