"""Names and limits of the API that the service and its clients share."""

import json
import re
import shlex
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal, NamedTuple, get_args

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

# A delivery's state; FAILED and CANCELLED, defined above, are also states of a delivery.
PENDING, DELIVERED = "pending", "delivered"
DELIVERY_STATES = (PENDING, DELIVERED, FAILED, CANCELLED)

# A question's state; only an open question can be answered.
OPEN, ANSWERED, DECLINED = "open", "answered", "declined"
EXPIRED, WITHDRAWN = "expired", "withdrawn"
QUESTION_STATES = (OPEN, ANSWERED, DECLINED, EXPIRED, WITHDRAWN)
# A person's responses to a question.
ACCEPT, DECLINE = "accept", "decline"

# A hook's state, and the formats of its messages. The last three formats are for people.
ACTIVE, OFF = "active", "off"
HOOK_STATES = (ACTIVE, OFF)
STANDARD, NTFY, SLACK, MAIL = "standard", "ntfy", "slack", "mail"
PEOPLE_FORMATS = (NTFY, SLACK, MAIL)
HOOK_FORMATS = (STANDARD, *PEOPLE_FORMATS)

# An agent's state, according to its last task that ended.
OK, BROKEN = "ok", "broken"
AGENT_STATES = (OK, BROKEN)

# The error message of a task whose agent reported no message.
NO_MESSAGE = "The agent reported an error"

# The kinds of items that need attention, the most urgent first.
QUESTION, LATE, HANGING, NO_WORKER = "question", "late", "hanging", "no_worker"
CALLBACK_FAILED, BACKUP_OLD = "callback_failed", "backup_old"
HOOK_FAILING, HOOK_OFF = "hook_failing", "hook_off"
ATTENTION = (
    QUESTION, BROKEN, LATE, HANGING, NO_WORKER, CALLBACK_FAILED, HOOK_FAILING, HOOK_OFF, BACKUP_OLD
)  # fmt: skip

# The orders of a list of tasks; the first is the default.
Sort = Literal["-createdAt", "createdAt", "finishedAt"]
SORTS: tuple[str, ...] = get_args(Sort)

# The access that an API key gives.
FULL, READ = "full", "read"
ACCESSES = (FULL, READ)

# The name of the service in `endedBy`, and the name of an answer link in `answeredBy`. In the
# service's log, LINK is also the name of a link to a task.
SERVICE, LINK = "service", "link"

# The actions that can be applied to many tasks at once.
CANCEL: Final = "cancel"
DELETE: Final = "delete"
RERUN: Final = "rerun"
BulkAction = Literal["cancel", "delete", "rerun"]
BULK_ACTIONS: tuple[BulkAction, ...] = (CANCEL, DELETE, RERUN)

LABEL_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
AGENT_PREFIX = "tsk_agent_"

# Maximum lengths in characters.
MAX_NAME = 200
MAX_DESCRIPTION = 2_000
MAX_WRITER = 64
MAX_QUESTION = 4_000
# The start of the line with which `taskservice approve` replaces a part of a question. No button of
# a notification answers such a question.
CUT_HERE = "(cut here: "
MAX_NOTE = 200
MAX_SEARCHED_TEXT = 200
MAX_LABEL_VALUE = 256
MAX_IDEMPOTENCY_KEY = 255

# Maximum lengths in bytes, of UTF-8 text or of compact JSON.
MAX_CALLBACK = 2_000
MAX_LINE = 64 * 1024
MAX_LOG = 100 * 1024 * 1024
MAX_MESSAGE = 64 * 1024
MAX_OBJECT = 1024 * 1024

# Maximum number of writers of a task, since a single transaction deletes the rows of all writers.
MAX_WRITERS = 1_000
MAX_OPEN_QUESTIONS = 8
MAX_ATTEMPTS = 50  # only the newest attempts of a delivery are stored
MAX_HOOKS = 50
# Maximum number of links to a task, and the default and maximum number of days until they expire.
MAX_LINKS = 50
LINK_DAYS = 7
MAX_LINK_DAYS = 90
MAX_MUTE_DAYS = 90  # the maximum duration of a mute
MAX_AFTER = 10  # the maximum number of failures in a row before a hook is notified
MAX_LABELS = 16
# Maximum timeout of a task or a question, and the default timeout of a question, in seconds.
MAX_TIMEOUT = 366 * 86_400
QUESTION_TIMEOUT = 86_400
# Minimum and maximum of an agent's `maxDuration`, in seconds.
MIN_DURATION, MAX_DURATION = 60, 30 * 86_400
# Maximum number of tasks on a page of a list, and in a request that changes several tasks.
MAX_LIMIT = 1_000
# Maximum and default number of lines on a page of a log.
MAX_LINES = 10_000
DEFAULT_LINES = 1_000
DEFAULT_HITS = 100  # the default number of hits on a page of a search
# Maximum number of lines, and of bytes, that a webhook contains from the end of the log.
WEBHOOK_LINES = 1_000
WEBHOOK_LOG_BYTES = 256 * 1024


