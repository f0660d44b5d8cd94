"""Checks of strict JSON that the service and `taskservice run` share."""

import math
from decimal import Decimal, InvalidOperation
from typing import Any


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with these members; raises ValueError if two of them have the same key."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("the same key twice in one object")
    return members


def exact_double(text: str) -> float | None:
    """The double that equals the number in `text`, or None if no double equals it exactly.

    Raises ValueError if the number is too large for a double, or its exponent is out of range.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large for a double")
    # A double preserves 15 significant digits; a number with more digits can change.
    if len(text) <= 16 and "e" not in text.lower():
        return value
    try:
        return value if Decimal(text) == Decimal(repr(value)) else None
    except InvalidOperation:
        raise ValueError("a number's exponent is out of range") from None


def is_deeper(value: Any, levels: int) -> bool:
    """Whether the objects and arrays in a value are nested more than `levels` deep."""
    level = _containers([value])
    for _ in range(levels):
        level = [child for parent in level for child in _containers(parent)]
    return bool(level)


def _containers(parent: Any) -> list[Any]:
    """The objects and arrays directly inside an object or array."""
    inside = parent.values() if isinstance(parent, dict) else parent
    return [child for child in inside if isinstance(child, dict | list)]
