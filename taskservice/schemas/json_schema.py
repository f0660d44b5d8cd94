"""The JSON Schema of an agent's input: what is allowed in it, and whether an input fits it."""

import json
import re
import sys
from collections.abc import Iterator
from functools import lru_cache, reduce
from itertools import islice
from operator import getitem
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from taskservice.database.models import INPUT_SCHEMA
from taskservice.schemas import strict_json

if TYPE_CHECKING:
    from jsonschema_rs import Draft202012Validator, ValidationError


# What a value lacks by its JSON Schema, in plain sentences.

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


# The JSON Schema of an agent's input: what is allowed in it, and whether an input fits it.

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA = 16 * 1024
MAX_DEPTH = 16
# With each `$ref` replaced by what it refers to: maximum numbers of schemas, of their levels, and
# of values in `enum`, `const` and `required`.
MAX_SCHEMAS = 1_000
MAX_LEVELS = 100
MAX_MEMBERS = 4_000
# A compiled pattern takes memory, and for each byte of a text time, in proportion to its size in
# bytes. It is known only to be one of these, which are tried.
_PATTERN_SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 640 << 10)
# The largest is enough for `^.{1,500}$`.
MAX_PATTERN_SIZE = _PATTERN_SIZES[-1]
# Of all patterns of a schema, with each `$ref` followed.
MAX_PATTERNS = 50
MAX_ALL_PATTERNS = 1 << 20
# How many _CLASSES all patterns of a schema may have. The validator replaces them one by one, and
# reads the whole pattern anew for each: it takes time in proportion to the square of their number.
MAX_CLASSES = 200
_ESCAPE = re.compile(r"\\(.)")
_CLASSES = "dDsSwW"
# With more memory for its cache a pattern is hardly faster.
_PATTERN_CACHE = 64 << 10

# The validator keeps the interpreter's lock, so its time is estimated in steps of at most 20 ns:
# one for each value and each schema; NUMBER_STEPS for each comparison of numbers that are no
# whole numbers of a double; and for each byte, what patterns and formats take.
NUMBER_STEPS = 150
# A very small or large number has hundreds of digits.
EXTREME_NUMBER = 20
FORMAT_STEPS = 4
PATTERN_SIZE_OF_STEP = 400
MAX_STEPS = 20_000_000
# An array is unique if each item differs from up to 14 others.
UNIQUE_STEPS = 10
# Up to this number of steps, and of bytes times schemas (which errors have copies of), errors
# are named.
MAX_NAMED = 200_000
MAX_COPIED = 5_000_000
_COMPARED = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Larger numbers than these are compared digit by digit, as are fractions.
_MAX_WHOLE = 1 << 53

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
    # The validator takes twice as long for each level of them.
    "unevaluatedItems",
    "unevaluatedProperties",
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
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_OBJECTS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# What they have is only used where a `$ref` refers to it.
_DEFINITIONS = ("$defs", "definitions")


class Size(NamedTuple):
    """What is checked, with each `$ref` followed."""

    schemas: int = 0
    # Values in `enum`, `const` and `required`.
    members: int = 0
    # Numbers that a number is compared with, and the `_digits` of them.
    numbers: int = 0
    exact_numbers: int = 0
    patterns: int = 0
    pattern_size: int = 0
    formats: int = 0

    def plus(self, other: "Size") -> "Size":
        return Size(*(mine + its for mine, its in zip(self, other, strict=True)))


class Unfit(ValueError):
    """The schema is not allowed; the message says why."""


