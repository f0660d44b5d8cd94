"""Builds the OpenAPI document of an app from the operations that its routes declare."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from marshmallow import Schema, fields

from taskservice import __version__
from taskservice.openapi import components
from taskservice.openapi.components import Object, Parameter
from taskservice.schemas.fields import EXAMPLE_DELIVERY, EXAMPLE_LATER, EXAMPLE_MOMENT
from taskservice.schemas.tasks import partial_task_schema, problem_schema, task_schema
from taskservice.terms import (
    CODES,
    COMPLETE,
    PROBLEM_TYPE,
    WEBHOOK_LINES,
    WEBHOOK_LOG_BYTES,
    with_status,
)
from taskservice.web.request import Operation, by_media_type, is_optional
from taskservice.webhooks.signing import MAX_RETRY_AFTER, SCHEDULE

# The webhooks of the OpenAPI document: what the service posts, and what an answer to it means.

NAME = "taskEnded"
TAG = "webhooks"

_SECONDS_OF_DAY = 86_400

_HEADERS = {
    "webhook-id": (
        "The delivery's id, the same at every attempt: a receiver that has seen it before has "
        "seen this webhook.",
        {"type": "string", "format": "uuid", "examples": [EXAMPLE_DELIVERY]},
    ),
    "webhook-timestamp": (
        "When this attempt began, in seconds since 1970.",
        {"type": "integer", "minimum": 0, "examples": [1_795_527_360]},
    ),
    "webhook-signature": (
        "One signature for each secret that is still valid, separated by blanks: `v1,` and the "
        "HMAC-SHA256, in base64, of id, timestamp and body with full stops between them.",
        {
            "type": "string",
            "pattern": "^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$",
            "examples": ["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
        },
    ),
}

_DESCRIPTION = f"""\
Posted to the task's `callback` when the task becomes `complete` or `error`, and signed as Standard
Webhooks 1.0 describes, with the user's callback secret. The body is the task as GET returns it at
that moment, with the last {WEBHOOK_LINES:,} lines of its log, and at most
{WEBHOOK_LOG_BYTES // 1024} KiB of them.

A webhook that is not answered with 2xx is posted up to {len(SCHEDULE)} more times, within about
{round(sum(SCHEDULE) / _SECONDS_OF_DAY)} days, and has then failed. A receiver can get it more than
once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    ended = {
        "status": COMPLETE,
        "output": {"sum": 15},
        "claimedAt": EXAMPLE_MOMENT,
        "finishedAt": EXAMPLE_LATER,
        "endedBy": "laptop",
    }
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example | ended}
    operation = {
        "operationId": NAME,
        "tags": [TAG],
        "summary": "A task has ended",
        "description": _DESCRIPTION,
        "security": [],
        "parameters": [
            {"in": "header", "name": name, "required": True, "description": text, "schema": schema}
            for name, (text, schema) in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": _webhook_responses(),
    }
    return {NAME: {"post": operation}}


def _webhook_responses() -> Object:
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"Seconds, or a date, to wait before the next attempt: at most {hours:g} h.",
        "schema": {"type": "string", "examples": ["120"]},
    }
    again = "Any other answer, a redirect too, and no answer in time: it is posted again later."
    return {
        "2XX": {"description": "The webhook is delivered."},
        "410": {"description": "The webhook has failed, and is not posted again."},
        "default": {"description": again, "headers": {"Retry-After": retry_after}},
    }


# Builds the OpenAPI document of an app from the operations that its routes declare.

OPENAPI = "3.1.0"


class Converter(OpenAPIConverter):
    """Converts marshmallow to JSON Schema, with the description that apispec leaves out."""

    def schema2jsonschema(self, schema: Any) -> Object:
        converted = super().schema2jsonschema(schema)
        rule = getattr(schema, "rule", {})
        return {"description": inspect.getdoc(schema), **converted, **rule}

    def metadata2properties(self, field: Any, **kwargs: Any) -> Object:
        # Keywords of OpenAPI 3.1 that apispec would leave out.
        more = {"propertyNames", "contentMediaType"} & field.metadata.keys()
        known = super().metadata2properties(field, **kwargs)
        return {**known, **{name: field.metadata[name] for name in more}}

    def dict2properties(self, field: Any, **kwargs: Any) -> Object:
        # For any value apispec writes `{}`, which generators for Go read as a pointer.
        return {
            name: value or True for name, value in super().dict2properties(field, **kwargs).items()
        }


