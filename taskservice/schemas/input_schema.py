"""Checks the JSON Schema of an agent's input, and checks inputs against the schema."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from marshmallow import ValidationError

from taskservice.exact_json import is_deeper
from taskservice.schemas import strict_json
from taskservice.schemas.schema_errors import TYPES, named, sentence

if TYPE_CHECKING:
    import jsonschema_rs


DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA = 16 * 1024
MAX_DEPTH = 16
# The maximum numbers of values and patterns in a schema, after each `$ref` is replaced by its
# target.
MAX_VALUES = 4_000
MAX_PATTERNS = 50
# The memory of a compiled pattern, and the time to match each byte of a text, are proportional to
# the compiled size in bytes. The only way to estimate this size is to compile the pattern with each
# of these limits.
_PATTERN_SIZES = (4 << 10, 32 << 10, 128 << 10)
MAX_PATTERN_SIZE = _PATTERN_SIZES[-1]
# Size in bytes of a compiled pattern's cache; a larger cache would hardly speed up matching.
_PATTERN_CACHE = 64 << 10
# The validator rewrites a pattern once for each class such as `\d`, which takes quadratic time.
MAX_BACKSLASHES = 500

# MCP clients ignore a tool whose schema has one of these keywords at the top level.
_NOT_AT_ROOT = ("oneOf", "anyOf", "allOf", "not", "if", "enum", "$ref")
# Keywords that change the target of a `$ref` or belong to other drafts. `x-mcp-header` makes an MCP
# client repeat a value in a header, which the service would have to compare with the input.
_NOWHERE = {
    "$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef",
    "$schema", "$vocabulary", "dependencies", "x-mcp-header",
    # Each nested level of these two keywords doubles the time of the validator.
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
# Keywords whose value is a schema, a list of schemas, or an object whose values are schemas. The
# values of all other keywords are data.
_ONE = {
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then",
}  # fmt: skip
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_OBJECTS = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}


def check_input_schema(schema: dict[str, Any]) -> None:
    """Raises ValidationError if this schema is not allowed for an input."""
    text = strict_json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise ValidationError(f"Longer than {MAX_SCHEMA} bytes.")
    if is_deeper(schema, MAX_DEPTH):
        raise ValidationError(f"Nested deeper than {MAX_DEPTH} levels.")
    if text.count(rb"\\") > MAX_BACKSLASHES:
        raise ValidationError(f"More than {MAX_BACKSLASHES} backslashes.")
    if schema.get("type") != "object":
        raise ValidationError('Must have "type": "object".')
    if unwanted := [keyword for keyword in _NOT_AT_ROOT if keyword in schema]:
        raise ValidationError(f"Not allowed at the top level: {', '.join(unwanted)}.")
    if schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise ValidationError(f"$schema, if given, must be {DIALECT}.")
    _compiled(text.decode())


def _reason(error: "jsonschema_rs.ValidationError") -> str:
    """Why the validator rejects a schema."""
    place = ".".join(map(str, error.instance_path))
    if error.instance_path[-1:] == ["type"]:
        return f"{place}: must be one or several of {', '.join(TYPES)}."
    kind: Any = error.kind
    if kind.name == "format":
        return (
            f"{place}: unsupported pattern. Look-around and backreferences are not allowed, and a "
            f"pattern can have at most {MAX_PATTERN_SIZE >> 10} KiB when compiled (a . has about "
            "1 KiB for each repetition)."
        )
    return f"{place}: {sentence(error)}"


# The validator blocks the other threads of the process, so its work is limited. The work is
# estimated in steps of about 20 ns. Each value of the input takes one step for each value of the
# schema, or SLOW steps if the comparison involves a fraction or a very large number.
SLOW = 150
_SLOW_KEYWORDS = {"multipleOf", "uniqueItems"}
# The number of steps that a `format` takes for each byte of the input.
FORMAT_STEPS = 4
PATTERN_SIZE_OF_STEP = 400
MAX_STEPS = 20_000_000
# Errors are listed only up to this number of steps, since every second step can find an error, and
# each error contains a copy of the invalid value.
MAX_NAMED = 100_000
BYTES_COPIED_IN_STEP = 100
# Whole numbers above this value, and fractions, are compared digit by digit.
_MAX_WHOLE = 1 << 53
# Smaller absolute values, except 0, are replaced by this value, since comparing hundreds of digits
# would take 50 times as long.
_SMALLEST = 1e-20


def input_problems(schema: str, text: str) -> dict[str, list[str]]:
    """The errors of an input by path, such as `input.<name>`; too slow for a transaction."""
    return problems("input", schema, text, "the agent's inputSchema")


def problems(place: str, schema: str, text: str, name: str) -> dict[str, list[str]]:
    try:
        validator, weight = _compiled(schema)
    except ValidationError as error:
        # The schema was stored by an earlier version of the service, which did not have this limit.
        return {place: [f"{name[0].upper()}{name[1:]} is not allowed: {error.messages[0]}"]}
    instance, slow_numbers = _loads(text)
    values, size = sum(map(text.count, ",:[{")) + 1, len(text.encode())
    slow = slow_numbers * weight.numbers + values * weight.slow
    if values * weight.values + SLOW * slow + size * weight.of_byte > MAX_STEPS:
        return {place: [f"Too large to be checked against {name}."]}
    if validator.is_valid(instance):
        return {}
    if (values + size // BYTES_COPIED_IN_STEP) * weight.values > MAX_NAMED:
        return {place: [f"Does not match {name}."]}
    return named(place, instance, validator.iter_errors(instance))


class Weight(NamedTuple):
    """What makes a schema slow to check, after each `$ref` is replaced by its target."""

    values: int
    numbers: int
    # The count of numbers and keywords that make a comparison slow.
    slow: int
    # The number of steps for each byte of an input.
    of_byte: int


def _compiled(schema: str) -> "tuple[jsonschema_rs.Draft202012Validator, Weight]":
    """The validator for a schema, and the weight of the schema. Raises ValidationError."""
    # Imported here, since few requests need the validator.
    import jsonschema_rs

    root, _ = _loads(schema)
    try:
        # The schema is validated first, since `_weight` relies on the types of the keywords'
        # values.
        _schema_of_schemas().validate(root)
        weight = _weight(root)
        return _validator(root), weight
    except jsonschema_rs.ValidationError as error:
        raise ValidationError(_reason(error)) from None


def _validator(
    schema: dict[str, Any], pattern_size: int = MAX_PATTERN_SIZE
) -> "jsonschema_rs.Draft202012Validator":
    import jsonschema_rs

    options = jsonschema_rs.RegexOptions(size_limit=pattern_size, dfa_size_limit=_PATTERN_CACHE)
    return jsonschema_rs.Draft202012Validator(
        schema, validate_formats=True, mask="The value", pattern_options=options, offline=True
    )


@cache
def _schema_of_schemas() -> "jsonschema_rs.Draft202012Validator":
    return _validator({"$ref": DIALECT})


def _weight(root: dict[str, Any]) -> Weight:
    """Compute the weight of a schema; raises ValidationError."""
    schemas = dict(_schemas("#", root))
    count = numbers = slow = formats = 0
    patterns: list[str] = []
    waiting = ["#"]
    while waiting:
        pointer = waiting.pop()
        schema = schemas[pointer]
        count += 1
        if isinstance(schema, dict):
            waiting += dict(_inner(pointer, schema))
            waiting += _reference(pointer, schema, schemas)
            data = schema.keys() - _ONE - _LISTS - _OBJECTS
            values = [*_values([schema[keyword] for keyword in data])]
            count += len(values)
            numbers += sum(isinstance(value, int | float) for value in values)
            slow += len(_SLOW_KEYWORDS & schema.keys()) + sum(map(_is_slow, values))
            formats += "format" in schema
            patterns += schema.get("patternProperties", ())
            patterns += [schema["pattern"]] if "pattern" in schema else []
        if count > MAX_VALUES:
            raise ValidationError(
                f"More than {MAX_VALUES:,} values, with each $ref followed; a $ref must not lead "
                "back to itself."
            )
        if len(patterns) > MAX_PATTERNS:
            raise ValidationError(f"More than {MAX_PATTERNS} patterns, with each $ref followed.")
    of_patterns = sum(map(_pattern_size, patterns)) // PATTERN_SIZE_OF_STEP
    return Weight(count, numbers, slow, FORMAT_STEPS * formats + of_patterns)


def _pattern_size(pattern: str) -> int:
    for size in _PATTERN_SIZES[:-1]:
        with suppress(ValueError):
            _validator({"pattern": pattern}, size)
            return size
    return MAX_PATTERN_SIZE


def _schemas(pointer: str, schema: Any) -> Iterator[tuple[str, Any]]:
    """The schema and all schemas nested in it, with their JSON pointers."""
    yield pointer, schema
    for inner_pointer, inner in _inner(pointer, schema):
        yield from _schemas(inner_pointer, inner)


def _inner(pointer: str, schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas nested directly in a schema, with their JSON pointers."""
    for keyword, value in schema.items() if isinstance(schema, dict) else ():
        if keyword in _ONE:
            yield f"{pointer}/{keyword}", value
        elif keyword in _LISTS or keyword in _OBJECTS:
            for name, inner in value.items() if keyword in _OBJECTS else enumerate(value):
                part = str(name).replace("~", "~0").replace("/", "~1")
                yield f"{pointer}/{keyword}/{part}", inner


