"""Template functions that format JSON, numbers, times and states."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

import orjson

from taskservice import reasons
from taskservice.database import clock
from taskservice.reasons import reason_line
from taskservice.schemas import strict_json
from taskservice.services.lists import WAITING
from taskservice.terminal import escaped_lines
from taskservice.terms import FAILED, RUNNING

# The maximum number of characters of a line in a table.
MAX_LINE = 300


def pretty(text: str) -> str:
    """The JSON text with indentation; control characters are escaped."""
    value = strict_json.loads(text.encode())
    return escaped_lines(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def is_blank(text: str) -> bool:
    """Whether a name has no visible character."""
    # Separators and control characters are invisible, and so are the letters U+115F and U+3164.
    return all(unicodedata.category(c)[0] in "ZC" or c in "\u115f\u3164" for c in text)


def number(value: int) -> str:
    """The number with commas, such as 12,345."""
    return f"{value:,}"


def utc_text(text: str) -> str:
    """A time such as 24 Nov 2026, 13:36:05 UTC, which page.js replaces with the local time."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %b %Y, %H:%M:%S UTC")


def state_of(row: Any) -> str:
    """The status of a task, or "waiting" until a worker claims the task."""
    is_waiting = row.status == RUNNING and row.claimed_at is None
    return WAITING if is_waiting else str(row.status)


def outcome_of(row: Any) -> str:
    """The type of a task's error, or the state of a task that has no error."""
    return str(row.error_type or state_of(row))


def reason(row: Any, log_end: str = "") -> str:
    """The line below a task in a table: the note of a running task, or the reason for a failure;
    otherwise empty.
    """
    if row.status == RUNNING:
        return row.note or ""
    return reason_line(row.error_message or "", log_end)[:MAX_LINE]


def is_generic(row: Any) -> bool:
    """Whether a failed task's message gives no reason; for example, it is only an exit status."""
    return row.error_type == FAILED and reasons.is_generic(row.error_message)


def repeats_agent(row: Any) -> bool:
    """Whether a task's name equals its agent's ID, apart from case, spaces and punctuation."""
    name, agent_id = (re.sub(r"[\W_]", "", text).lower() for text in (row.name, row.agent_id))
    return name == agent_id


def label_texts(row: Any) -> list[str]:
    """The labels of a task, each as `key:value`."""
    return [f"{key}:{value}" for key, value in orjson.loads(row.labels).items()]


def is_key_valid(key: Any) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > clock.now())