class Plugin(MarshmallowPlugin):
    Converter = Converter


@dataclass(frozen=True)
class Route:
    """One method of one path, in OpenAPI's spelling, and its view."""

    path: str
    method: str
    tag: str
    arguments: tuple[str, ...]
    needs_key: bool
    is_first: bool
    view: Any
    operation: Operation

    @property
    def has_precondition(self) -> bool:
        return "task_id" in self.arguments and self.method != "GET"

    @property
    def id(self) -> str:
        # The name of a view with several methods belongs to the first of them.
        name = self.operation.name
        return name if self.is_first else f"{name}By{self.method.title()}"


def document(app: Flask, secured: str) -> Object:
    """The OpenAPI document of what the routes of `app` declare.

    Those below the path `secured` want an API key.
    """
    spec = APISpec(
        "taskservice",
        __version__,
        OPENAPI,
        [Plugin()],
        info={
            "description": components.DESCRIPTION,
            "contact": {"name": "The operator of this service"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        # Relative to the document's own URL, so that it holds under any prefix.
        servers=[{"url": "."}],
        # Either of them.
        security=[{"apikey": []}, {"bearer": []}],
        tags=[{"name": name, "description": text} for name, text in components.TAGS.items()],
        webhooks=webhooks(example_of(task_schema)),
    )
    _add_components(spec)
    for route in _routes(app, secured):
        spec.path(route.path, operations={route.method.lower(): _operation(route)})
    return spec.to_dict()


def _add_components(spec: APISpec) -> None:
    # No operation refers to it: what `fields` does to an answer cannot be said of an operation.
    spec.components.schema("PartialTask", schema=partial_task_schema)
    key = {"type": "apiKey", "in": "header", "name": "apikey"}
    spec.components.security_scheme("apikey", key)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    for name, parameter in components.ANSWER_HEADERS.items():
        header = {
            "description": parameter.description,
            "schema": parameter.schema,
            "required": parameter.always,
        }
        spec.components.header(name, header)
    for status, refusal in components.REFUSALS.items():
        codes = with_status(status)
        description = (
            f"{refusal.description} Its `code`: {', '.join(f'`{code}`' for code in codes)}."
        )
        problem = _problem(codes[0], description, refusal.detail, refusal.more)
        spec.components.response(refusal.name, problem)


def _routes(app: Flask, secured: str) -> list[Route]:
    """The routes that declare an operation, ordered as their tags are."""
    routes = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        operation = getattr(view, "operation", None)
        if operation is not None:
            methods = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
            for method in methods:
                routes.append(
                    Route(
                        path=openapi_path(rule.rule),
                        method=method,
                        tag=rule.endpoint.split(".")[-2],
                        arguments=tuple(re.findall(_ARGUMENT, rule.rule)),
                        needs_key=rule.rule.startswith(f"{secured}/"),
                        is_first=method == methods[0],
                        view=view,
                        operation=operation,
                    )
                )
    order = list(components.TAGS)
    return sorted(routes, key=lambda route: order.index(route.tag))


_ARGUMENT = r"<(?:\w+:)?(\w+)>"


def openapi_path(rule: str) -> str:
    """A rule of Flask's as OpenAPI spells it: `/task/<task_id>` becomes `/task/{taskId}`."""
    return re.sub(_ARGUMENT, lambda found: f"{{{_camel(found[1])}}}", rule)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))


