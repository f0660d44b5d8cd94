"""What the document says of all operations alike: headers, errors, and how to begin."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from taskservice.contract.terms import AGENT_ID, MAX_IDEMPOTENCY_KEY
from taskservice.schemas.fields import EXAMPLE_KEY, EXAMPLE_REQUEST, EXAMPLE_TASK

DESCRIPTION = """\
Keeps the results of agents: their tasks, the logs that grow while they run, and a signed
callback for each task that ends.

Every request below `/api/v1` carries an API key, in the header `apikey: <key>` or in
`Authorization: Bearer <key>`; both at once are 401. A *user key* may do everything with its user's
things; an *agent key* sees and reports on the tasks of one agent, and is refused with 403 where an
operation wants a user key. What a key may not see does not exist: 404.

Bodies are JSON in UTF-8, read strictly: no unknown fields, no duplicate keys, no NaN, nothing
nested deeper than 64. Where an operation takes no body, none and `{}` are the same, and anything
else is refused. An unknown query parameter is refused too, so that a misspelt filter does
not return everything. Times are RFC 3339 in UTC with milliseconds. `Location` and `Link` are
relative to the request's own URL.

Every error is `application/problem+json` (RFC 9457); its `detail` is one sentence to act on, its
`code` the same for programs.
Beside those listed, a method that a path does not know is 405 with `Allow`, and what is no proper
HTTP is refused by the server itself with 417 or 501. Every GET answers HEAD too, and every path
OPTIONS.

Every answer has an `X-Request-Id`: the request's own, if it sent one of up to 128 visible ASCII
characters, else a new one. Problems and the service's log have it too.
"""

TAGS = {
    "tasks": "One execution of an agent each, and what it left behind.",
    "logs": "The lines of a task, which grow while it runs.",
    "deliveries": "The webhooks of tasks that have ended, with each attempt to post them.",
    "agents": "The programs that do the work.",
    "users": "The person or team that things belong to.",
    "keys": "A user's own API keys, and the secret that signs the webhooks.",
    "operations": "For operators of the service. No key is needed.",
    "docs": "This documentation. No key is needed.",
}


class Parameter(NamedTuple):
    """What there is to say of a parameter or a header; `schema` is JSON Schema's."""

    description: str
    schema: dict[str, Any]
    # Of an answer's header: whether every good answer has it.
    always: bool = False


def _text(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


PATH_PARAMETERS = {
    "task_id": Parameter("The task's id.", _text(format="uuid", examples=[EXAMPLE_TASK])),
    "agent_id": Parameter(
        "The agent's id.", _text(pattern=f"^{AGENT_ID.pattern}$", examples=["summarizer"])
    ),
    "key_id": Parameter("The key's id.", _text(format="uuid", examples=[EXAMPLE_KEY])),
}

REQUEST_HEADERS = {
    "Idempotency-Key": Parameter(
        "Makes the request safe to repeat: with the same key and body, nothing is started or "
        "claimed again, and the answer is the task as it now is; another body is 422. Deleting "
        "the task frees the key.",
        _text(minLength=1, maxLength=MAX_IDEMPOTENCY_KEY, examples=["nightly 2026-11-24"]),
    ),
    "Prefer": Parameter(
        "`wait=s`: the seconds, at most 60, that the answer may wait for a change.",
        _text(examples=["wait=1"]),
    ),
    "Last-Event-ID": Parameter(
        "Resumes after the line with this number: the `id` of the last event received.",
        _text(pattern="^[0-9]*$", examples=["42"]),
    ),
    "If-None-Match": Parameter(
        "ETags that the caller has: if one is current, the answer is 304.",
        _text(examples=['W/"3-0"']),
    ),
}

ANSWER_HEADERS = {
    "Location": Parameter(
        "The URL of the new task, relative to the request.",
        _text(format="uri-reference", examples=[f"task/{EXAMPLE_TASK}"]),
        always=True,
    ),
    "Link": Parameter(
        'The next page, as `<?...>; rel="next"`, relative to the request; none on the last page.',
        _text(examples=['<?limit=50&cursor=WyI...>; rel="next"']),
    ),
    "ETag": Parameter("The version of what is answered.", _text(examples=['W/"3-0"'])),
    "Idempotency-Replayed": Parameter(
        "`true` where an earlier request with the same Idempotency-Key had started or claimed it.",
        _text(enum=["true"]),
    ),
    "Callback-Status": Parameter(
        "The outcome of the callback: `delivered`; `pending`, it will be tried again; `failed`, "
        "it will not; `none`, there was none to send.",
        _text(enum=["delivered", "pending", "failed", "none"]),
        always=True,
    ),
    "Preference-Applied": Parameter(
        "The wait that was granted, as `wait=s`; absent when too many requests wait already.",
        _text(examples=["wait=1"]),
    ),
    "X-Accel-Buffering": Parameter(
        "Tells nginx not to buffer events.", _text(enum=["no"]), always=True
    ),
    "Retry-After": Parameter(
        "Seconds after which to try again.", {"type": "integer", "minimum": 0, "examples": [2]},
        always=True,
    ),
    "X-Request-Id": Parameter(
        "The request's id: taken from the request, or made.",
        _text(examples=[EXAMPLE_REQUEST]),
        always=True,
    ),
}  # fmt: skip


GOOD = {
    200: "Success.",
    201: "Created.",
    202: "Accepted.",
    204: "No content.",
    304: "Not modified.",
}


class Refusal(NamedTuple):
    """An error that operations have in common, under the name of its component."""

    name: str
    description: str
    detail: str
    more: Mapping[str, Any] = {}


REFUSALS = {
    400: Refusal(
        "Unreadable",
        "The request cannot be read.",
        "The body cannot be read as JSON: the same key twice in one object",
    ),
    401: Refusal(
        "InvalidKey",
        "The API key is missing, unknown, revoked, expired, sent twice, or in both headers.",
        "API key is invalid",
    ),
    403: Refusal(
        "NotForAgents",
        "The key is an agent key, and the operation wants a user key.",
        "An agent key may not do this; use a user key",
    ),
    404: Refusal("NotFound", "The key may see no such thing.", "Task's ID is not found"),
    406: Refusal(
        "NotAcceptable",
        "`Accept` allows nothing that the operation can answer with.",
        "The answer can be application/json only",
    ),
    408: Refusal(
        "TooSlow",
        "Head and body of the request did not arrive within 30 s.",
        "The request did not arrive in time",
    ),
    413: Refusal("TooLarge", "The body is too large.", "The request's body is too large"),
    414: Refusal("UrlTooLong", "The URL is too long.", "The request line is too long"),
    415: Refusal(
        "WrongContentType",
        "The body's type is not one that the operation reads.",
        "The body must be application/json",
    ),
    422: Refusal(
        "Invalid",
        "The request is invalid: `errors` says where.",
        "The request is invalid: see `errors`",
        {"errors": {"stauts": ["Unknown field."]}},
    ),
    431: Refusal(
        "HeadersTooLarge",
        "The headers are too many or too long.",
        "The headers are too many or too long",
    ),
    500: Refusal("Failure", "The service failed.", "The service failed; its log says more"),
    503: Refusal(
        "Busy",
        "The service cannot do it now, and has changed nothing; try again.",
        "The database is busy, full or out of reach",
    ),
}

# Any request may be refused so.
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)

TEXT_EXAMPLE = "Synopsis: Running\n15 mails\n"
