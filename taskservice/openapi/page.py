"""Formats the OpenAPI document for the documentation page."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from taskservice.openapi.components import ALWAYS_REFUSED, REFUSALS, Object

MAX_PATTERN = (
    40  # longer patterns are left out: the description of the field explains what is valid
)

_MARK = re.compile(r"`(.+?)`|\*(.+?)\*")


def prose(text: str) -> Markup:
    """The paragraphs of a text as HTML; its only markup is `code` and *emphasis*."""
    paragraphs = map(inline, text.strip().split("\n\n"))
    return Markup("").join(map(Markup("<p>{}</p>").format, paragraphs))


def inline(text: str) -> Markup:
    def tagged(mark: re.Match[str]) -> str:
        return f"<code>{mark[1]}</code>" if mark[1] else f"<em>{mark[2]}</em>"

    return Markup(_MARK.sub(tagged, escape(text)))  # noqa: S704


def kind(schema: Object) -> Markup:
    """The type of a value as text; a named schema becomes a link."""
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
        words = [value if isinstance(value, str) else json.dumps(value) for value in schema["enum"]]
        yield Markup(", ").join(map(Markup("<code>{}</code>").format, words))
    if "items" in schema:
        yield from limits(schema["items"])
    if "format" in schema:
        yield escape(schema["format"])
    if len(schema.get("pattern", "")) in range(1, MAX_PATTERN):
        yield Markup("<code>{}</code>").format(schema["pattern"])
    for low, high, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters")):
        if low in schema and high in schema:
            yield escape(f"{schema[low]:,} to {schema[high]:,}{unit}")
        elif low in schema or high in schema:
            word, name = ("minimum", low) if low in schema else ("maximum", high)
            yield escape(f"{word} {schema[name]:,}{unit}")
    if "default" in schema:
        yield Markup("default <code>{}</code>").format(schema["default"])


def resolved(document: Object, node: Object) -> Object:
    """The node, or the target of its `$ref`."""
    if "$ref" not in node:
        return node
    _, *path = node["$ref"].split("/")
    target: Object = reduce(getitem, path, document)
    return target


def response_headers(document: Object, operation: Object) -> dict[str, Object]:
    """The headers of an operation's successful responses, without X-Request-Id."""
    return {
        name: resolved(document, header)
        for status, response in operation["responses"].items()
        if status < "400" or status == "default"
        for name, header in response.get("headers", {}).items()
        if name != "X-Request-Id"
    }


def own_errors(document: Object, operation: Object) -> Iterator[tuple[str, Object]]:
    """The status and response of each error, except errors that any request can get."""
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
    """The curl command for an operation's example, with the variables `$URL` and `$KEY`."""
    query = urlencode(_required(operation, "query"))
    url = path.format(**_required(operation, "path")) + (f"?{query}" if query else "")
    method_option = "" if method == "get" else f"-X {method.upper()} "
    words = [f"curl {method_option}$URL{url}"]
    if "security" not in operation:
        words.append('-H "apikey: $KEY"')
    contents = operation.get("requestBody", {}).get("content", {})
    for kind, content in list(contents.items())[:1]:
        example = shlex.quote(json.dumps(content["example"]))
        words += [f'-H "Content-Type: {kind}"', f"-d {example}"]
    return " \\\n  ".join(words)


def _required(operation: Object, place: str) -> Object:
    """The example of each required parameter, by the name of the parameter."""
    return {
        parameter["name"]: parameter["schema"]["examples"][0]
        for parameter in operation["parameters"]
        if parameter["in"] == place and parameter["required"]
    }