def _operation(route: Route) -> Object:
    summary, _, description = (inspect.getdoc(route.view) or "").partition("\n\n")
    operation = {
        "operationId": route.id,
        "tags": [route.tag],
        "summary": summary.rstrip("."),
        "description": description or summary,
        "parameters": list(_parameters(route)),
        "responses": _answers(route.operation) | dict(_refusals(route)),
    }
    content = route.operation.request_content
    if content:
        operation["requestBody"] = _request_body(content)
    if not route.needs_key:
        operation["security"] = []
    return operation


def _parameters(route: Route) -> Iterator[Object]:
    for name in route.arguments:
        yield _parameter("path", _camel(name), components.PATH_PARAMETERS[name], required=True)
    # The plugin turns each field of the schema into a parameter.
    yield {"in": "query", "schema": route.operation.query}
    for name in (*route.operation.headers, *(["If-Match"] if route.has_precondition else [])):
        yield _parameter("header", name, components.REQUEST_HEADERS[name])


def _parameter(place: str, name: str, parameter: Parameter, *, required: bool = False) -> Object:
    described = {"description": parameter.description, "schema": parameter.schema}
    return {"in": place, "name": name, "required": required, **described}


def _request_body(content: Mapping[str, Any]) -> Object:
    # A text body may be empty, so it is not required.
    required = all(
        isinstance(schema, Schema) and not is_optional(schema) for schema in content.values()
    )
    return {"required": required, **_content(content)}


def _answers(operation: Operation) -> Object:
    names = (*operation.answer_headers, "X-Request-Id")
    return {
        str(status): {
            "description": components.SUCCESSES[status],
            "headers": {name: name for name in names},
            **_content(by_media_type(answer), operation.example),
        }
        for status, answer in operation.answers.items()
    }


def _refusals(route: Route) -> Iterator[tuple[str, Any]]:
    """(status, response): the name of a shared response, or one for this operation."""
    statuses = {
        *components.ALWAYS_REFUSED,
        *([401] if route.needs_key else []),
        *([403] if route.operation.user_key else []),
        *([404] if route.arguments else []),
        *([412] if route.has_precondition else []),
        *([415] if route.operation.request_content else []),
    }
    own = {CODES[code].status for code in route.operation.errors}
    for status in sorted(statuses | own):
        if status in own:
            yield str(status), _own_problem(route.operation, status)
        else:
            yield str(status), components.REFUSALS[status].name


def _own_problem(operation: Operation, status: int) -> Object:
    codes = [code for code in operation.errors if CODES[code].status == status]
    description = " ".join(f"`{code}`: {CODES[code].meaning}" for code in codes)
    return _problem(codes[0], description, CODES[codes[0]].meaning.rstrip("."))


_ERROR_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}


def _problem(
    code: str, description: str, detail: str, more: Mapping[str, Any] | None = None
) -> Object:
    status = CODES[code].status
    example = example_of(problem_schema) | {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        **(more or {}),
    }
    headers = [*_ERROR_HEADERS.get(status, []), "X-Request-Id"]
    return {
        "description": description,
        "headers": {name: name for name in headers},
        "content": {PROBLEM_TYPE: {"schema": problem_schema, "example": example}},
    }


def _content(content: Mapping[str, Any], example: Any = None) -> Object:
    media = {kind: _media(schema, example) for kind, schema in content.items()}
    return {"content": media} if media else {}


def _media(schema: Any, example: Any) -> Object:
    if schema is None:
        return {"schema": {"type": "string"}, "example": example or components.TEXT_EXAMPLE}
    if isinstance(schema, list):
        one = example_of(schema[0]) | (example or {})
        return {"schema": {"type": "array", "items": schema[0]}, "example": [one]}
    return {"schema": schema, "example": example_of(schema) | (example or {})}


def example_of(schema: Schema) -> Object:
    """The example of a schema: the first example of each field that has one."""
    return {
        field.data_key or name: example
        for name, field in schema.fields.items()
        for example in _examples(field)[:1]
    }


def _examples(field: fields.Field[Any]) -> list[Any]:
    if "examples" not in field.metadata and isinstance(field, fields.Nested) and field.required:
        return [example_of(field.schema)]
    return list(field.metadata.get("examples", ()))
