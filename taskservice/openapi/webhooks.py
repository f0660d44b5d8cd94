"""The section `webhooks` of the OpenAPI document: the requests to receivers."""

from taskservice import terms
from taskservice.openapi.components import Object, value
from taskservice.schemas import examples
from taskservice.webhooks.retry_schedule import MAX_RETRY_AFTER, SCHEDULE

_HEADERS = {
    "webhook-id": value(
        "The delivery's ID, the same in every attempt. A receiver that has seen it before has "
        "already received this webhook.",
        examples.DELIVERY,
        format="uuid",
    ),
    "webhook-timestamp": value(
        "The time of this attempt, in seconds since 1970.", 1_795_527_360, type="integer", minimum=0
    ),
    "webhook-signature": value(
        "One signature for each valid secret, separated by spaces: `v1,` and the HMAC-SHA256, in "
        "base64, of `ID.timestamp.body`.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        pattern="^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$",
    ),
}

_DESCRIPTION = f"""\
Sent as a POST to the task's `callback` when the task becomes `complete` or `error`. It is signed
with the user's callback secret, as Standard Webhooks 1.0 describes. The body is the task as GET
returns it at that time, with the last {terms.WEBHOOK_LINES:,} lines of its log, and at most
{terms.WEBHOOK_LOG_BYTES // 1024} KiB of them.

If the response is not 2xx, the webhook is sent up to {len(SCHEDULE)} more times within about
{round(sum(SCHEDULE) / 86_400)} days; then it has failed. A receiver can get a webhook more than
once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    example = example | {"status": terms.COMPLETE, "output": {"sum": 15}, "endedBy": "laptop"}
    example |= {"claimedAt": examples.TIME, "finishedAt": examples.LATER}
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example}
    again = "Any other response, even a redirect, or no response in time: it is sent again later."
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"Seconds to wait before the next attempt, or a date: at most {hours:g} h.",
        "schema": {"type": "string", "examples": ["120"]},
    }
    operation = {
        "operationId": "taskEnded",
        "tags": ["webhooks"],
        "summary": "A task has ended",
        "description": _DESCRIPTION,
        "security": [],
        "parameters": [
            {"in": "header", "name": name, **header, "required": True}
            for name, header in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "2XX": {"description": "The webhook is delivered."},
            "410": {"description": "The webhook has failed and is not sent again."},
            "default": {"description": again, "headers": {"Retry-After": retry_after}},
        },
    }
    return {"taskEnded": {"post": operation}}
