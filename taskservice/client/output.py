"""What a program puts out, refused where it is set if it is no JSON."""

import json
from collections.abc import Mapping
from typing import Any


class Output(dict[str, Any]):
    """A task's output. Setting a key to what is no JSON raises TypeError or ValueError."""

    def __setitem__(self, key: str, value: Any) -> None:
        check(key, value)
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        members = checked(dict(*args, **kwargs))
        super().update(members)

    def __ior__(self, other: Any) -> "Output":  # type: ignore[misc, override]
        self.update(other)
        return self


def checked(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, if all of it is JSON. Raises TypeError or ValueError."""
    for key, value in members.items():
        check(key, value)
    return members


def check(key: str, value: Any) -> None:
    """Raise TypeError or ValueError, which name the key, for what is no JSON."""
    if not isinstance(key, str):
        raise TypeError(f"The key {key!r} of an output must be a text")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except TypeError as error:
        raise TypeError(f"output[{key!r}] is no JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"output[{key!r}] is no JSON: {error}") from None


def without_faults(members: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the members that are JSON."""
    return {key: value for key, value in members.items() if _is_json(key, value)}


def _is_json(key: str, value: Any) -> bool:
    try:
        check(key, value)
    except (TypeError, ValueError):
        return False
    return True
