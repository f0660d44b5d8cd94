"""Reads HTTP headers from other programs, which may contain anything."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def moment(text: str) -> datetime | None:
    """The moment that an HTTP date names, in UTC; None if it names none."""
    try:
        found = parsedate_to_datetime(text)
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):  # the second for a year of many digits
        return None


def seconds(retry_after: str) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date, from 0 on.

    None if the header is invalid. There is no upper bound: a number with too many digits for a
    float is infinite.
    """
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    until = moment(text)
    return None if until is None else max((until - datetime.now(UTC)).total_seconds(), 0)
