"""The schema of a question: what MCP's elicitation allows, and whether an answer fits it."""

from typing import Any

from taskservice.schemas import json_schema, strict_json

# Without a schema, a question wants one text.
DEFAULT: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
}
MAX_SCHEMA = 16 * 1024

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


def problem(schema: dict[str, Any]) -> str | None:
    """Why this is no schema for a question; None if it is one."""
    if len(strict_json.dumps(schema)) > MAX_SCHEMA:
        return f"Longer than {MAX_SCHEMA} bytes."
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
    return next(filter(None, found), None) or json_schema.problem(_without_dialect(schema))


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
        return json_schema.problems("content", closed, text, "the question's schema")
    except ValueError as error:
        # It was stored before there was this limit.
        because = json_schema.reason(error)
        return {"content": [f"The question's schema is no longer allowed: {because}"]}


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    """What is allowed in it means the same in each of them."""
    return {name: each for name, each in schema.items() if name != "$schema"}