def input_schema_problem(schema: dict[str, Any]) -> str | None:
    """Why this is no schema of an input; None if it is one."""
    text = strict_json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        return f"Longer than {MAX_SCHEMA} bytes."
    # Its numbers are now as the validator reads them.
    schema = _loads(text.decode())
    if strict_json.depth(schema) > MAX_DEPTH:
        return f"Nested deeper than {MAX_DEPTH} levels."
    try:
        _check_root(schema)
        _Sizes(schema).check()
        _validator(schema)
    except ValueError as error:
        return reason(error)
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
        # Before any pattern is compiled.
        patterns = (each for schema in self._schemas.values() for each in _patterns(schema))
        escapes = (each for pattern in patterns for each in _ESCAPE.findall(pattern))
        if sum(each in _CLASSES for each in escapes) > MAX_CLASSES:
            raise Unfit(
                f"More than {MAX_CLASSES} of \\d, \\s, \\w and the like in all patterns together."
            )
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
        size = self._own(pointer, schema)
        for part in self._parts(pointer, schema):
            size = size.plus(self.of(part))
        for number, limit, what in (
            (size.schemas, MAX_SCHEMAS, "schemas"),
            (size.members, MAX_MEMBERS, "values in enum, const and required"),
            (size.patterns, MAX_PATTERNS, "patterns"),
        ):
            if number > limit:
                raise Unfit(f"More than {limit:,} {what}, with each $ref followed.")
        if size.pattern_size > MAX_ALL_PATTERNS:
            limit = MAX_ALL_PATTERNS >> 10
            raise Unfit(f"All patterns together have more than {limit:,} KiB when compiled.")
        return size

    def _own(self, pointer: str, schema: dict[str, Any]) -> Size:
        """What the schema itself checks, without those inside it."""
        options = list(_values([schema[each] for each in ("enum", "const") if each in schema]))
        # Each name of these is looked up in each value.
        required = [schema.get("required", []), *_dict(schema, "dependentRequired").values()]
        names = sum(len(each) for each in required if isinstance(each, list))
        numbers = [each for each in options if _is_number(each)]
        numbers += [schema[each] for each in _COMPARED if _is_number(schema.get(each))]
        step = schema.get("multipleOf")
        if _is_number(step) and _digits(step):
            raise Unfit(f"{_name(pointer)}: multipleOf must be a whole number up to 2^53.")
        unique = UNIQUE_STEPS if schema.get("uniqueItems") is True else 0
        patterns = _patterns(schema)
        flags = sum(isinstance(each, bool) for _, each in _inner(schema, _DEFINITIONS))
        return Size(
            schemas=1 + unique + flags + len(_dict(schema, "dependentRequired")),
            members=len(options) + names,
            numbers=len(numbers) + unique,
            exact_numbers=sum(map(_digits, numbers)),
            patterns=len(patterns),
            pattern_size=sum(map(_pattern_size, patterns)),
            formats="format" in schema,
        )

    def _parts(self, pointer: str, schema: dict[str, Any]) -> Iterator[str]:
        for child, _ in _children(pointer, schema, _DEFINITIONS):
            yield child
        if "$ref" in schema:
            target = unquote(schema["$ref"]) if isinstance(schema["$ref"], str) else ""
            if target not in self._schemas:
                raise Unfit(f'{_name(pointer)}: $ref must be "#/..." and refer to a schema.')
            yield target


def _patterns(schema: dict[str, Any]) -> list[str]:
    own = [each for each in (schema.get("pattern"),) if isinstance(each, str)]
    return [*own, *_dict(schema, "patternProperties")]


