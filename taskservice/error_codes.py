"""The error codes of the API, each with its status and meaning."""

from typing import NamedTuple

# If several codes have the same status, the first code is the default.


class Code(NamedTuple):
    status: int
    meaning: str


CODES: dict[str, Code] = {}


def _code(name: str, status: int, meaning: str) -> str:
    CODES[name] = Code(status, meaning)
    return name


_code("unreadable", 400, "The request is not valid HTTP, UTF-8 or JSON.")
_code("invalid_key", 401, "The API key is missing, malformed, unknown, revoked or expired.")
_code("user_key_required", 403, "This operation needs a user key.")
READ_ONLY = _code("read_only", 403, "A read key can't do this.")
FOREIGN_ORIGIN = _code(
    "foreign_origin", 403, "This `Host` or `Origin` is not allowed to call `/mcp`."
)
NOT_FOUND = _code("not_found", 404, "No such resource, or the key has no access to it.")
NO_GOOD_RUN = _code(
    "no_good_run",
    404,
    "No task of the agent ended with the status `complete` before this task started.",
)
NO_SUCH_PATH = _code("no_such_path", 404, "The service has no such path.")
_code("method_not_allowed", 405, "The path does not support this method; see `Allow`.")
_code("not_acceptable", 406, "None of the media types in `Accept` is available.")
_code("too_slow", 408, "The request did not arrive within 30 s.")
_code("conflict", 409, "The request conflicts with the current state.")
TASK_FINISHED = _code("task_finished", 409, "The task has already ended; see `task`.")
SEQ_GAP = _code("seq_gap", 409, "Earlier lines are missing; `expected` is the next `seq`.")
AGENT_HAS_TASKS = _code("agent_has_tasks", 409, "An agent that has tasks can't be deleted.")
LAST_USER_KEY = _code("last_user_key", 409, "The last user key can only be revoked on the server.")
NO_DELIVERY = _code(
    "no_delivery", 409, "The task has no delivery: it is running, or has no callback."
)
DELIVERY_UNDER_WAY = _code("delivery_under_way", 409, "The delivery is being sent now.")
NOT_CLAIMED = _code("not_claimed", 409, "The task is not claimed, so it can't ask questions.")
TOO_MANY_QUESTIONS = _code("too_many_questions", 409, "The task has too many open questions.")
QUESTION_CLOSED = _code("question_closed", 409, "The question is no longer open; see `question`.")
TOO_MANY_HOOKS = _code("too_many_hooks", 409, "The user has too many hooks.")
TOO_MANY_LINKS = _code("too_many_links", 409, "The task has too many links.")
_code("too_large", 413, "The body is too large.")
LOG_FULL = _code("log_full", 413, "The task's log is full.")
_code("url_too_long", 414, "The URL is too long.")
_code("unsupported_media_type", 415, "Unsupported content type or encoding.")
_code("expectation_failed", 417, "The only supported expectation is `100-continue`.")
_code("invalid", 422, "The request is invalid; see `errors`.")
IDEMPOTENCY_KEY_REUSED = _code(
    "idempotency_key_reused", 422, "The `Idempotency-Key` was used with another body."
)
TOO_MANY_REQUESTS = _code("too_many_requests", 429, "Too many requests; see `Retry-After`.")
_code("headers_too_large", 431, "There are too many headers, or they are too long.")
_code("internal", 500, "Internal error; see the service's log.")
_code("not_implemented", 501, "The service does not support this transfer encoding.")
_code("unavailable", 503, "The database is busy, full or unavailable.")
OVERLOADED = _code(
    "overloaded",
    503,
    "A limit on large bodies, long lists, streams, searches or open files has been reached.",
)
LOG_DROPPED = _code("log_dropped", 503, "The log was deleted while it was being read.")
STOPPING = _code("stopping", 503, "The service is stopping.")


def default(status: int) -> str:
    """The default code of errors with this status."""
    fallback = "unreadable" if status < 500 else "internal"
    return next((code for code in CODES if CODES[code].status == status), fallback)
