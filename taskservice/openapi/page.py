"""Formats the OpenAPI document for the documentation page."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from taskservice.openapi.document import ALWAYS_REFUSED, REFUSALS, Object

# A longer pattern is left out: the description says the same.
MAX_PATTERN = 40

_MARK = re.compile(r"`(.+?)`|\*(.+?)\*")


def prose(text: str) -> Markup:
    """Paragraphs of a text whose only markup is `code` and *emphasis*."""
    return Markup("").join(
        Markup("<p>{}</p>").format(inline(part)) for part in text.strip().split("\n\n")
    )


def inline(text: str) -> Markup:
    html, place = Markup(""), 0
    for mark in _MARK.finditer(text):
        code, stressed = mark.groups()
        tag = Markup("<code>{}</code>") if code else Markup("<em>{}</em>")
        html += text[place : mark.start()] + tag.format(code or stressed)
        place = mark.end()
    return html + text[place:]


def kind(schema: Object) -> Markup:
    """The type of a value in words; a named schema becomes a link."""
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return Markup(" or ").join(map(kind, schema["anyOf"]))
    types = schema.get("type", "anything")
    if types == "array":
        return Markup("array of {}").format(kind(schema["items"]))
    return escape(types if isinstance(types, str) else " or ".join(types))


def limits(schema: Object) -> Iterator[Markup]:
    """The constraints of a value."""
    if "enum" in schema:
        words = [each if isinstance(each, str) else json.dumps(each) for each in schema["enum"]]
        yield Markup(", ").join(map(Markup("<code>{}</code>").format, words))
    if "items" in schema:
        yield from limits(schema["items"])
    if "format" in schema:
        yield escape(schema["format"])
    if len(schema.get("pattern", "")) in range(1, MAX_PATTERN):
        yield Markup("<code>{}</code>").format(schema["pattern"])
    for low, high, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", "characters")):
        if low in schema or high in schema:
            yield escape(_between(schema.get(low), schema.get(high), unit))
    if "default" in schema:
        yield Markup("default <code>{}</code>").format(schema["default"])


def _between(low: int | None, high: int | None, unit: str) -> str:
    if low is None or high is None:
        bounds = f"maximum {high:,}" if low is None else f"minimum {low:,}"
    else:
        bounds = f"{low:,} to {high:,}"
    return f"{bounds} {unit}".strip()


def resolved(document: Object, node: Object) -> Object:
    """The node, or the target of its `$ref`."""
    if "$ref" not in node:
        return node
    _, *path = node["$ref"].split("/")
    for name in path:
        document = document[name]
    return document


def response_headers(document: Object, operation: Object) -> dict[str, Object]:
    """The headers of successful responses, and of a webhook's, without X-Request-Id."""
    return {
        name: resolved(document, header)
        for status, response in operation["responses"].items()
        if status < "400" or status == "default"
        for name, header in response.get("headers", {}).items()
        if name != "X-Request-Id"
    }


def own_errors(document: Object, operation: Object) -> Iterator[tuple[str, Object]]:
    """(status, response) of an operation's errors, without those that any request can get."""
    for status, response in operation["responses"].items():
        if status >= "400" and int(status) not in ALWAYS_REFUSED:
            yield status, resolved(document, response)


def common_errors(document: Object) -> Iterator[tuple[int, Object]]:
    for status in ALWAYS_REFUSED:
        yield status, document["components"]["responses"][REFUSALS[status]]


def pretty(value: Any) -> str:
    """An example, as indented JSON or as text."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def curl(path: str, method: str, operation: Object) -> str:
    """The curl command of an operation's example; it needs `$URL` and `$KEY` to be set."""
    command = "curl" if method == "get" else f"curl -X {method.upper()}"
    key = [] if "security" in operation else ['-H "apikey: $KEY"']
    contents = operation.get("requestBody", {"content": {}})["content"]
    body = [
        f'-H "Content-Type: {kind}" \\\n  -d {shlex.quote(json.dumps(content["example"]))}'
        for kind, content in contents.items()
    ]
    words = [f"{command} $URL{_filled(path, operation)}", *key, *body[:1]]
    return " \\\n  ".join(words)


def _filled(path: str, operation: Object) -> str:
    path_values, query = (
        {
            parameter["name"]: parameter["schema"]["examples"][0]
            for parameter in operation["parameters"]
            if parameter["in"] == place and parameter["required"]
        }
        for place in ("path", "query")
    )
    return path.format(**path_values) + (f"?{urlencode(query)}" if query else "")
