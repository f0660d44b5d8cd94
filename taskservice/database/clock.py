"""Times in the format of the API, and IDs that sort by creation time."""

import secrets
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TypeAlias

# A time and an ID that sort before all others.
EARLIEST = "0001-01-01T00:00:00.000Z"
LOWEST_ID = "00000000-0000-0000-0000-000000000000"

_lock = threading.Lock()
_last_id = 0


def now(offset: float = 0.0) -> str:
    """The time `offset` seconds from now as RFC 3339 text in UTC, with milliseconds and `Z`."""
    return from_milliseconds(time.time_ns() // 1_000_000 + round(offset * 1000))


def moved(text: str, seconds: float) -> str:
    """The time `text` plus `seconds`, as text."""
    return rfc3339(datetime.fromisoformat(text) + timedelta(seconds=seconds))


def milliseconds(text: str) -> int:
    """The time `text` in milliseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def from_milliseconds(since_1970: int) -> str:
    """The time as text: the inverse of `milliseconds`."""
    seconds, rest = divmod(since_1970, 1000)
    return f"{_second(seconds)}.{rest:03}Z"


@lru_cache(maxsize=16)
def _second(since_1970: int) -> str:
    return datetime.fromtimestamp(since_1970, UTC).isoformat()[: -len("+00:00")]


def seconds_between(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


def rfc3339(aware: datetime) -> str:
    """An aware datetime as RFC 3339 in UTC, truncated to milliseconds."""
    return aware.astimezone(UTC).isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 6.2, method 2), greater than all earlier IDs of this process."""
    global _last_id
    number = time.time_ns() // 1_000_000 << 74 | secrets.randbits(74)
    with _lock:
        if number >> 74 <= _last_id >> 74:
            number = _last_id + 1 + secrets.randbits(32)
        _last_id = number
    milliseconds, random_a, random_b = number >> 74, number >> 62 & 0xFFF, number & (1 << 62) - 1
    uuid = milliseconds << 80 | 0x7 << 76 | random_a << 64 | 0b10 << 62 | random_b
    return hyphenated(f"{uuid:032x}")


def hyphenated(digits: str) -> str:
    """The usual form of a UUID, from its 32 hexadecimal digits."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


# The times of log lines. Each entry is the index of a line and a time in milliseconds since 1970,
# which applies to all lines from this index up to the next entry. In the database, the times take a
# few bytes for each append rather than for each line.
Times: TypeAlias = Sequence[tuple[int, int]]


def encode(of_lines: Times) -> tuple[int, str | None]:
    """The time of line 0 in milliseconds since 1970, and a text that lists the later changes.

    The text contains `index:milliseconds`, separated by commas, for each line whose time differs
    from the time of the previous line. The milliseconds are relative to the time of line 0. The
    text is None if all lines have the same time.
    """
    first = before = of_lines[0][1]
    changes = []
    for line, value in of_lines:
        if value != before:
            changes.append(f"{line}:{value - first}")
            before = value
    return first, ",".join(changes) or None


def decode(at: int, times: str | None, count: int) -> list[int]:
    """The times of `count` lines in milliseconds since 1970, from the results of `encode`."""
    if times is None:
        return [at] * count
    decoded: list[int] = []
    value = at
    for change in times.split(","):
        line, _, difference = change.partition(":")
        decoded += [value] * (int(line) - len(decoded))
        value = at + int(difference)
    return decoded + [value] * (count - len(decoded))
