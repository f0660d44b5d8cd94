"""The JSON Schema of an agent's input: what is allowed in it, and whether an input fits it."""

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from taskservice.database.models import INPUT_SCHEMA
from taskservice.schemas import strict_json, validation_errors

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA = 16 * 1024
MAX_DEPTH = 16
# With each `$ref` replaced by what it refers to: maximum numbers of schemas, and of their levels.
MAX_SCHEMAS = 1_000
MAX_LEVELS = 100

# How long the check of an input takes is estimated in steps of some nanoseconds: one for each value
# and each schema, and PATTERN_STEPS for each byte and each pattern.
PATTERN_STEPS = 50
# From this number on an input is not checked inside a transaction, and then it is refused.
QUICK = 1_000_000
MAX_STEPS = 100_000_000
# Up to this number of values times schemas, the errors are named.
MAX_NAMED = 50_000
# The engine takes time in proportion to the text and to the size of the compiled pattern.
_PATTERN_BYTES = 16 * 1024

# A client of MCP drops a tool that has one of these at the root.
_NOT_AT_ROOT = ("oneOf", "anyOf", "allOf", "not", "if", "enum", "$ref")
# They would change what a `$ref` refers to, are of other drafts, or let a client of MCP repeat a
# value in a header, which the service would have to compare.
_NOWHERE = {
    "$id",
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "$schema",
    "$vocabulary",
    "dependencies",
    "x-mcp-header",
}
# Keywords that have one schema, a list of them, or an object of them; all others have data.
_ONE = (
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_OBJECTS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# What they have is only used where a `$ref` refers to it.
_DEFINITIONS = ("$defs", "definitions")


class Size(NamedTuple):
    """How many schemas and patterns are checked, with each `$ref` followed."""

    schemas: int
    patterns: int


class Unfit(ValueError):
    """The schema is not allowed; the message says why."""


def problem(schema: dict[str, Any]) -> str | None:
    """Why this is no schema of an input; None if it is one."""
    text = strict_json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        return f"Longer than {MAX_SCHEMA} bytes."
    # Its numbers are now as the validator reads them.
    schema = _loads(text)
    if strict_json.depth(schema) > MAX_DEPTH:
        return f"Nested deeper than {MAX_DEPTH} levels."
    try:
        _check_root(schema)
        _Sizes(schema).check()
        _validator(schema)
    except Unfit as error:
        return str(error)
    except ValueError as error:
        return _not_a_schema(error)
    return None


def _check_root(schema: dict[str, Any]) -> None:
    if schema.get("type") != "object":
        raise Unfit('Must have "type": "object".')
    unwanted = [keyword for keyword in _NOT_AT_ROOT if keyword in schema]
    if unwanted:
        raise Unfit(f"Not allowed at the top: {', '.join(unwanted)}.")
    if schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise Unfit(f"$schema, if given, must be {DIALECT}.")


class _Sizes:
    """The schemas inside a schema by their JSON pointers, and how large each is."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._schemas = {"#": root, **dict(_inside("#", root))}
        self._known: dict[str, Size] = {}
        # Those that are being measured.
        self._open: list[str] = []

    def check(self) -> None:
        """Raises Unfit for a keyword or `$ref` that is not allowed, and if it is too large."""
        for pointer, schema in self._schemas.items():
            unwanted = _NOWHERE & schema.keys() - ({"$schema"} if schema is self._root else set())
            if unwanted:
                raise Unfit(f"{_name(pointer)}: not allowed: {', '.join(sorted(unwanted))}.")
            self.of(pointer)

    def of(self, pointer: str) -> Size:
        if pointer not in self._known:
            if pointer in self._open:
                raise Unfit(f"{_name(pointer)}: a $ref must not lead back to itself.")
            if len(self._open) == MAX_LEVELS:
                raise Unfit(f"Deeper than {MAX_LEVELS} levels, with each $ref followed.")
            self._open.append(pointer)
            self._known[pointer] = self._measured(pointer)
            self._open.pop()
        return self._known[pointer]

    def _measured(self, pointer: str) -> Size:
        schema = self._schemas[pointer]
        parts = [self.of(each) for each in self._parts(pointer, schema)]
        # Each name of these is looked up in each value.
        schemas = 1 + _count(schema, "dependentRequired")
        patterns = ("pattern" in schema) + _count(schema, "patternProperties")
        size = Size(
            schemas + sum(part.schemas for part in parts),
            patterns + sum(part.patterns for part in parts),
        )
        if size.schemas > MAX_SCHEMAS:
            raise Unfit(f"More than {MAX_SCHEMAS:,} schemas, with each $ref followed.")
        return size

    def _parts(self, pointer: str, schema: dict[str, Any]) -> Iterator[str]:
        for child, _ in _children(pointer, schema, _DEFINITIONS):
            yield child
        if "$ref" in schema:
            target = unquote(schema["$ref"]) if isinstance(schema["$ref"], str) else ""
            if target not in self._schemas:
                raise Unfit(f'{_name(pointer)}: $ref must be "#/..." and refer to a schema.')
            yield target


def _count(schema: dict[str, Any], keyword: str) -> int:
    value = schema.get(keyword)
    return len(value) if isinstance(value, dict) else 0


def _inside(pointer: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for child in _children(pointer, schema):
        yield child
        yield from _inside(*child)


def _children(
    pointer: str, schema: dict[str, Any], without: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas right inside a schema with their JSON pointers; true and false are left out."""
    found = [(keyword, schema.get(keyword)) for keyword in _ONE]
    for keyword in (*_LISTS, *_OBJECTS):
        several = schema.get(keyword)
        if keyword not in without and isinstance(several, dict | list):
            named = several.items() if isinstance(several, dict) else enumerate(several)
            found += [(f"{keyword}/{_escaped(str(name))}", each) for name, each in named]
    for name, each in found:
        if isinstance(each, dict):
            yield f"{pointer}/{name}", each


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _name(pointer: str) -> str:
    """A JSON pointer as errors name a place."""
    names = pointer.split("/")[1:]
    return ".".join(name.replace("~1", "/").replace("~0", "~") for name in names) or "At the top"


def _not_a_schema(error: ValueError) -> str:
    path: list[str | int] = getattr(error, "instance_path", [])
    place = ".".join(map(str, path))
    if path and path[-1] == "type":
        return f"{place}: must be one or several of {', '.join(validation_errors.TYPES)}."
    kind: Any = getattr(error, "kind", None)
    if path and kind.name == "format" and kind.value == "regex":
        return (
            f"{place}: not a pattern that is checked in linear time, which has no look-around and "
            "no backreference, and repeats little."
        )
    said = validation_errors.sentence(error) if place else f"Not a JSON Schema: {error.args[0]}"  # type: ignore[arg-type]
    return f"{place}: {said}" if place else said


# --- an input ----------------------------------------------------------------------------


class Input:
    """An input as JSON, and by which schemas it was checked.

    What takes long is not done inside a transaction: there `fits` says whether the input is known
    to fit, and if it is not, `check` looks closer outside of it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._fitting = {INPUT_SCHEMA}

    def fits(self, schema: str) -> bool:
        """Whether the input is known to fit the stored schema, or it is quickly seen."""
        return schema in self._fitting or (
            _compiled(schema).steps(self.text) <= QUICK and self._is_valid(schema)
        )

    def check(self, schema: str) -> dict[str, list[str]]:
        """`input.<name>` -> what is wrong there; empty if the input fits the stored schema."""
        compiled = _compiled(schema)
        if compiled.steps(self.text) > MAX_STEPS:
            return {"input": ["Too long to be checked by the agent's inputSchema."]}
        if self._is_valid(schema):
            return {}
        if _values(self.text) * compiled.size.schemas > MAX_NAMED:
            return {"input": ["Does not fit the agent's inputSchema."]}
        instance = _loads(self.text)
        return validation_errors.named("input", instance, compiled.validator.iter_errors(instance))

    def _is_valid(self, schema: str) -> bool:
        is_valid = _compiled(schema).validator.is_valid(_loads(self.text))
        if is_valid:
            self._fitting.add(schema)
        return is_valid


class _Compiled(NamedTuple):
    validator: "Draft202012Validator"
    size: Size

    def steps(self, text: str) -> int:
        """About how many steps the check of this input takes at most."""
        by_pattern = len(text) * self.size.patterns * PATTERN_STEPS
        return _values(text) * self.size.schemas + by_pattern


@lru_cache(maxsize=64)
def _compiled(schema: str) -> _Compiled:
    parsed = _loads(schema)
    return _Compiled(_validator(parsed), _Sizes(parsed).of("#"))


def _validator(schema: dict[str, Any]) -> "Draft202012Validator":
    """Raises ValueError if it is no JSON Schema."""
    # Here, since few requests need it.
    import jsonschema_rs

    return jsonschema_rs.Draft202012Validator(
        schema,
        validate_formats=True,
        mask="The value",
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES),
        offline=True,
    )


def _loads(text: str | bytes) -> Any:
    """JSON that was checked before, with exact numbers."""
    return json.loads(text, parse_float=Decimal)


def _values(text: str) -> int:
    """At least how many values and names JSON text has."""
    return text.count(",") + text.count(":") + 1
