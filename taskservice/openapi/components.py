"""Shared parts of the OpenAPI document: introduction, parameters, headers, errors."""

from typing import Any, TypeAlias

from taskservice import terms
from taskservice.schemas import examples

Object: TypeAlias = dict[str, Any]


DESCRIPTION = """\
taskservice stores the tasks of agents, with logs that grow while they run, and sends a signed
webhook when a task ends.

Every request to a path under `/api/v1` needs an API key, in the header `apikey: <key>` or
`Authorization: Bearer <key>`. If a request has both headers, the keys must be equal. A *user key*
has full access to its user's data. An *agent key* is limited to one agent and its tasks; an
operation that needs a user key returns 403. A *read key* can read everything except the callback
secret, with GET and HEAD; nearly all other methods return 403. A resource that the key has no
access to returns 404, as if it did not exist.

Bodies are JSON in UTF-8. They are checked strictly: unknown fields, duplicate keys, NaN, and
nesting deeper than 64 levels are rejected. NUL in a string, which JSON writes as `\\u0000`, becomes
U+FFFD. An operation that takes no body accepts an empty body, `{}` and `null`. An unknown query
parameter is rejected, so that a misspelt filter does not return everything. Times are in RFC 3339,
in UTC with milliseconds. `Location` and `Link` are relative to the URL of the request.

Every error is `application/problem+json` (RFC 9457): `detail` describes it for people, and `code`
names it for programs. An operation can return these errors in addition to those that it lists: 405
with `Allow` for a method that the path does not support, 417 for an unsupported expectation, and
501 for an unsupported transfer encoding. Every path with GET supports HEAD, and every path supports
OPTIONS.

Every response has an `X-Request-Id`. It is the value that the request sent, if this value has at
most 128 visible ASCII characters; otherwise, it is a new ID. Errors and the service's log contain
this ID too.
"""

TAGS = {
    "tasks": "A task is one execution of an agent: its input, log, status and output.",
    "logs": "The lines of a task's log, which grows while the task runs.",
    "questions": "Questions that agents ask people before they continue.",
    "deliveries": "The webhooks of finished tasks, and the attempts to send them.",
    "links": "Links that show one task to anyone who has the link.",
    "agents": "Named programs and workflows, whose executions are tasks.",
    "attention": "Open questions, and problems with agents, tasks, callbacks and hooks.",
    "hooks": "Addresses to which the service sends the events of agents.",
    "users": "The person or team that owns tasks, agents and keys.",
    "keys": "The API keys of a user, and the secret that signs webhooks.",
    "operations": "Health and metrics, for operators. No key is needed.",
    "docs": "This documentation. No key is needed.",
    "webhooks": "Requests that the service sends to the receivers of its users.",
}


def value(description: str, *samples: Any, required: bool = False, **schema: Any) -> Object:
    """A parameter or header with its JSON Schema; `required` if it is always present."""
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
        "Makes the request safe to repeat. A repeated request with the same key and body creates "
        "and claims nothing: it returns what the first request created or claimed, in its current "
        "state. The same key with another body returns 422. Deleting the task frees the key.",
        "nightly 2026-11-24",
        minLength=1,
        maxLength=terms.MAX_IDEMPOTENCY_KEY,
    ),
    "Prefer": value("`wait=s`: wait up to `s` seconds for a change, at most 60.", "wait=1"),
    "Last-Event-ID": value(
        "The `id` of the last event that the client received: the number of a line. The stream "
        "resumes after this line.",
        "42",
        pattern="^[0-9]*$",
    ),
    "If-None-Match": value(
        "ETags of earlier responses: the request returns 304 if one of them is still current.",
        'W/"3-0"',
    ),
}

RESPONSE_HEADERS = {
    "Location": value(
        "The URL of the new resource, relative to the URL of the request.",
        f"task/{examples.TASK}",
        format="uri-reference",
        required=True,
    ),
    "Link": value(
        'The URL of the next page, as `<?...>; rel="next"`, relative to the URL of the request; '
        "absent on the last page.",
        '<?limit=50&cursor=WyI...>; rel="next"',
    ),
    "ETag": value("The version of the content.", 'W/"3-0"'),
    "Idempotency-Replayed": value(
        "`true` if this response repeats the result of an earlier request with the same "
        "Idempotency-Key.",
        enum=["true"],
    ),
    "Callback-Status": value(
        "The state of the webhook: `delivered`; `pending`: it will be retried; `failed`: it will "
        "not be retried; `none`: the request caused no webhook.",
        enum=["delivered", "pending", "failed", "none"],
        required=True,
    ),
    "Preference-Applied": value(
        "The granted wait in seconds, as `wait=s`. If too many requests are waiting already, the "
        "response has `Retry-After` instead.",
        "wait=1",
    ),
    "X-Accel-Buffering": value(
        "Turns off response buffering in nginx.", enum=["no"], required=True
    ),
    "Retry-After": value(
        "Seconds to wait before the request is repeated.", 2, type="integer", minimum=0
    ),
    "WWW-Authenticate": value(
        "The authentication scheme.", enum=['Bearer realm="taskservice"'], required=True
    ),
    "X-Request-Id": value(
        "The ID of the request: the value that the request sent, or a new ID.",
        examples.REQUEST,
        required=True,
    ),
}

# Status -> the name of the component for an error that several operations share.
REFUSALS = {
    400: "Unreadable", 401: "InvalidKey", 403: "NotAllowed", 404: "NotFound", 406: "NotAcceptable",
    408: "TooSlow", 413: "TooLarge", 414: "UrlTooLong", 415: "WrongContentType", 422: "Invalid",
    431: "HeadersTooLarge", 500: "Failure", 503: "Busy",
}  # fmt: skip
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)  # errors that any request can cause
