"""Checks each response that a test gets against the OpenAPI document."""

import json
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

import jsonschema_rs
import requests
from flask import Flask
from requests.structures import CaseInsensitiveDict
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from taskservice import api
from taskservice.openapi.components import ALWAYS_REFUSED
from taskservice.openapi.document import document, openapi_path
from taskservice.openapi.page import resolved
from taskservice.terms import API_PREFIX

AnyHeaders = Headers | CaseInsensitiveDict[str]

# Headers that every HTTP server or proxy sends, or that all responses of a kind have.
UNTOLD = {
    "allow", "cache-control", "connection", "content-encoding", "content-length",
    "content-security-policy", "content-type", "date", "keep-alive", "server",
    "transfer-encoding", "vary", "x-content-type-options",
}  # fmt: skip
# The possible statuses where the document has no operation.
NOWHERE = {200, 401, 403, 404, 405, *ALWAYS_REFUSED}
# The schemas to which `expand` adds members, and the schema of a task with `fields`.
EXPANDABLE = {"#/components/schemas/Task", "#/components/schemas/Agent"}
PARTIAL_TASK = "#/components/schemas/PartialTask"
# Of a longer body only status and headers are checked.
LONGEST = 4 * 1024 * 1024


def check(method: str, path: str, response: TestResponse | requests.Response) -> None:
    """Raise AssertionError, or jsonschema_rs.ValidationError, for a response unlike the document.

    `path` is below the service's URL, with its query string. A body that is still to come is
    checked when it has.
    """
    content = check_head(method, path, response.status_code, response.headers)
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    if not content or method == "HEAD":
        return
    assert media_type in content, f"{method} {path[:200]} is answered as {media_type}"

    def check_body(body: bytes) -> None:
        if media_type.endswith("json") and len(body) <= LONGEST:
            schema = of_request(content[media_type]["schema"], path)
            validator(json.dumps(schema)).validate(json.loads(body))

    if isinstance(response, requests.Response):
        check_body(response.content)
    elif response.content_length is None:
        response.response = watched(response.response, check_body)
    else:
        check_body(response.data)


def check_head(method: str, path: str, status: int, headers: AnyHeaders) -> dict[str, Any]:
    """Check status and headers; returns the possible bodies, by media type."""
    told = f"{method} {path[:200]} -> {status}"
    operation = operation_of(method, path)
    if operation is None:
        assert status in NOWHERE, f"{told}, where there is no operation"
        name = "InvalidKey" if status == 401 else "NotFound"
        answer = strict_document()["components"]["responses"][name]
        if status == 200:
            # To OPTIONS.
            answer = {"headers": answer["headers"]}
    else:
        assert str(status) in operation["responses"], f"{told} is not in the document"
        answer = resolved(strict_document(), operation["responses"][str(status)])
    check_headers(told, answer.get("headers", {}), headers)
    content: dict[str, Any] = answer.get("content", {})
    return content


def of_request(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of the response to this request: with the requested fields and no others."""
    if "items" in schema:
        return {**schema, "items": of_request(schema["items"], path)}
    if schema.get("$ref") not in EXPANDABLE:
        return schema
    query = parse_qs(path.partition("?")[2])
    asked = {name: ",".join(query.get(name, [])).split(",") for name in ("fields", "expand")}
    whole = resolved(strict_document(), schema)["required"]
    fields = asked["fields"] if "fields" in query else whole
    members = sorted({*fields, *(asked["expand"] if "expand" in query else ())})
    narrowed = PARTIAL_TASK if "fields" in query else schema["$ref"]
    return {"$ref": narrowed, "required": members, "maxProperties": len(members)}


def check_headers(told: str, documented: dict[str, Any], headers: AnyHeaders) -> None:
    for name, reference in documented.items():
        header, text = resolved(strict_document(), reference), headers.get(name)
        assert text is not None or not header["required"], f"{told} has no {name}"
        if text is not None:
            value = int(text) if header["schema"]["type"] == "integer" else text
            validator(json.dumps(header["schema"])).validate(value)
    undocumented = set(map(str.lower, headers.keys())) - set(map(str.lower, documented))
    assert undocumented <= UNTOLD, f"{told} has {undocumented - UNTOLD}"


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The document's operation for a request, or None where it has none."""
    method = "GET" if method == "HEAD" else method
    text = unquote_to_bytes(path.partition("?")[0]).decode(errors="replace")
    try:
        rule, _ = described().url_map.bind("").match(text, method, return_rule=True)
    except HTTPException:
        return None
    operation: dict[str, Any] | None = strict_document()["paths"][openapi_path(rule.rule)].get(
        method.lower()
    )
    return operation


@cache
def described() -> Flask:
    """An app with all routes, and no database."""
    app = Flask("described", static_folder=None)
    app.url_map.merge_slashes = False
    api.init_app(app)
    return app


@cache
def strict_document() -> dict[str, Any]:
    """The document, but without additional members in responses."""
    strict = deepcopy(document(described(), API_PREFIX))
    for schema in strict["components"]["schemas"].values():
        schema.setdefault("additionalProperties", False)
    return strict


@cache
def validator(schema: str) -> Any:
    """The validator of a schema in a JSON text."""
    components = strict_document()["components"]
    return jsonschema_rs.validator_for({**json.loads(schema), "components": components})


def watched(pieces: Iterable[bytes], check_body: Callable[[bytes], None]) -> Iterator[bytes]:
    """The pieces as they arrive; the last one is followed by the check."""
    kept, size = [], 0
    try:
        for piece in pieces:
            size += len(piece)
            if size <= LONGEST:
                kept.append(piece)
            yield piece
    finally:
        if hasattr(pieces, "close"):
            pieces.close()
    if size <= LONGEST:
        check_body(b"".join(kept))
