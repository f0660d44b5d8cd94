"""Streams of events: each holds a thread for long, so that only so many are let in."""

from collections.abc import Iterator

from flask import Response, request, stream_with_context

from taskservice import following, live
from taskservice.api.waits import client_is_here
from taskservice.following import Event
from taskservice.openapi.operation import EVENTS
from taskservice.problems import Problem

RETRY_SECONDS = 5

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def respond(events: Iterator[Event]) -> Response:
    """Events as they happen; raises 503 when too many listen already."""
    if request.method == "HEAD":
        # An iterator, since an empty text would have a length.
        return Response(iter(()), headers=HEADERS, content_type=EVENTS)
    places = live.places()
    if not places.acquire(blocking=False):
        raise Problem(503, "Too many follow already", headers={"Retry-After": str(RETRY_SECONDS)})
    text = stream_with_context(following.as_text(_while_heard(events)))
    response = Response(text, headers=HEADERS, content_type=EVENTS)
    response.call_on_close(places.release)
    return response


def _while_heard(events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, following.Quiet) and not client_is_here():
            return
        yield event
