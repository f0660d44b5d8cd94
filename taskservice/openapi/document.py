"""Builds the OpenAPI document of an app from the operations that its routes declare."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from marshmallow import Schema, fields
from werkzeug.routing import Rule

from taskservice import __version__, error_codes, terms
from taskservice.openapi.components import (
    ALWAYS_REFUSED,
    DESCRIPTION,
    PATH_PARAMETERS,
    REFUSALS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    TAGS,
    Object,
)
from taskservice.openapi.webhooks import webhooks
from taskservice.schemas.tasks import PartialTaskSchema, problem_schema, task_schema
from taskservice.web.request import Operation, by_media_type, is_optional


class Converter(OpenAPIConverter):
    """Converts marshmallow schemas to JSON Schema, with the parts that apispec leaves out."""

    def schema2jsonschema(self, schema: Any) -> Object:
        converted = super().schema2jsonschema(schema)
        return {"description": inspect.getdoc(schema), **converted, **getattr(schema, "rule", {})}

    def metadata2properties(self, field: Any, **kwargs: Any) -> Object:
        known: Object = super().metadata2properties(field, **kwargs)
        # Keywords of OpenAPI 3.1 that apispec leaves out.
        keywords = {"propertyNames", "contentMediaType"} & field.metadata.keys()
        return known | {name: field.metadata[name] for name in keywords}

    def dict2properties(self, field: Any, **kwargs: Any) -> Object:
        # For values of any type, apispec writes `{}`, for which Go generators would use pointers.
        converted = super().dict2properties(field, **kwargs)
        return {name: value or True for name, value in converted.items()}


def document(app: Flask, secured: str) -> Object:
    """The OpenAPI document of the app; paths under `secured` need an API key."""
    plugin = MarshmallowPlugin()
    plugin.Converter = Converter
    spec = APISpec(
        "taskservice",
        __version__,
        "3.1.0",
        [plugin],
        info={
            "description": DESCRIPTION,
            "contact": {"name": "The operator of this service"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        servers=[{"url": "."}],  # relative to the document, since a proxy can add a prefix
        security=[{"apikey": []}, {"bearer": []}],  # a request uses one of these schemes
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        webhooks=webhooks(example_of(task_schema)),
    )
    # No operation refers to this schema, since OpenAPI can't express the effect of `fields`.
    spec.components.schema("PartialTask", schema=PartialTaskSchema(partial=True))
    key = {"type": "apiKey", "in": "header", "name": "apikey"}
    spec.components.security_scheme("apikey", key)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    for name, header in RESPONSE_HEADERS.items():
        spec.components.header(name, header)
    for status, name in REFUSALS.items():
        spec.components.response(name, _problem(status, error_codes.CODES))
    for rule in _rules(app):
        view = app.view_functions[rule.endpoint]
        needs_key = rule.rule.startswith(f"{secured}/")
        operations: Object = {}
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(view, rule, method, needs_key=needs_key)
            operation["operationId"] += f"By{method.title()}" if operations else ""
            operations[method.lower()] = operation
        # Schemas become references before `path` copies the operations: copying all schemas would
        # take seconds.
        plugin.operation_helper(operations=operations)
        spec.path(openapi_path(rule.rule), operations=operations)
    return spec.to_dict()


def _rules(app: Flask) -> list[Rule]:
    """The rules of the routes that declare an operation, in the order of their tags."""
    # The document omits the routes for links, which respond like the routes that need a key.
    rules = (rule for rule in app.url_map.iter_rules() if "token" not in rule.arguments)
    declared = [rule for rule in rules if hasattr(app.view_functions[rule.endpoint], "operation")]
    return sorted(declared, key=lambda rule: list(TAGS).index(_tag(rule)))


def _tag(rule: Rule) -> str:
    return str(rule.endpoint.split(".")[-2])


def openapi_path(rule: str) -> str:
    """The rule of a Flask route in OpenAPI's notation: `/task/{taskId}` for `/task/<task_id>`."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule).replace("_id}", "Id}")


