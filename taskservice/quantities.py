"""Formats numbers, shares and durations as text, for both the dashboard and the commands."""

import re
from decimal import Decimal
from math import floor

# The units of a duration that a user types, and their lengths in seconds.
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,1000}"
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS))


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """A number with its noun, such as `1 line` or `2,000 lines`."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def percent(share: float) -> str:
    """A share from 0 to 1 as a percentage, rounded to a whole number, such as `67%`."""
    return f"{floor(share * 100 + 0.5)}%"


def percent_done(progress: str | float) -> str:
    """A task's progress from 0 to 1 as a percentage, rounded down so that only 1 is `100%`."""
    return f"{int(Decimal(str(progress)) * 100)}%"


def seconds_text(seconds: float) -> str:
    """A duration in its two largest units, such as `3 h 20 min`."""
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return duration(int(seconds))


def duration(seconds: int) -> str:
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts or unit == "s":
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count or unit == "s")


def typed_seconds(text: str) -> int | None:
    """The seconds of a typed duration, such as `1h30m` or `90`; None for any other text."""
    if re.fullmatch(_NUMBER, text):
        return int(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        return None
    numbers = zip(match.groups("0"), _UNITS.values(), strict=True)
    return sum(int(number) * size for number, size in numbers)


def typed(seconds: int) -> str:
    """A duration as a user types it, in the largest unit that divides it, such as `90m`."""
    unit = next((unit for unit, size in _UNITS.items() if seconds and seconds % size == 0), "s")
    return f"{seconds // _UNITS[unit]}{unit}"
