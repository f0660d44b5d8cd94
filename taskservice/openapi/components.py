"""The parts of the OpenAPI document that operations share: introduction, headers, errors."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from taskservice.schemas.fields import (
    EXAMPLE_KEY,
    EXAMPLE_QUESTION,
    EXAMPLE_REQUEST,
    EXAMPLE_TASK,
)
from taskservice.terms import AGENT_ID, MAX_IDEMPOTENCY_KEY

Object: TypeAlias = dict[str, Any]

DESCRIPTION = """\
taskservice keeps the tasks of agents, with logs that grow while they run, and sends a signed
callback when a task ends.

Every request below `/api/v1` carries an API key, in the header `apikey: <key>` or in
`Authorization: Bearer <key>`; in both, it must be the same. A *user key* may do everything with the
things of its user. An *agent key* sees and reports the tasks of one agent; an operation that needs
a user key answers it with 403. What a key may not see does not exist for it: 404.

Bodies are JSON in UTF-8, read strictly: no unknown fields, no duplicate keys, no NaN, nothing
nested deeper than 64. NUL in a string, `\\u0000` in JSON, becomes U+FFFD. An operation that takes
no body accepts `{}` and `null` too, and refuses any other body. An unknown query parameter is
refused, so that a misspelt filter does not return everything. Times are RFC 3339 in UTC with
milliseconds. `Location` and `Link` are relative to the request's own URL.

Every error is `application/problem+json` (RFC 9457); its `detail` is a sentence for a
person, its `code` a word for a program.
Beside the listed errors, a method that a path does not have is 405 with `Allow`, and the server
answers an unsupported expectation with 417 and an unsupported transfer coding with 501. Every path
with GET has HEAD too, and every path has OPTIONS.

