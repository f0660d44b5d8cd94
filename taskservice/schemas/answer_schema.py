"""Checks the JSON Schema of a question, and checks answers against the schema."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from marshmallow import ValidationError

from taskservice.schemas import strict_json
from taskservice.schemas.input_schema import check_input_schema, problems

# The default schema of a question: an object with the required string `answer`.
DEFAULT: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}

# Maps the type of a property to the keywords that are allowed with this type.
_KEYWORDS = {
    "string": {"minLength", "maxLength", "format", "enum", "enumNames", "oneOf"},
    "number": {"minimum", "maximum"},
    "integer": {"minimum", "maximum"},
    "boolean": set[str](),
    "array": {"items", "minItems", "maxItems"},
}
_FORMATS = ("date", "date-time", "email", "uri")
# The maximum numbers of properties and choices of a question, and of bytes in the name of a
# property. These limits bound the size of a page with the forms of up to 80 questions; a form
# repeats a property's name with each choice.
MAX_PROPERTIES = 50
MAX_CHOICES = 250
MAX_PROPERTY_NAME = 200


def check_question_schema(schema: dict[str, Any]) -> None:
    """Raises ValidationError if this schema is not allowed for a question."""
    if unknown := schema.keys() - {"$schema", "type", "properties", "required"}:
        raise ValidationError(f"Not allowed here: {', '.join(sorted(unknown))}.")
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        raise ValidationError("Must have the type object and properties.")
    required = schema.get("required", [])
    if not isinstance(required, list) or not set(map(str, required)) <= properties.keys():
        raise ValidationError("required must be a list of names of properties.")
    if not isinstance(schema.get("$schema", ""), str):
        raise ValidationError("$schema must be a string.")
    if len(properties) > MAX_PROPERTIES:
        raise ValidationError(f"More than {MAX_PROPERTIES} properties.")
    if any(len(name.encode()) > MAX_PROPERTY_NAME for name in properties):
        raise ValidationError(f"A name is longer than {MAX_PROPERTY_NAME} bytes.")
    for name, property_schema in properties.items():
        _check_property(name, property_schema)
    check_input_schema(_closed(schema))
    if sum(len(options(property_schema)) for property_schema in properties.values()) > MAX_CHOICES:
        raise ValidationError(f"More than {MAX_CHOICES} choices.")


def _check_property(name: str, schema: Any) -> None:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind not in list(_KEYWORDS):
        raise ValidationError(f"{name}: the type must be one of {', '.join(_KEYWORDS)}.")
    if unknown := schema.keys() - {"type", "title", "description", "default"} - _KEYWORDS[kind]:
        raise ValidationError(f"{name}: not allowed here: {', '.join(sorted(unknown))}.")
    if schema.get("format", "email") not in _FORMATS:
        raise ValidationError(f"{name}: the format must be one of {', '.join(_FORMATS)}.")
    if kind == "array" and not _is_choice(schema.get("items")):
        raise ValidationError(f"{name}: items must be an enum.")
    if not _are_options(schema.get("oneOf", [])):
        raise ValidationError(f"{name}: oneOf must be objects with const and title.")


def _is_choice(items: Any) -> bool:
    """Whether these items are an enum of strings, or options with titles."""
    if not isinstance(items, dict) or items.keys() - {"type", "enum", "anyOf"}:
        return False
    if "anyOf" in items:
        return _are_options(items["anyOf"])
    return items.get("type") == "string" and isinstance(items.get("enum"), list)


def _are_options(options: Any) -> bool:
    return isinstance(options, list) and all(
        isinstance(option, dict) and option.keys() == {"const", "title"} for option in options
    )


def answer_problems(schema: dict[str, Any], content: dict[str, Any]) -> dict[str, list[str]]:
    """The errors of an answer by path, such as `content.<name>`; too slow for a transaction."""
    closed, text = (strict_json.dumps(value).decode() for value in (_closed(schema), content))
    return problems("content", closed, text, "the question's schema")


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without additional properties, and without `$schema`, which has no effect."""
    keywords = {name: value for name, value in schema.items() if name != "$schema"}
    return {**keywords, "additionalProperties": False}


def field_name(name: str) -> str:
    """The name of the form field for a property."""
    # The name is percent-encoded, since browsers change some characters in field names, such as
    # line breaks.
    return f"field.{quote(name, safe='')}"


def options(schema: dict[str, Any]) -> list[tuple[Any, str]]:
    """The values to choose from, each with its label; empty if the property is not a choice."""
    if schema.get("type") == "boolean":
        return [(True, "Yes"), (False, "No")]
    if schema.get("type") == "array":
        schema = schema.get("items", {})
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    variants = schema.get("oneOf", schema.get("anyOf"))
    pairs: Iterable[tuple[Any, str]] = ()
    if isinstance(values, list):
        names = schema.get("enumNames")
        titles = list(map(str, names)) if isinstance(names, list) else []
        pairs = zip(values, [*titles, *map(plain, values[len(titles) :])], strict=False)
    elif isinstance(variants, list) and all(
        isinstance(variant, dict) and "const" in variant for variant in variants
    ):
        pairs = [
            (variant["const"], str(variant.get("title") or plain(variant["const"])))
            for variant in variants
        ]
    return [(value, title or "“”") for value, title in pairs]


def plain(value: Any) -> str:
    """A value as a person reads it: a string unchanged, other values as JSON."""
    return value if isinstance(value, str) else strict_json.dumps(value).decode()