def _dict(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _values(value: Any) -> Iterator[Any]:
    """All values inside a value."""
    for each in value.values() if isinstance(value, dict) else value:
        yield each
        if isinstance(each, dict | list):
            yield from _values(each)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digits(number: Any) -> int:
    """How long the validator takes to compare it digit by digit; 0 if it does not."""
    if isinstance(number, int) and abs(number) <= _MAX_WHOLE:
        return 0
    return 1 if 1e-15 < abs(number) < 1e18 else EXTREME_NUMBER


@lru_cache(maxsize=256)
def _pattern_size(pattern: str) -> int:
    """The size of a pattern when compiled; 0 if it is not allowed, which the validator says."""
    for size in _PATTERN_SIZES:
        try:
            _validator({"pattern": pattern}, size)
        except ValueError:
            continue
        return size
    return 0


def _inside(pointer: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for child in _children(pointer, schema):
        yield child
        yield from _inside(*child)


def _children(
    pointer: str, schema: dict[str, Any], without: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas right inside a schema with their JSON pointers; true and false are left out."""
    for name, each in _inner(schema, without):
        if isinstance(each, dict):
            yield f"{pointer}/{name}", each


def _inner(schema: dict[str, Any], without: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """What a schema has where schemas are."""
    for keyword in _ONE:
        yield keyword, schema.get(keyword)
    for keyword in (*_LISTS, *_OBJECTS):
        several = schema.get(keyword)
        if keyword not in without and isinstance(several, dict | list):
            named = several.items() if isinstance(several, dict) else enumerate(several)
            for name, each in named:
                escaped = str(name).replace("~", "~0").replace("/", "~1")
                yield f"{keyword}/{escaped}", each


def _name(pointer: str) -> str:
    """A JSON pointer as errors name a place."""
    names = pointer.split("/")[1:]
    return ".".join(name.replace("~1", "/").replace("~0", "~") for name in names) or "At the top"


def reason(error: ValueError) -> str:
    """Why a schema is not allowed."""
    if isinstance(error, Unfit):
        return str(error)
    path: list[str | int] = getattr(error, "instance_path", [])
    place = ".".join(map(str, path))
    if path and path[-1] == "type":
        return f"{place}: must be one or several of {', '.join(TYPES)}."
    kind: Any = getattr(error, "kind", None)
    if path and kind.name == "format" and kind.value == "regex":
        return (
            f"{place}: not a pattern that is checked in linear time, which has no look-around and "
            f"no backreference, and at most {MAX_PATTERN_SIZE >> 10} KiB when compiled (a . has "
            "about 1 KiB for each repetition)."
        )
    said = sentence(error) if place else f"Not a JSON Schema: {error.args[0]}"  # type: ignore[arg-type]
    return f"{place}: {said}" if place else said


# --- an input ----------------------------------------------------------------------------


class Input:
    """An input as JSON, and by which schemas it was checked.

    The check may take long, so it is not made inside a transaction: there `fits` says whether the
    input is known to fit, and if it is not, `check` looks outside of it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._fitting = {INPUT_SCHEMA}

    def fits(self, schema: str) -> bool:
        """Whether the input is known to fit the stored schema."""
        return schema in self._fitting

    def check(self, schema: str) -> dict[str, list[str]]:
        """`input.<name>` -> what is wrong there; empty if the input fits the stored schema."""
        if self.fits(schema):
            return {}
        try:
            _compiled(schema)
        except ValueError as error:
            # It was stored before there was this limit.
            return {"input": [f"The agent's inputSchema is no longer allowed: {reason(error)}"]}
        errors = problems("input", schema, self.text, "the agent's inputSchema")
        if not errors:
            self._fitting.add(schema)
        return errors


def problems(place: str, schema: str, text: str, name: str) -> dict[str, list[str]]:
    """`place.<name>` -> what does not fit the schema, which was allowed; empty if all fits."""
    compiled = _compiled(schema)
    instance, exact = _counted(text)
    steps = compiled.steps(text, exact)
    if steps > MAX_STEPS:
        return {place: [f"Too long to be checked by {name}."]}
    if compiled.validator.is_valid(instance):
        return {}
    if steps > MAX_NAMED or len(text) * compiled.size.schemas > MAX_COPIED:
        return {place: [f"Does not fit {name}."]}
    return named(place, instance, compiled.validator.iter_errors(instance))


class _Compiled(NamedTuple):
    validator: "Draft202012Validator"
    size: Size

    def steps(self, text: str, exact_numbers: int) -> int:
        """About how many steps the check of this input takes at most."""
        size = self.size
        values = sum(map(text.count, ",:[{")) + 1
        by_byte = size.pattern_size // PATTERN_SIZE_OF_STEP + size.formats * FORMAT_STEPS
        compared = exact_numbers * size.numbers + values * size.exact_numbers
        return (
            values * (size.schemas + size.members)
            + compared * NUMBER_STEPS
            + len(text.encode()) * by_byte
        )


# The patterns of each take up to some MiB.
@lru_cache(maxsize=32)
def _compiled(schema: str) -> _Compiled:
    parsed = _loads(schema)
    sizes = _Sizes(parsed)
    sizes.check()
    return _Compiled(_validator(parsed), sizes.of("#"))


def _validator(
    schema: dict[str, Any], pattern_size: int = MAX_PATTERN_SIZE
) -> "Draft202012Validator":
    """Raises ValueError if it is no JSON Schema."""
    # Here, since few requests need it.
    import jsonschema_rs

    options = jsonschema_rs.RegexOptions(size_limit=pattern_size, dfa_size_limit=_PATTERN_CACHE)
    return jsonschema_rs.Draft202012Validator(
        schema,
        validate_formats=True,
        mask="The value",
        pattern_options=options,
        offline=True,
    )


def _loads(text: str) -> Any:
    """JSON that was checked before, with the numbers that the validator gets: see `_number`."""
    return _counted(text)[0]


def _counted(text: str) -> tuple[Any, int]:
    """The same, and the `_digits` of all its numbers."""
    count = 0

    def number(digits: str) -> int | float:
        nonlocal count
        found = _number(digits)
        count += _digits(found)
        return found

    return json.loads(text, parse_float=number, parse_int=number), count


def _number(text: str) -> int | float:
    """A whole number if it is one of a double, or has up to 18 digits; else the nearest double."""
    if len(text) <= 18 and text.lstrip("-").isdigit():
        return int(text)
    largest = sys.float_info.max
    value = max(-largest, min(largest, float(text)))
    return int(value) if value.is_integer() and abs(value) <= _MAX_WHOLE else value


# The schema of a question: what MCP's elicitation allows, and whether an answer fits it.

# Without a schema, a question wants one text.
DEFAULT: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
MAX_QUESTION_SCHEMA = 16 * 1024

_ROOT = {"$schema", "type", "properties", "required"}
_EVERY = {"type", "title", "description", "default"}
# Type of a property -> the other keywords that it may have.
_KEYWORDS = {
    "string": {"minLength", "maxLength", "format", "enum", "enumNames", "oneOf"},
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set[str](),
    "array": {"items", "minItems", "maxItems"},
}
_FORMATS = {"email", "uri", "date", "date-time"}


def question_schema_problem(schema: dict[str, Any]) -> str | None:
    """Why this is no schema for a question; None if it is one."""
    return question_keywords_problem(schema) or input_schema_problem(_without_dialect(schema))


def question_keywords_problem(schema: dict[str, Any]) -> str | None:
    """The same without what is wrong in the values of its properties, and fast."""
    if len(strict_json.dumps(schema)) > MAX_QUESTION_SCHEMA:
        return f"Longer than {MAX_QUESTION_SCHEMA} bytes."
    unknown = schema.keys() - _ROOT
    if unknown:
        return f"Not allowed here: {', '.join(sorted(unknown))}."
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return "Must have the type object, and properties."
    required = schema.get("required", [])
    if not isinstance(required, list) or not set(map(str, required)) <= properties.keys():
        return "required must be a list of names of properties."
    if not isinstance(schema.get("$schema", ""), str):
        return "$schema must be a string."
    found = (_problem_of_property(name, each) for name, each in properties.items())
    return next(filter(None, found), None)


def _problem_of_property(name: str, schema: Any) -> str | None:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(kind, str) or kind not in _KEYWORDS:
        return f"{name}: the type must be one of {', '.join(_KEYWORDS)}."
    unknown = schema.keys() - _EVERY - _KEYWORDS[kind]
    if unknown:
        return f"{name}: not allowed here: {', '.join(sorted(unknown))}."
    form = schema.get("format", "email")
    if not isinstance(form, str) or form not in _FORMATS:
        return f"{name}: the format must be one of {', '.join(sorted(_FORMATS))}."
    if kind == "array":
        return None if _is_choice(schema.get("items")) else f"{name}: items must be an enum."
    return None if _are_options(schema.get("oneOf")) else f"{name}: oneOf must be options."


def _is_choice(items: Any) -> bool:
    """Whether this is an enum of strings, or options with titles."""
    if not isinstance(items, dict) or items.keys() - {"type", "enum", "anyOf"}:
        return False
    if "anyOf" in items:
        return _are_options(items["anyOf"])
    return items.get("type") == "string" and isinstance(items.get("enum"), list)


def _are_options(options: Any) -> bool:
    return options is None or (
        isinstance(options, list)
        and all(isinstance(each, dict) and each.keys() == {"const", "title"} for each in options)
    )


def problems_of_answer(schema: dict[str, Any], content: dict[str, Any]) -> dict[str, list[str]]:
    """`content.<name>` -> why this value does not fit; empty if the answer does.

    It may take long, so it is not called inside a transaction.
    """
    closed, text = (
        strict_json.dumps(each).decode()
        for each in ({**_without_dialect(schema), "additionalProperties": False}, content)
    )
    try:
        return problems("content", closed, text, "the question's schema")
    except ValueError as error:
        # It was stored before there was this limit.
        because = reason(error)
        return {"content": [f"The question's schema is no longer allowed: {because}"]}


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    """What is allowed in it means the same in each of them."""
    return {name: each for name, each in schema.items() if name != "$schema"}
