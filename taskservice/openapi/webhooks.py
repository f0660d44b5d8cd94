"""The section `webhooks` of the OpenAPI document: the requests to receivers."""

from taskservice import terms
from taskservice.openapi.components import Object, value
from taskservice.schemas import examples
from taskservice.webhooks.retry_schedule import MAX_RETRY_AFTER, SCHEDULE

_HEADERS = {
    "webhook-id": value(
        "The delivery's ID, which is the same in every attempt, so that a receiver can detect "
        "duplicates.",
        examples.DELIVERY,
        format="uuid",
    ),
    "webhook-timestamp": value(
        "The time of this attempt, as a Unix timestamp in seconds.",
        1_795_527_360,
        type="integer",
        minimum=0,
    ),
    "webhook-signature": value(
        "Signatures separated by spaces, one for each valid secret. A signature is `v1,` and the "
        "HMAC-SHA256 of `ID.timestamp.body` in base64.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        pattern="^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$",
    ),
}

_DESCRIPTION = f"""\
The service sends this request to the task's `callback` when the task becomes `complete` or `error`.
It signs the request with the user's callback secret, as Standard Webhooks 1.0 describes. The body
is the task as GET returns it at that time, with at most {terms.WEBHOOK_LINES:,} lines and
{terms.WEBHOOK_LOG_BYTES // 1024} KiB from the end of its log.

If the response is not 2xx, the service sends the webhook up to {len(SCHEDULE)} more times within
about {round(sum(SCHEDULE) / 86_400)} days. After the last attempt, the webhook has failed. A
receiver can get a webhook more than once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    example = example | {"status": terms.COMPLETE, "output": {"sum": 15}, "endedBy": "laptop"}
    example |= {"claimedAt": examples.TIME, "finishedAt": examples.LATER}
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example}
    again = (
        "The webhook is sent again later. Redirects are not followed, and count as failed attempts."
    )
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"When to try again: seconds or an HTTP date, at most {hours:g} h ahead.",
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
