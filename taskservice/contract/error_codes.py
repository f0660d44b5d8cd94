"""The error codes for programs, each with its status and its meaning."""

from typing import NamedTuple

FOREIGN_ORIGIN = "foreign_origin"
NOT_FOUND = "not_found"
NO_SUCH_PATH = "no_such_path"
TASK_FINISHED = "task_finished"
SEQ_GAP = "seq_gap"
PRECONDITION_FAILED = "precondition_failed"
AGENT_HAS_TASKS = "agent_has_tasks"
LAST_USER_KEY = "last_user_key"
NO_DELIVERY = "no_delivery"
NOT_CLAIMED = "not_claimed"
TOO_MANY_QUESTIONS = "too_many_questions"
QUESTION_CLOSED = "question_closed"
DELIVERY_UNDER_WAY = "delivery_under_way"
LOG_FULL = "log_full"
IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
OVERLOADED = "overloaded"
LOG_DROPPED = "log_dropped"
STOPPING = "stopping"
TOO_MANY_REQUESTS = "too_many_requests"


class Code(NamedTuple):
    status: int
    meaning: str


# Of several codes with one status, the first is the default.
CODES = {
    "unreadable": Code(400, "The request is not valid HTTP, UTF-8 or JSON."),
    "invalid_key": Code(401, "The API key is missing, malformed, unknown, revoked or expired."),
    "user_key_required": Code(403, "An agent key may not do this."),
    FOREIGN_ORIGIN: Code(403, "Pages from this `Host` or `Origin` may not call `/mcp`."),
    NOT_FOUND: Code(404, "It does not exist, or the key may not see it."),
    NO_SUCH_PATH: Code(404, "The service has no such path."),
    "method_not_allowed": Code(405, "The path lacks this method; `Allow` lists those it has."),
    "not_acceptable": Code(406, "The answer has none of the types in `Accept`."),
    "too_slow": Code(408, "Head and body did not arrive within 30 s."),
    "conflict": Code(409, "The present state does not allow the request."),
    TASK_FINISHED: Code(409, "The task has ended; `task` tells how."),
    SEQ_GAP: Code(409, "Lines before these are missing; `expected` is the next `seq`."),
    AGENT_HAS_TASKS: Code(409, "An agent that has tasks can't be deleted."),
    LAST_USER_KEY: Code(409, "The last user key can only be revoked on the server."),
    NO_DELIVERY: Code(409, "The task has no delivery: it is running, or has no callback."),
    DELIVERY_UNDER_WAY: Code(409, "The delivery is being posted at this moment."),
    NOT_CLAIMED: Code(409, "No agent has claimed the task, so none can ask."),
    TOO_MANY_QUESTIONS: Code(409, "The task has too many open questions."),
    QUESTION_CLOSED: Code(409, "The question is no longer open; `question` tells how it ended."),
    PRECONDITION_FAILED: Code(412, "The task has none of the versions in `If-Match`."),
    "too_large": Code(413, "The body is too large."),
    LOG_FULL: Code(413, "The task's log is full."),
    "url_too_long": Code(414, "The URL is too long."),
    "unsupported_media_type": Code(415, "Bodies of this type or coding are not accepted."),
    "expectation_failed": Code(417, "The only supported expectation is `100-continue`."),
    "invalid": Code(422, "The request is invalid; `errors` says where."),
    IDEMPOTENCY_KEY_REUSED: Code(422, "The `Idempotency-Key` was used with another body."),
    TOO_MANY_REQUESTS: Code(429, "Too many requests; wait the seconds in `Retry-After`."),
    "headers_too_large": Code(431, "There are too many headers, or they are too long."),
    "internal": Code(500, "The service failed; see its log."),
    "not_implemented": Code(501, "The service does not support this transfer coding."),
    "unavailable": Code(503, "The database is busy, full or out of reach."),
    OVERLOADED: Code(503, "The limit of large bodies, streams, files or memory is reached."),
    LOG_DROPPED: Code(503, "The log was dropped while it was being read."),
    STOPPING: Code(503, "The service is stopping."),
}


def default(status: int) -> str:
    """The default code of errors with this status."""
    fallback = "unreadable" if status < 500 else "internal"
    return next((code for code in CODES if CODES[code].status == status), fallback)


def with_status(status: int) -> tuple[str, ...]:
    return tuple(code for code in CODES if CODES[code].status == status)
