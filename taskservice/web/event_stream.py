"""Streams of events: each holds a thread for long, so that only so many are let in."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from flask import Response, request, stream_with_context

from taskservice import resources
from taskservice.auth.authentication import is_key_valid
from taskservice.contract.error_codes import OVERLOADED
from taskservice.database import watcher
from taskservice.database.watcher import WaitSlots
from taskservice.openapi.operation import EVENTS
from taskservice.problems import Problem
from taskservice.web import task_events
from taskservice.web.long_poll import client_is_here
from taskservice.web.task_events import Event

RETRY_SECONDS = 5

HEADERS = {"X-Accel-Buffering": "no"}


def respond(events: Iterator[Event], is_admitted: Callable[[], bool] = is_key_valid) -> Response:
    """Events as they happen, for as long as `is_admitted`; 503 when too many listen already."""
    if request.method == "HEAD":
        # An iterator, since an empty text would have a length.
        return Response(iter(()), headers=HEADERS, content_type=EVENTS)
    held = ExitStack()
    if not held.enter_context(resources.find(WaitSlots).acquire()):
        headers = {"Retry-After": str(RETRY_SECONDS)}
        raise Problem(503, "Too many follow already", code=OVERLOADED, headers=headers)
    text = stream_with_context(task_events.as_text(_while_heard(events, is_admitted)))
    response = Response(text, headers=HEADERS, content_type=EVENTS)
    response.call_on_close(held.close)
    return response


def _while_heard(events: Iterator[Event], is_admitted: Callable[[], bool]) -> Iterator[Event]:
    asked = time.monotonic()
    for event in events:
        if isinstance(event, task_events.Quiet) and not client_is_here():
            return
        # A stream may last for days; a key that was revoked meanwhile hears no more.
        if time.monotonic() - asked >= watcher.TURN_SECONDS:
            if not is_admitted():
                return
            asked = time.monotonic()
        yield event
