"""The words and limits of the API that the service and the agent's side share; imports nothing."""

import re

# A task's status.
RUNNING = "running"
COMPLETE = "complete"
ERROR = "error"

# The type of a task's error.
FAILED = "failed"
CANCELLED = "cancelled"
TIMEOUT = "timeout"

# A delivery's state; two of the words above are states too.
PENDING = "pending"
DELIVERED = "delivered"
DELIVERY_STATES = (PENDING, DELIVERED, FAILED, CANCELLED)

# The orders of a list of tasks, the default first.
SORTS = ("-createdAt", "createdAt", "finishedAt")

AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Characters.
MAX_NAME = 200
MAX_DESCRIPTION = 2_000
MAX_WRITER = 64
MAX_IDEMPOTENCY_KEY = 255

# Bytes of UTF-8, and of compact JSON.
MAX_CALLBACK = 2_000
MAX_LINE = 64 * 1024
MAX_LOG = 100 * 1024 * 1024
MAX_MESSAGE = 64 * 1024
MAX_OBJECT = 1024 * 1024

# Writers of one task. All of their rows go in the one transaction that deletes it.
MAX_WRITERS = 1_000
# Seconds.
MAX_TIMEOUT = 366 * 86_400
# Tasks on one page of the list.
MAX_LIMIT = 1_000
# Lines on one page of a log.
MAX_LINES = 10_000
DEFAULT_LINES = 1_000
# Of the log, a webhook has the last lines only.
WEBHOOK_LINES = 1_000
WEBHOOK_LOG_BYTES = 256 * 1024
