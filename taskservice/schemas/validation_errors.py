"""What a value lacks by its JSON Schema, in plain sentences."""

import json
from collections.abc import Iterator
from functools import reduce
from itertools import islice
from operator import getitem
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema_rs import ValidationError

# Maximum number of errors that an answer names.
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


def named(place: str, instance: Any, errors: "Iterator[ValidationError]") -> dict[str, list[str]]:
    """`place.<name>` -> what is wrong there with this value."""
    found: dict[str, list[str]] = {}
    for error in islice(errors, MAX_ERRORS):
        for name, said in islice(_faults(instance, error), MAX_ERRORS):
            path = ".".join(map(str, [place, *error.instance_path, *name]))
            messages = found.setdefault(path, [])
            if said not in messages:
                messages.append(said)
    return found


def _faults(instance: Any, error: "ValidationError") -> Iterator[tuple[list[str], str]]:
    """(the name of a property, or nothing for the value itself; what is wrong)."""
    kind: Any = error.kind
    unknown = kind.value if kind.name in ("additionalProperties", "unevaluatedProperties") else ()
    if kind.name == "falseSchema" and error.schema_path[-1] == "additionalProperties":
        # So the validator says it of an object that may have no property at all.
        unknown = reduce(getitem, error.instance_path, instance)
    if kind.name == "required":
        yield [kind.value], "Missing."
    elif unknown:
        for name in unknown:
            yield [name], "Unknown field."
    else:
        yield [], sentence(error)


def sentence(error: "ValidationError") -> str:
    """What is wrong with a value."""
    kind: Any = error.kind
    match kind.name:
        case "type":
            return f"Must be {' or '.join(TYPES[each] for each in kind.value)}."
        case "enum":
            return f"Must be one of {_listed(kind.value)}."
        case "const":
            return f"Must be {_listed([kind.value])}."
        case "format":
            return f"Must have the format {kind.value}."
        case "pattern":
            return f"Must match {kind.value}"
        case "anyOf" | "oneOf":
            return "Must fit " + ("one" if kind.name == "anyOf" else "exactly one") + " of several."
        case "not" | "falseSchema":
            return "Not allowed."
        case "contains":
            return "Lacks an item that it must contain."
        case "propertyNames":
            return "Has a name that is not allowed."
    return f"{error.message}."


def _listed(values: list[Any]) -> str:
    return ", ".join(json.dumps(value, ensure_ascii=False, default=str) for value in values)
