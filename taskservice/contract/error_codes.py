"""The codes that errors have for programs, each with its status and its meaning."""

from typing import NamedTuple

NOT_FOUND = "not_found"
NO_SUCH_PATH = "no_such_path"
TASK_FINISHED = "task_finished"
SEQ_GAP = "seq_gap"
AGENT_HAS_TASKS = "agent_has_tasks"
LAST_USER_KEY = "last_user_key"
NO_DELIVERY = "no_delivery"
DELIVERY_UNDER_WAY = "delivery_under_way"
LOG_FULL = "log_full"
IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
OVERLOADED = "overloaded"
LOG_DROPPED = "log_dropped"
STOPPING = "stopping"


class Code(NamedTuple):
    status: int
    meaning: str


# Of several with one status, the first is that of errors which name none.
CODES = {
    "unreadable": Code(400, "The request is not valid HTTP, UTF-8 or JSON."),
    "invalid_key": Code(401, "The API key does not count, for whatever reason."),
    "user_key_required": Code(403, "An agent key may not do this."),
    NOT_FOUND: Code(404, "The key may see no such thing."),
    NO_SUCH_PATH: Code(404, "The service has no such path."),
    "method_not_allowed": Code(405, "The path does not know this method; `Allow` lists those."),
    "not_acceptable": Code(406, "`Accept` allows nothing that can be answered."),
    "too_slow": Code(408, "Head and body did not arrive within 30 s."),
    "conflict": Code(409, "The present state does not allow it."),
    TASK_FINISHED: Code(409, "The task has ended; `task` tells how."),
    SEQ_GAP: Code(409, "Lines before these are missing; `expected` is the next `seq`."),
    AGENT_HAS_TASKS: Code(409, "An agent that has tasks can't be deleted."),
    LAST_USER_KEY: Code(409, "The last user key can be revoked on the server only."),
    NO_DELIVERY: Code(409, "The task has no delivery: it runs, or has no callback."),
    DELIVERY_UNDER_WAY: Code(409, "The delivery is being posted at this moment."),
    "too_large": Code(413, "The body is too large."),
    LOG_FULL: Code(413, "The task's log can't take these lines."),
    "url_too_long": Code(414, "The URL is too long."),
    "unsupported_media_type": Code(415, "The body's type or coding is not one that is read."),
    "expectation_failed": Code(417, "Only `Expect: 100-continue` is understood."),
    "invalid": Code(422, "The request is invalid; `errors` says where."),
    IDEMPOTENCY_KEY_REUSED: Code(422, "The `Idempotency-Key` came before with another body."),
    "too_many_requests": Code(429, "Wait for as long as `Retry-After` says."),
    "headers_too_large": Code(431, "The headers are too many or too long."),
    "internal": Code(500, "The service failed; its log says more."),
    "not_implemented": Code(501, "The transfer coding is not one that is read."),
    "unavailable": Code(503, "The database is busy, full or out of reach."),
    OVERLOADED: Code(503, "Too much is being sent or followed at once."),
    LOG_DROPPED: Code(503, "The log was dropped while it was being read."),
    STOPPING: Code(503, "The service is stopping."),
}


def default(status: int) -> str:
    """The code of an error with this status that names none."""
    fallback = "unreadable" if status < 500 else "internal"
    return next((code for code in CODES if CODES[code].status == status), fallback)


def with_status(status: int) -> tuple[str, ...]:
    return tuple(code for code in CODES if CODES[code].status == status)