def key_hint(key: str) -> str:
    """The start and end of a key, so that the owner can recognize the key in a list."""
    return f"{key[: key.rindex('_') + 1]}…{key[-4:]}"


def label_problem(key: str, value: object) -> str | None:
    """The error message for a label; None if it is valid."""
    if not LABEL_KEY.fullmatch(key):
        return f"The key must match {LABEL_KEY.pattern}."
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_LABEL_VALUE:
        return f"Must be a string of 1 to {MAX_LABEL_VALUE} characters."
    return None


# These functions parse HTTP headers of other programs, which can be invalid.


def http_date(text: str) -> datetime | None:
    """The time of an HTTP date, in UTC; None if it is invalid."""
    try:
        time = parsedate_to_datetime(text)
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):  # OverflowError for a year with many digits
        return None


def seconds(retry_after: str) -> float | None:
    """The seconds in a Retry-After header, from 0 to infinity; None if it is invalid."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = http_date(text)
    return None if until is None else max((until - datetime.now(UTC)).total_seconds(), 0)


# How to add the service to each MCP client; shown by the documents, `mcp-config` and the dashboard.

MCP_PATH = "/mcp"
# The environment variable from which a client reads the key, so that no file contains it.
KEY_VARIABLE = "TASKSERVICE_APIKEY"
PROFILE_VARIABLE = "TASKSERVICE_PROFILE"  # the name of a profile that `taskservice login` stored


class McpClient(NamedTuple):
    """An MCP client, and the lines that add the service to it."""

    name: str
    title: str
    file: str | None  # the configuration file for the lines; None if the lines are a command
    lines: str  # URL stands for the address of `/mcp`, and KEY for KEY_VARIABLE

    @property
    def where(self) -> str:
        return "run this" if self.file is None else f"in {self.file}"

    def text(self, service_url: str) -> str:
        """The command, or the content of the file, for the service at this address."""
        quote = shlex.quote if self.file is None else json.dumps
        url = quote(service_url.rstrip("/") + MCP_PATH)
        return self.lines.replace("KEY", KEY_VARIABLE).replace("URL", url)


_CLAUDE_CODE = """\
claude mcp add --scope user --transport http taskservice URL \\
  --header 'Authorization: Bearer ${KEY}'"""
_CODEX = """\
codex mcp add taskservice --url URL \\
  --bearer-token-env-var KEY"""
_GEMINI = """\
gemini mcp add --scope user --transport http taskservice URL \\
  --header 'Authorization: Bearer $KEY'"""
_OPENCODE = """\
opencode mcp add taskservice --url URL \\
  --header 'Authorization=Bearer {env:KEY}'"""
_VS_CODE = """\
{
  "inputs": [
    {
      "type": "promptString",
      "id": "taskservice-key",
      "password": true,
      "description": "taskservice API key"
    }
  ],
  "servers": {
    "taskservice": {
      "type": "http",
      "url": URL,
      "headers": {
        "Authorization": "Bearer ${input:taskservice-key}"
      }
    }
  }
}"""
_CURSOR = """\
{
  "mcpServers": {
    "taskservice": {
      "url": URL,
      "headers": {
        "Authorization": "Bearer ${env:KEY}"
      }
    }
  }
}"""
_INSPECTOR = """\
npx @modelcontextprotocol/inspector --cli URL --transport http \\
  --header "Authorization: Bearer $KEY" --method tools/list"""

CLIENTS = {
    client.name: client
    for client in (
        McpClient("claude-code", "Claude Code", None, _CLAUDE_CODE),
        McpClient("codex", "Codex", None, _CODEX),
        McpClient("gemini", "Gemini CLI", None, _GEMINI),
        McpClient("opencode", "opencode", None, _OPENCODE),
        McpClient("vscode", "VS Code", ".vscode/mcp.json", _VS_CODE),
        McpClient("cursor", "Cursor", "~/.cursor/mcp.json", _CURSOR),
        McpClient("inspector", "MCP Inspector", None, _INSPECTOR),
    )
}
