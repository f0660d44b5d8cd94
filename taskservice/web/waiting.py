"""Answers that wait for a change, as `Prefer: wait=s` (RFC 7240) asks."""

import socket
from collections.abc import Callable
from typing import TypeVar

from flask import Response, after_this_request, request
from werkzeug.http import parse_list_header

from taskservice import resources
from taskservice.auth import caller, require_valid_key
from taskservice.context import current
from taskservice.database import watcher
from taskservice.database.transactions import end_shared_reading
from taskservice.database.types import TaskRow
from taskservice.database.watcher import WaitSlots
from taskservice.errors import Problem
from taskservice.services import starts, tasks

T = TypeVar("T")

MAX_SECONDS = 60
# When to repeat a wait for which no slot was free.
RETRY_SECONDS = 1


def until(read: Callable[[], T], is_enough: Callable[[T], bool]) -> T:
    """What `read` returns: immediately, or with `Prefer: wait` as soon as it `is_enough`."""
    seconds = _preferred_seconds()
    found, has_waited = within(seconds, read, is_enough)
    if has_waited:
        after_this_request(_with_header("Preference-Applied", f"wait={seconds}"))
    elif seconds and not is_enough(found):
        after_this_request(_with_header("Retry-After", str(RETRY_SECONDS)))
    return found


def within(seconds: float, read: Callable[[], T], is_enough: Callable[[T], bool]) -> tuple[T, bool]:
    """What `read` returns as soon as it `is_enough`, or else after `seconds`; whether it waited.

    It does not if the threads of this process that may wait all do. It waits no longer when the
    client has gone, and raises 401 when the key is no longer valid. It holds no connection.
    """
    if not seconds:
        return read(), False
    end_shared_reading()
    with resources.find(WaitSlots).acquire(caller.user_id) as slot:
        if slot is None:
            return read(), False
        found = watcher.wait_until(
            lambda: _read_with_valid_key(read),
            is_enough,
            seconds,
            lambda: not slot.is_over and _is_active(),
        )
        return found, True


def _read_with_valid_key(read: Callable[[], T]) -> T:
    """What `read` returns or raises; an agent that is gone may have taken the key with it: 401."""
    try:
        return read()
    except Problem:
        require_valid_key()
        raise


def for_claim(agent_id: str, key: str | None) -> tuple[TaskRow | None, bool]:
    """The task that the caller claims now, or None, and whether an earlier claim is repeated."""

    def claim_if_any() -> tuple[TaskRow | None, bool]:
        # Reading is cheap; a claim waits for its turn to write. An earlier claim with the same
        # key, whose answer was lost, may still wait, and be the one that gets the task.
        has_task = tasks.has_task_for_claim(caller, agent_id, key)
        return starts.claim(caller, agent_id, key) if has_task else (None, False)

    # The first claim also raises 404 for an unknown agent.
    found = starts.claim(caller, agent_id, key)
    return found if found[0] else until(claim_if_any, lambda found: found[0] is not None)


def _is_active() -> bool:
    """Whether to keep waiting; raises 401 when the key has been revoked or has expired."""
    require_valid_key()
    return is_client_connected()


def is_client_connected() -> bool:
    """Whether the client of this request has not closed its connection."""
    client: socket.socket | None = request.environ.get("gunicorn.socket")
    if client is None:
        return True
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _preferred_seconds() -> int:
    """The seconds that `Prefer` asks for; 0 for an invalid one (RFC 7240, section 2)."""
    given = current(request).environ.get("HTTP_PREFER")
    if given is None:
        return 0
    preferences = parse_list_header(given)
    pairs = [each.partition(";")[0].partition("=") for each in preferences]
    # The names are case-insensitive, and of several preferences with one name the first counts.
    waits = (value.strip(' \t"') for name, _, value in pairs if name.strip().lower() == "wait")
    text = next(waits, "")
    is_number = text.isascii() and text.isdigit()
    # Python refuses to read a number of thousands of digits.
    return min(int(text.lstrip("0")[:9] or 0), MAX_SECONDS) if is_number else 0


def _with_header(name: str, value: str) -> Callable[[Response], Response]:
    def add_header(response: Response) -> Response:
        if response.status_code < 400:
            response.headers[name] = value
        return response

    return add_header