def _reference(pointer: str, schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """A list with the JSON pointer in `$ref`; empty without a `$ref`. Raises ValidationError."""
    place = pointer.removeprefix("#/").replace("/", ".")
    if unwanted := _NOWHERE & schema.keys() - ({"$schema"} if pointer == "#" else set()):
        raise ValidationError(f"{place}: not allowed: {', '.join(sorted(unwanted))}.")
    if "$ref" not in schema:
        return []
    target = unquote(schema["$ref"])
    if target not in schemas:
        raise ValidationError(f'{place}: $ref must be "#/..." and refer to a schema.')
    return [target]


def _values(value: Any) -> Iterator[Any]:
    """All values nested in an object or array."""
    for inner in value.values() if isinstance(value, dict) else value:
        yield inner
        if isinstance(inner, dict | list):
            yield from _values(inner)


def _is_slow(number: Any) -> bool:
    return isinstance(number, float) or (isinstance(number, int) and abs(number) > _MAX_WHOLE)


def _loads(text: str) -> tuple[Any, int]:
    """Parse JSON text; returns the value, and the count of numbers that are slow to compare."""
    slow_numbers = 0

    def number(digits: str) -> int | float:
        nonlocal slow_numbers
        value = _number(digits)
        slow_numbers += _is_slow(value)
        return value

    return json.loads(text, parse_float=number, parse_int=number), slow_numbers


def _number(text: str) -> int | float:
    """An int if the text is an integer of at most 18 digits, or the value is a whole number up to
    `_MAX_WHOLE`; otherwise a double.
    """
    if len(text) <= 18 and text.lstrip("-").isdigit():
        return int(text)
    value = float(text)
    size = min(max(abs(value), _SMALLEST), sys.float_info.max) if value else 0
    return int(value) if size <= _MAX_WHOLE and value.is_integer() else math.copysign(size, value)
