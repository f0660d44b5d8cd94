"""The webhooks of the OpenAPI document: what the service posts, and what an answer to it means."""

from taskservice.openapi.components import Object
from taskservice.schemas.fields import EXAMPLE_DELIVERY, EXAMPLE_LATER, EXAMPLE_MOMENT
from taskservice.terms import COMPLETE, WEBHOOK_LINES, WEBHOOK_LOG_BYTES
from taskservice.webhooks.schedule import MAX_RETRY_AFTER, SCHEDULE

NAME = "taskEnded"
TAG = "webhooks"

_SECONDS_OF_DAY = 86_400

_HEADERS = {
    "webhook-id": (
        "The delivery's id, the same at every attempt: a receiver that has seen it before has "
        "seen this webhook.",
        {"type": "string", "format": "uuid", "examples": [EXAMPLE_DELIVERY]},
    ),
    "webhook-timestamp": (
        "When this attempt began, in seconds since 1970.",
        {"type": "integer", "minimum": 0, "examples": [1_795_527_360]},
    ),
    "webhook-signature": (
        "One signature for each secret that is still valid, separated by blanks: `v1,` and the "
        "HMAC-SHA256, in base64, of id, timestamp and body with full stops between them.",
        {
            "type": "string",
            "pattern": "^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$",
            "examples": ["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
        },
    ),
}

_DESCRIPTION = f"""\
Posted to the task's `callback` when the task becomes `complete` or `error`, and signed as Standard
Webhooks 1.0 describes, with the user's callback secret. The body is the task as GET returns it at
that moment, with the last {WEBHOOK_LINES:,} lines of its log, and at most
{WEBHOOK_LOG_BYTES // 1024} KiB of them.

A webhook that is not answered with 2xx is posted up to {len(SCHEDULE)} more times, within about
{round(sum(SCHEDULE) / _SECONDS_OF_DAY)} days, and has then failed. A receiver can get it more than
once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    ended = {
        "status": COMPLETE,
        "output": {"sum": 15},
        "claimedAt": EXAMPLE_MOMENT,
        "finishedAt": EXAMPLE_LATER,
        "endedBy": "laptop",
    }
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example | ended}
    operation = {
        "operationId": NAME,
        "tags": [TAG],
        "summary": "A task has ended",
        "description": _DESCRIPTION,
        "security": [],
        "parameters": [
            {"in": "header", "name": name, "required": True, "description": text, "schema": schema}
            for name, (text, schema) in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _answers(),
    }
    return {NAME: {"post": operation}}


def _answers() -> Object:
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"Seconds, or a date, to wait before the next attempt: at most {hours:g} h.",
        "schema": {"type": "string", "examples": ["120"]},
    }
    again = "Any other answer, a redirect too, and no answer in time: it is posted again later."
    return {
        "2XX": {"description": "The webhook is delivered."},
        "410": {"description": "The webhook has failed, and is not posted again."},
        "default": {"description": again, "headers": {"Retry-After": retry_after}},
    }
