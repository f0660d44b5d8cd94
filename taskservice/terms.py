"""The names and limits of the API that the service and its clients share."""

import re
from typing import Final, Literal, get_args

API_PREFIX = "/api/v1"
PROBLEM_TYPE = "application/problem+json"

# A task's status.
Status = Literal["running", "complete", "error"]
RUNNING: Final = "running"
COMPLETE: Final = "complete"
ERROR: Final = "error"
STATUSES: tuple[Status, ...] = (RUNNING, COMPLETE, ERROR)

# The type of a task's error.
ErrorType = Literal["failed", "cancelled", "timeout"]
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"
TIMEOUT: Final = "timeout"
ERROR_TYPES: tuple[ErrorType, ...] = (FAILED, CANCELLED, TIMEOUT)

# A delivery's state; FAILED and CANCELLED are states too.
PENDING = "pending"
DELIVERED = "delivered"
DELIVERY_STATES = (PENDING, DELIVERED, FAILED, CANCELLED)

# A question's state; only an open one can be answered.
OPEN = "open"
ANSWERED = "answered"
DECLINED = "declined"
EXPIRED = "expired"
WITHDRAWN = "withdrawn"
QUESTION_STATES = (OPEN, ANSWERED, DECLINED, EXPIRED, WITHDRAWN)
# What a person does with a question.
ACCEPT = "accept"
DECLINE = "decline"

# The orders of a list of tasks, the default first.
Sort = Literal["-createdAt", "createdAt", "finishedAt"]
SORTS: tuple[str, ...] = get_args(Sort)

# The name that `endedBy` has for the service itself.
SERVICE = "service"

LABEL_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Maximum lengths in characters.
MAX_NAME = 200
MAX_DESCRIPTION = 2_000
MAX_WRITER = 64
MAX_QUESTION = 4_000
MAX_NOTE = 200
MAX_LABEL_VALUE = 256
MAX_IDEMPOTENCY_KEY = 255

# Maximum lengths in bytes, of UTF-8 text or of compact JSON.
MAX_CALLBACK = 2_000
MAX_LINE = 64 * 1024
MAX_LOG = 100 * 1024 * 1024
MAX_MESSAGE = 64 * 1024
MAX_OBJECT = 1024 * 1024

# Maximum number of writers of one task: one transaction deletes the rows of all of them.
MAX_WRITERS = 1_000
# Maximum number of open questions of a task.
MAX_OPEN_QUESTIONS = 8
# How many attempts of a delivery are kept: its newest ones.
MAX_ATTEMPTS = 50
# Maximum number of labels of a task.
MAX_LABELS = 16
# Maximum timeout of a task and of a question, and the default one of a question, in seconds.
MAX_TIMEOUT = 366 * 86_400
QUESTION_TIMEOUT = 86_400
# Maximum number of tasks on one page of the list.
MAX_LIMIT = 1_000
# Maximum and default number of lines on one page of a log.
MAX_LINES = 10_000
DEFAULT_LINES = 1_000
# A webhook carries the last lines of the log: at most this many, and this many bytes of them.
WEBHOOK_LINES = 1_000
WEBHOOK_LOG_BYTES = 256 * 1024


def label_problem(key: str, value: object) -> str | None:
    """What is wrong with a label; None for a valid one."""
    if not LABEL_KEY.fullmatch(key):
        return f"The key must match {LABEL_KEY.pattern}."
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_LABEL_VALUE:
        return f"Must be a string of 1 to {MAX_LABEL_VALUE} characters."
    return None
