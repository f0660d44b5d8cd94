"""Converts the errors of the JSON Schema validator to messages, keyed by the field's path."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice
from operator import getitem
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jsonschema_rs


# The maximum number of errors in a response.
MAX_ERRORS = 10

TYPES = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}


# The message for each JSON Schema keyword that is violated; `{.value}` is the value of the keyword.
_SENTENCES = {
    "format": "Must have the format {.value}.",
    "pattern": "Must match {.value}",
    "anyOf": "Must match one of the schemas in anyOf.",
    "oneOf": "Must match exactly one of the schemas in oneOf.",
    "not": "Not allowed.",
    "falseSchema": "Not allowed.",
    "contains": "Must contain at least one matching item.",
    "propertyNames": "Contains a property name that is not allowed.",
}


def named(
    place: str, instance: Any, errors: "Iterator[jsonschema_rs.ValidationError]"
) -> dict[str, list[str]]:
    """The messages, keyed by path: `place`, followed by the path of the invalid value."""
    by_place: dict[str, list[str]] = {}
    for error in islice(errors, MAX_ERRORS):
        ends, message = _fault(instance, error)
        for end in islice(ends, MAX_ERRORS):
            messages = by_place.setdefault(
                ".".join(map(str, [place, *error.instance_path, *end])), []
            )
            if message not in messages:
                messages.append(message)
    return by_place


def _fault(
    instance: Any, error: "jsonschema_rs.ValidationError"
) -> tuple[Iterable[Sequence[str]], str]:
    """The paths of the properties that an error concerns, and the error message.

    The paths begin at the value; the path `()` is the value itself.
    """
    kind: Any = error.kind
    if kind.name == "required":
        return [(kind.value,)], "Missing."
    unknown = kind.value if kind.name == "additionalProperties" else ()
    if kind.name == "falseSchema" and error.schema_path[-1] == "additionalProperties":
        # The validator reports `falseSchema` for an object that must have no properties at all.
        unknown = reduce(getitem, error.instance_path, instance)
    if unknown:
        return ((name,) for name in unknown), "Unknown field."
    return [()], sentence(error)


def sentence(error: "jsonschema_rs.ValidationError") -> str:
    kind: Any = error.kind
    if kind.name == "type":
        return f"Must be {' or '.join(TYPES[type_name] for type_name in kind.value)}."
    if kind.name in ("enum", "const"):
        start, values = ("one of ", kind.value) if kind.name == "enum" else ("", [kind.value])
        texts = [json.dumps(value, ensure_ascii=False, default=str) for value in values]
        return f"Must be {start}{', '.join(texts)}."
    return _SENTENCES[kind.name].format(kind) if kind.name in _SENTENCES else f"{error.message}."