Every answer has an `X-Request-Id`: the one that the request sent, if it has at most 128 visible
ASCII characters, else a new one. Problems and the log of the service contain it too.
"""

TAGS = {
    "tasks": "A task is one execution of an agent: its input, log, status and output.",
    "logs": "The lines of a task, which grow while it runs.",
    "questions": "What agents ask people before they go on.",
    "deliveries": "The webhooks of tasks that have ended, and each attempt to send them.",
    "agents": "The programs that do the work.",
    "users": "The person or team that owns tasks, agents and keys.",
    "keys": "The API keys of a user, and the secret that signs the webhooks.",
    "operations": "Health and metrics, for operators. No key is needed.",
    "docs": "This documentation. No key is needed.",
    "webhooks": "Requests that the service makes itself, to the receivers of its users.",
}


class Parameter(NamedTuple):
    """The description of a parameter or header; `schema` is a JSON Schema."""

    description: str
    schema: dict[str, Any]
    # For a header of an answer: whether every successful answer has it.
    always: bool = False


def _text(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


PATH_PARAMETERS = {
    "task_id": Parameter("The task's id.", _text(format="uuid", examples=[EXAMPLE_TASK])),
    "agent_id": Parameter(
        "The agent's id.", _text(pattern=f"^{AGENT_ID.pattern}$", examples=["summarizer"])
    ),
    "question_id": Parameter(
        "The question's id.", _text(format="uuid", examples=[EXAMPLE_QUESTION])
    ),
    "key_id": Parameter("The key's id.", _text(format="uuid", examples=[EXAMPLE_KEY])),
}

REQUEST_HEADERS = {
    "Idempotency-Key": Parameter(
        "Makes the request safe to repeat: the same key and body start or claim nothing again and "
        "answer with the current task; the same key with another body is 422. Deleting the task "
        "frees the key.",
        _text(minLength=1, maxLength=MAX_IDEMPOTENCY_KEY, examples=["nightly 2026-11-24"]),
    ),
    "Prefer": Parameter(
        "`wait=s`: the maximum number of seconds, up to 60, to wait for news.",
        _text(examples=["wait=1"]),
    ),
    "Last-Event-ID": Parameter(
        "Resumes after the line with this number: the `id` of the last event received.",
        _text(pattern="^[0-9]*$", examples=["42"]),
    ),
    "If-Match": Parameter(
        "`*`: change the task only if it exists. Its ETag is weak and never matches here.",
        _text(examples=["*"]),
    ),
    "If-None-Match": Parameter(
        "ETags of earlier answers: the answer is 304 if one is still current.",
        _text(examples=['W/"3-0"']),
    ),
}

ANSWER_HEADERS = {
    "Location": Parameter(
        "The URL of what was created, relative to the request.",
        _text(format="uri-reference", examples=[f"task/{EXAMPLE_TASK}"]),
        always=True,
    ),
    "Link": Parameter(
        'The next page, as `<?...>; rel="next"`, relative to the request; none on the last page.',
        _text(examples=['<?limit=50&cursor=WyI...>; rel="next"']),
    ),
    "ETag": Parameter("The version of the answer.", _text(examples=['W/"3-0"'])),
    "Idempotency-Replayed": Parameter(
        "`true` if an earlier request with the same Idempotency-Key started or claimed the task.",
        _text(enum=["true"]),
    ),
    "Callback-Status": Parameter(
        "The state of the callback: `delivered`; `pending`: it will be tried again; `failed`: it "
        "will not be tried again; `none`: there was nothing to send.",
        _text(enum=["delivered", "pending", "failed", "none"]),
        always=True,
    ),
    "Preference-Applied": Parameter(
        "The granted wait, as `wait=s`; absent, with `Retry-After` in its place, when too many "
        "requests wait already.",
        _text(examples=["wait=1"]),
    ),
    "X-Accel-Buffering": Parameter(
        "Tells nginx not to buffer events.", _text(enum=["no"]), always=True
    ),
    "Retry-After": Parameter(
        "Seconds after which to try again.", {"type": "integer", "minimum": 0, "examples": [2]},
    ),
    "WWW-Authenticate": Parameter(
        "How a key is sent.", _text(enum=['Bearer realm="taskservice"']), always=True
    ),
    "X-Request-Id": Parameter(
        "The id of the request: its own, or a new one.",
        _text(examples=[EXAMPLE_REQUEST]),
        always=True,
    ),
}  # fmt: skip


SUCCESSES = {
    200: "Success.",
    201: "Created.",
    202: "Accepted; it will be done.",
    204: "There is none.",
    304: "Not changed.",
}


class Refusal(NamedTuple):
    """An error that several operations share, with the name of its component."""

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
        "The API key is missing, unknown, revoked, expired, sent twice, or unlike in both headers.",
        "API key is invalid",
    ),
    403: Refusal(
        "NotForAgents",
        "The key is an agent key, and the operation needs a user key.",
        "An agent key may not do this; use a user key",
    ),
    404: Refusal(
        "NotFound", "It does not exist, or the key may not see it.", "Task's ID is not found"
    ),
    406: Refusal(
        "NotAcceptable",
        "`Accept` allows none of the media types that the operation answers with.",
        "The answer can be application/json only",
    ),
    408: Refusal(
        "TooSlow",
        "The head and body of the request did not arrive within 30 s.",
        "The request did not arrive in time",
    ),
    412: Refusal(
        "PreconditionFailed",
        "`If-Match` is not `*`; nothing has changed.",
        "The task has no version that If-Match names; its ETag is weak",
    ),
    413: Refusal("TooLarge", "The body is too large.", "The request's body is too large"),
    414: Refusal("UrlTooLong", "The URL is too long.", "The request line is too long"),
    415: Refusal(
        "WrongContentType",
        "The operation does not read bodies of this type.",
        "The body must be application/json",
    ),
    422: Refusal(
        "Invalid",
        "The request is readable but invalid: `errors` says where.",
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
        "The service can't do it now and has changed nothing; try again.",
        "The database is busy, full or out of reach",
    ),
}

# Any request can get these.
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)

TEXT_EXAMPLE = "Synopsis: Running\n15 mails\n"
