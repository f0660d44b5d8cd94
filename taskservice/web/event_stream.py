"""Streams of events; their number is limited, since each one holds a thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import takewhile

from flask import Response, request, stream_with_context

from taskservice import resources
from taskservice.auth import caller, is_key_valid
from taskservice.database import watcher
from taskservice.database.watcher import WaitSlots
from taskservice.errors import Problem
from taskservice.openapi.operation import EVENTS
from taskservice.terms import OVERLOADED
from taskservice.web import task_events
from taskservice.web.task_events import Event
from taskservice.web.waiting import is_client_connected

RETRY_SECONDS = 5

HEADERS = {"X-Accel-Buffering": "no"}


def respond(
    events: Iterator[Event],
    is_allowed: Callable[[], bool] = is_key_valid,
    *,
    has_times: bool = False,
) -> Response:
    """Events as they happen, while `is_allowed` returns true; raises 503 without a free slot."""
    if request.method == "HEAD":
        # An iterator, since an empty string would set Content-Length.
        return Response(iter(()), headers=HEADERS, content_type=EVENTS)
    held = ExitStack()
    slot = held.enter_context(resources.find(WaitSlots).acquire(caller.user_id))
    if slot is None:
        headers = {"Retry-After": str(RETRY_SECONDS)}
        raise Problem(503, "Too many streams and waits are open", code=OVERLOADED, headers=headers)
    own = takewhile(lambda _event: not slot.is_over, _while_allowed(events, is_allowed))
    text = stream_with_context(task_events.as_text(own, has_times=has_times))
    response = Response(text, headers=HEADERS, content_type=EVENTS)
    response.call_on_close(held.close)
    return response


def _while_allowed(events: Iterator[Event], is_allowed: Callable[[], bool]) -> Iterator[Event]:
    checked_at = time.monotonic()
    for event in events:
        if isinstance(event, task_events.Quiet) and not is_client_connected():
            return
        # A stream may last for days, and the key may be revoked in that time.
        if time.monotonic() - checked_at >= watcher.CLIENT_CHECK_SECONDS:
            if not is_allowed():
                return
            checked_at = time.monotonic()
        yield event
