"""A task's output: a value that JSON lacks is refused where the program sets it."""

import json
from collections.abc import Mapping
from typing import Any


class Output(dict[str, Any]):
    """A task's output. Setting a key to a value that JSON lacks raises TypeError or ValueError."""

    def __setitem__(self, key: str, value: Any) -> None:
        _check(key, value)
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(check_output(dict(*args, **kwargs)))

    def __ior__(self, other: Any) -> "Output":  # type: ignore[misc, override]
        self.update(other)
        return self


def check_output(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same members. Raises TypeError or ValueError for a key or value that JSON lacks."""
    for key, value in members.items():
        _check(key, value)
    return members


def json_members(members: Mapping[str, Any]) -> dict[str, Any]:
    """Only the members whose key and value JSON has."""
    return {key: value for key, value in members.items() if _is_json(key, value)}


def _check(key: str, value: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"The key {key!r} of an output must be a string")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except TypeError as error:
        raise TypeError(f"output[{key!r}] is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"output[{key!r}] is not JSON: {error}") from None


def _is_json(key: str, value: Any) -> bool:
    try:
        _check(key, value)
    except (TypeError, ValueError):
        return False
    return True
