"""JSON whose numbers keep their exact value between the service and a program."""

import json
import math
import re
from decimal import Decimal
from typing import Any

from taskservice.terms import MAX_OBJECT

# Deeper than the service takes; Python's JSON calls itself for each level, and the object is
# written later with less of the stack left.
_MAX_DEPTH = 200
_MARKED = re.compile(r'"\\u0000([^"\\]*)\\u0000"')


def parse_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object in a text; None for any other text, or if a number would change."""
    if not text.strip().startswith(b"{") or len(text) > MAX_OBJECT:
        return None
    try:
        value = json.loads(
            text.decode(),
            parse_constant=_exact_number,
            parse_float=_exact_number,
            object_pairs_hook=_unique_members,
        )
    # ArithmeticError comes from a number that is too large for Decimal.
    except (ValueError, ArithmeticError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value) else None


def task_input(task: str) -> bytes:
    """The input in a task's JSON, with each number exactly as it is written there."""
    # NUL marks the numbers: no string of the service contains it.
    value = json.loads(task, parse_float=lambda number: f"\0{number}\0")["input"]
    return _MARKED.sub(r"\1", json.dumps(value)).encode()


def _exact_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or Decimal(repr(number)) != Decimal(text):
        raise ValueError(f"{text} can't be kept exactly as a number")
    return number


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return not level


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("Of two values with the same key one would be lost")
    return members
