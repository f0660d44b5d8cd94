"""Shared parts of the OpenAPI document: introduction, parameters, headers, errors."""

from typing import Any, TypeAlias

from taskservice import terms
from taskservice.schemas import examples

Object: TypeAlias = dict[str, Any]


DESCRIPTION = """\
taskservice stores the tasks of agents, with logs that grow while they run, and sends a signed
webhook when a task ends.

Every request to a path below `/api/v1` needs an API key, in the header `apikey: <key>` or
`Authorization: Bearer <key>`; if both are sent, the keys must be equal. A *user key* has full
access to its user's data. An *agent key* is limited to one agent and its tasks; an operation that
needs a user key returns 403. A *read key* can only read: GET and HEAD, except of the callback
secret; all other methods return 403. A resource that the key has no access to returns 404, as if it
did not exist.

Bodies are JSON in UTF-8, read strictly: unknown fields, duplicate keys, NaN, and nesting deeper
than 64 levels are rejected. NUL in a string, `\\u0000` in JSON, becomes U+FFFD. An operation
without a body accepts `{}` and `null` too, and rejects any other body. An unknown query parameter
is rejected, so that a misspelt filter does not return everything. Times are RFC 3339 in UTC with
milliseconds. `Location` and `Link` are relative to the URL of the request.

Every error is `application/problem+json` (RFC 9457); `detail` is a sentence for people, `code` is
for programs. In addition to the listed errors, a method that the path does not support returns 405
with `Allow`, an unsupported expectation returns 417, and an unsupported transfer encoding returns
501. Every path with GET supports HEAD, and every path supports OPTIONS.

Every response has an `X-Request-Id`: the value that the request sent, if it has at most 128 visible
ASCII characters, else a new one. Errors and the service's log contain it too.
"""

TAGS = {
    "tasks": "A task is one execution of an agent: its input, log, status and output.",
    "logs": "The lines of a task's log, which grows while the task runs.",
    "questions": "Questions that agents ask people before they continue.",
    "deliveries": "The webhooks of finished tasks, and the attempts to send them.",
    "links": "Links with which everyone can look at one task.",
    "agents": "Named programs and workflows, whose executions are tasks.",
    "attention": "Questions, and trouble with agents, tasks, callbacks and hooks.",
    "hooks": "Addresses that are notified of events of agents.",
    "users": "The person or team that owns tasks, agents and keys.",
    "keys": "The API keys of a user, and the secret that signs webhooks.",
    "operations": "Health and metrics, for operators. No key is needed.",
    "docs": "This documentation. No key is needed.",
    "webhooks": "Requests that the service sends to the receivers of its users.",
}


def value(description: str, *samples: Any, required: bool = False, **schema: Any) -> Object:
    """A parameter or header with its JSON Schema; `required` if each success has it."""
    schema |= {"examples": list(samples)} if samples else {}
    schema = {"type": "string", **schema}
    return {"description": description, "required": required, "schema": schema}


PATH_PARAMETERS = {
    "taskId": value("The task's ID.", examples.TASK, format="uuid"),
    "agentId": value("The agent's ID.", "summarizer", pattern=f"^{terms.AGENT_ID.pattern}$"),
    "hookId": value("The hook's ID.", examples.HOOK, format="uuid"),
    "deliveryId": value("The delivery's ID.", examples.DELIVERY, format="uuid"),
    "questionId": value("The question's ID.", examples.QUESTION, format="uuid"),
    "linkId": value("The link's ID.", examples.LINK, format="uuid"),
    "keyId": value("The key's ID.", examples.KEY, format="uuid"),
}

REQUEST_HEADERS = {
    "Idempotency-Key": value(
        "Makes the request safe to repeat: a repetition with the same key and body creates and "
        "claims nothing, and returns the current state of the first result. The same key with "
        "another body returns 422. Deleting the task frees the key.",
        "nightly 2026-11-24",
        minLength=1,
        maxLength=terms.MAX_IDEMPOTENCY_KEY,
    ),
    "Prefer": value("`wait=s`: wait up to `s` seconds for a change, at most 60.", "wait=1"),
    "Last-Event-ID": value(
        "Resumes after the line with this number: the `id` of the last event received.",
        "42",
        pattern="^[0-9]*$",
    ),
    "If-Match": value(
        "`*`: change the task only if it exists. Its ETag is weak and never matches.", "*"
    ),
    "If-None-Match": value(
        "ETags of earlier responses: the request returns 304 if one is still current.", 'W/"3-0"'
    ),
}

RESPONSE_HEADERS = {
    "Location": value(
        "The URL of the new resource, relative to the request.",
        f"task/{examples.TASK}",
        format="uri-reference",
        required=True,
    ),
    "Link": value(
        'The next page, as `<?...>; rel="next"`, relative to the request; absent on the last page.',
        '<?limit=50&cursor=WyI...>; rel="next"',
    ),
    "ETag": value("The version of the response.", 'W/"3-0"'),
    "Idempotency-Replayed": value(
        "`true` if an earlier request with the same Idempotency-Key has done the work.",
        enum=["true"],
    ),
    "Callback-Status": value(
        "The state of the webhook: `delivered`; `pending`: it will be retried; `failed`: it will "
        "not be retried; `none`: there was nothing to send.",
        enum=["delivered", "pending", "failed", "none"],
        required=True,
    ),
    "Preference-Applied": value(
        "The granted wait, as `wait=s`; replaced by `Retry-After` if too many requests are waiting "
        "already.",
        "wait=1",
    ),
    "X-Accel-Buffering": value("Turns off the buffering of nginx.", enum=["no"], required=True),
    "Retry-After": value("Seconds to wait before trying again.", 2, type="integer", minimum=0),
    "WWW-Authenticate": value(
        "The authentication scheme.", enum=['Bearer realm="taskservice"'], required=True
    ),
    "X-Request-Id": value(
        "The ID of the request: the value that it sent, or a new one.",
        examples.REQUEST,
        required=True,
    ),
}

# The errors that several operations share: the names of their components.
REFUSALS = {
    400: "Unreadable", 401: "InvalidKey", 403: "NotAllowed", 404: "NotFound", 406: "NotAcceptable",
    408: "TooSlow", 412: "PreconditionFailed", 413: "TooLarge", 414: "UrlTooLong",
    415: "WrongContentType", 422: "Invalid", 431: "HeadersTooLarge", 500: "Failure", 503: "Busy",
}  # fmt: skip
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)  # any request can get these