def _operation(view: Any, rule: Rule, method: str, *, needs_key: bool) -> Object:
    declared: Operation = view.operation
    content = by_media_type(declared.body or declared.reads)
    arguments = re.findall("{(.+?)}", openapi_path(rule.rule))
    statuses = [
        *ALWAYS_REFUSED,
        *([401] if needs_key else []),
        *([403] if needs_key and (declared.user_key or method != "GET") else []),
        *([404] if arguments else []),
        *([415] if content else []),
    ]
    summary, _, description = (inspect.getdoc(view) or "").partition("\n\n")
    operation: Object = {
        "operationId": declared.name,
        "tags": [_tag(rule)],
        "summary": summary.rstrip("."),
        "description": description or summary,
        "parameters": [
            *({"in": "path", "name": name, **PATH_PARAMETERS[name]} for name in arguments),
            # The plugin converts each field of the schema to a parameter.
            {"in": "query", "schema": declared.query},
            *({"in": "header", "name": name, **REQUEST_HEADERS[name]} for name in declared.headers),
        ],
        "responses": _responses(declared) | _refusals(statuses, declared.errors),
    }
    if content:
        # A body that can be text is not required, since empty text is valid.
        required = all(
            isinstance(schema, Schema) and not is_optional(schema) for schema in content.values()
        )
        operation["requestBody"] = {"required": required, **_content(content)}
    if not needs_key:
        operation["security"] = []
    return operation


def _responses(operation: Operation) -> Object:
    return {
        str(status): {
            "description": f"{HTTPStatus(status).phrase.capitalize()}.".replace("Ok", "Success"),
            "headers": {name: name for name in [*operation.response_headers, "X-Request-Id"]},
            **_content(by_media_type(content), operation.example),
        }
        for status, content in operation.responses.items()
    }


def _refusals(statuses: Sequence[int], codes: Sequence[str]) -> Object:
    """By status: the name of a shared response, or a response for the operation's error `codes`."""
    responses: Object = {str(status): REFUSALS[status] for status in statuses}
    for status in {error_codes.CODES[code].status for code in codes}:
        responses[str(status)] = _problem(status, codes)
    return dict(sorted(responses.items()))


# By error code: members that replace members of the error's example.
EXAMPLES: dict[str, Object] = {
    "invalid_key": {"detail": "API key is invalid"},
    error_codes.NOT_FOUND: {"detail": "Task's ID is not found"},
    "invalid": {"errors": {"stauts": ["Unknown field."]}},
}
ERROR_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


def _problem(status: int, codes: Iterable[str]) -> Object:
    """The response for the errors among `codes` that have this status."""
    codes = [code for code in codes if error_codes.CODES[code].status == status]
    example = example_of(problem_schema) | {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error_codes.CODES[codes[0]].meaning.rstrip("."),
        "code": codes[0],
        **EXAMPLES.get(codes[0], {}),
    }
    return {
        "description": " ".join(f"`{code}`: {error_codes.CODES[code].meaning}" for code in codes),
        "headers": {name: name for name in [*ERROR_HEADERS.get(status, []), "X-Request-Id"]},
        "content": {terms.PROBLEM_TYPE: {"schema": problem_schema, "example": example}},
    }


def _content(content: Mapping[str, Any], example: Any = None) -> Object:
    media = {kind: _media(schema, example) for kind, schema in content.items()}
    return {"content": media} if media else {}


def _media(schema: Any, example: Any) -> Object:
    if schema is None:
        return {"schema": {"type": "string"}, "example": example or "Synopsis: Running\n15 mails\n"}
    if isinstance(schema, tuple):
        # Java generators create a broken class for `anyOf` with an array.
        return _media(schema[0], example) | {"schema": {"description": "One of two formats."}}
    if isinstance(schema, list):
        one = example_of(schema[0]) | (example or {})
        return {"schema": {"type": "array", "items": schema[0]}, "example": [one]}
    return {"schema": schema, "example": example_of(schema) | (example or {})}


def example_of(schema: Schema) -> Object:
    """The example of a schema: the first example of each field that has one."""
    members: Object = {}
    for name, field in schema.fields.items():
        inner = field.inner if isinstance(field, fields.List) else field
        if "examples" in field.metadata:
            members[field.data_key or name] = field.metadata["examples"][0]
        elif field.required and isinstance(inner, fields.Nested):
            example = example_of(inner.schema)
            members[name] = [example] if isinstance(field, fields.List) else example
    return members
