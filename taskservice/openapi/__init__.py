"""Builds the OpenAPI document of an app from the operations that its routes declare."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from marshmallow import Schema, fields
from werkzeug.routing import Rule

from taskservice import __version__, terms
from taskservice.schemas import examples
from taskservice.schemas.tasks import PartialTaskSchema, problem_schema, task_schema
from taskservice.web.request import Operation, by_media_type, is_optional
from taskservice.webhooks.retry_schedule import MAX_RETRY_AFTER, SCHEDULE

Object: TypeAlias = dict[str, Any]

# Shared by all operations: introduction, parameters, headers, errors.

DESCRIPTION = """\
taskservice stores the tasks of agents, with logs that grow while they run, and sends a signed
webhook when a task ends.

Every request to a path below `/api/v1` needs an API key, in the header `apikey: <key>` or
`Authorization: Bearer <key>`; if both are sent, the keys must be equal. A *user key* has full
access to its user's data. An *agent key* is limited to one agent and its tasks; an operation that
needs a user key returns 403. A *read key* can only read: GET and HEAD, except of the callback
secret; all other methods return 403. A resource that the key has no access to is 404, as if it did
not exist.

Bodies are JSON in UTF-8, read strictly: unknown fields, duplicate keys, NaN, and nesting deeper
than 64 levels are rejected. NUL in a string, `\\u0000` in JSON, becomes U+FFFD. An operation
without a body accepts `{}` and `null` too, and rejects any other body. An unknown query parameter
is rejected, so that a misspelt filter does not return everything. Times are RFC 3339 in UTC with
milliseconds. `Location` and `Link` are relative to the URL of the request.

Every error is `application/problem+json` (RFC 9457); `detail` is a sentence for people, `code` is
for programs. In addition to the listed errors, a method that the path does not support is 405 with
`Allow`, an unsupported expectation is 417, and an unsupported transfer encoding is 501. Every path
with GET supports HEAD, and every path supports OPTIONS.

Every response has an `X-Request-Id`: the value that the request sent, if it has at most 128 visible
ASCII characters, else a new one. Errors and the service's log contain it too.
"""

TAGS = {
    "tasks": "A task is one execution of an agent: its input, log, status and output.",
    "logs": "The lines of a task's log, which grows while the task runs.",
    "questions": "Questions that agents ask people before they continue.",
    "deliveries": "The webhooks of finished tasks, and the attempts to send them.",
    "links": "Links with which everyone can look at one task.",
    "agents": "The programs that do the work.",
    "attention": "Questions, and trouble with agents, tasks, callbacks and hooks.",
    "hooks": "Addresses that are told about what happens to agents.",
    "users": "The person or team that owns tasks, agents and keys.",
    "keys": "The API keys of a user, and the secret that signs webhooks.",
    "operations": "Health and metrics, for operators. No key is needed.",
    "docs": "This documentation. No key is needed.",
    "webhooks": "Requests that the service sends to the receivers of its users.",
}


def _value(description: str, *samples: Any, required: bool = False, **schema: Any) -> Object:
    """A parameter or header with its JSON Schema; `required` if each success has it."""
    schema |= {"examples": list(samples)} if samples else {}
    schema = {"type": "string", **schema}
    return {"description": description, "required": required, "schema": schema}


PATH_PARAMETERS = {
    "taskId": _value("The task's ID.", examples.TASK, format="uuid"),
    "agentId": _value("The agent's ID.", "summarizer", pattern=f"^{terms.AGENT_ID.pattern}$"),
    "hookId": _value("The hook's ID.", examples.HOOK, format="uuid"),
    "deliveryId": _value("The delivery's ID.", examples.DELIVERY, format="uuid"),
    "questionId": _value("The question's ID.", examples.QUESTION, format="uuid"),
    "linkId": _value("The link's ID.", examples.LINK, format="uuid"),
    "keyId": _value("The key's ID.", examples.KEY, format="uuid"),
}

REQUEST_HEADERS = {
    "Idempotency-Key": _value(
        "Makes the request safe to repeat: a repetition with the same key and body creates and "
        "claims nothing, and returns the current state of the first result. The same key with "
        "another body is 422. Deleting the task frees the key.",
        "nightly 2026-11-24",
        minLength=1,
        maxLength=terms.MAX_IDEMPOTENCY_KEY,
    ),
    "Prefer": _value("`wait=s`: wait up to `s` seconds for a change, at most 60.", "wait=1"),
    "Last-Event-ID": _value(
        "Resumes after the line with this number: the `id` of the last event received.",
        "42",
        pattern="^[0-9]*$",
    ),
    "If-Match": _value(
        "`*`: change the task only if it exists. Its ETag is weak and never matches.", "*"
    ),
    "If-None-Match": _value(
        "ETags of earlier responses: the response is 304 if one is still current.", 'W/"3-0"'
    ),
}

RESPONSE_HEADERS = {
    "Location": _value(
        "The URL of the new resource, relative to the request.",
        f"task/{examples.TASK}",
        format="uri-reference",
        required=True,
    ),
    "Link": _value(
        'The next page, as `<?...>; rel="next"`, relative to the request; absent on the last page.',
        '<?limit=50&cursor=WyI...>; rel="next"',
    ),
    "ETag": _value("The version of the response.", 'W/"3-0"'),
    "Idempotency-Replayed": _value(
        "`true` if an earlier request with the same Idempotency-Key has done the work.",
        enum=["true"],
    ),
    "Callback-Status": _value(
        "The state of the webhook: `delivered`; `pending`: it will be retried; `failed`: it will "
        "not be retried; `none`: there was nothing to send.",
        enum=["delivered", "pending", "failed", "none"],
        required=True,
    ),
    "Preference-Applied": _value(
        "The granted wait, as `wait=s`; replaced by `Retry-After` if too many requests are waiting "
        "already.",
        "wait=1",
    ),
    "X-Accel-Buffering": _value("Turns off the buffering of nginx.", enum=["no"], required=True),
    "Retry-After": _value("Seconds to wait before trying again.", 2, type="integer", minimum=0),
    "WWW-Authenticate": _value(
        "The authentication scheme.", enum=['Bearer realm="taskservice"'], required=True
    ),
    "X-Request-Id": _value(
        "The ID of the request: the value that it sent, or a new one.",
        examples.REQUEST,
        required=True,
    ),
}

# The errors that several operations share: the names of their components.
REFUSALS = {
    400: "Unreadable", 401: "InvalidKey", 403: "NotAllowed", 404: "NotFound", 406: "NotAcceptable",
    408: "TooSlow", 412: "PreconditionFailed", 413: "TooLarge", 414: "UrlTooLong",
    415: "WrongContentType", 422: "Invalid", 431: "HeadersTooLarge", 500: "Failure", 503: "Busy",
}  # fmt: skip
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)  # any request can get these
# Members of an error's example that differ from the meaning of its code.
EXAMPLES: dict[str, Object] = {
    "invalid_key": {"detail": "API key is invalid"},
    terms.NOT_FOUND: {"detail": "Task's ID is not found"},
    "invalid": {"errors": {"stauts": ["Unknown field."]}},
}
ERROR_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}

# The webhooks: the requests that the service sends, and the meaning of each response.

_HEADERS = {
    "webhook-id": _value(
        "The delivery's ID, the same in every attempt. A receiver that has seen it before has "
        "already received this webhook.",
        examples.DELIVERY,
        format="uuid",
    ),
    "webhook-timestamp": _value(
        "The time of this attempt, in seconds since 1970.", 1_795_527_360, type="integer", minimum=0
    ),
    "webhook-signature": _value(
        "One signature for each valid secret, separated by spaces: `v1,` and the HMAC-SHA256, in "
        "base64, of `ID.timestamp.body`.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
        pattern="^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$",
    ),
}

_DESCRIPTION = f"""\
Sent as a POST to the task's `callback` when the task becomes `complete` or `error`. It is signed
with the user's callback secret, as Standard Webhooks 1.0 describes. The body is the task as GET
returns it at that time, with the last {terms.WEBHOOK_LINES:,} lines of its log, and at most
{terms.WEBHOOK_LOG_BYTES // 1024} KiB of them.

If the response is not 2xx, the webhook is sent up to {len(SCHEDULE)} more times within about
{round(sum(SCHEDULE) / 86_400)} days; then it has failed. A receiver can get a webhook more than
once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    example = example | {"status": terms.COMPLETE, "output": {"sum": 15}, "endedBy": "laptop"}
    example |= {"claimedAt": examples.TIME, "finishedAt": examples.LATER}
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example}
    again = "Any other response, even a redirect, or no response in time: it is sent again later."
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"Seconds to wait before the next attempt, or a date: at most {hours:g} h.",
        "schema": {"type": "string", "examples": ["120"]},
    }
    operation = {
        "operationId": "taskEnded",
        "tags": ["webhooks"],
        "summary": "A task has ended",
        "description": _DESCRIPTION,
        "security": [],
        "parameters": [
            {"in": "header", "name": name, **header, "required": True}
            for name, header in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "2XX": {"description": "The webhook is delivered."},
            "410": {"description": "The webhook has failed and is not sent again."},
            "default": {"description": again, "headers": {"Retry-After": retry_after}},
        },
    }
    return {"taskEnded": {"post": operation}}


class Converter(OpenAPIConverter):
    """Converts marshmallow to JSON Schema, with the description that apispec leaves out."""

    def schema2jsonschema(self, schema: Any) -> Object:
        found = super().schema2jsonschema(schema)
        return {"description": inspect.getdoc(schema), **found, **getattr(schema, "rule", {})}

    def metadata2properties(self, field: Any, **kwargs: Any) -> Object:
        known: Object = super().metadata2properties(field, **kwargs)
        # Keywords of OpenAPI 3.1 that apispec would leave out.
        more = {"propertyNames", "contentMediaType"} & field.metadata.keys()
        return known | {name: field.metadata[name] for name in more}

    def dict2properties(self, field: Any, **kwargs: Any) -> Object:
        # For any value apispec writes `{}`, which generators for Go read as a pointer.
        found = super().dict2properties(field, **kwargs)
        return {name: value or True for name, value in found.items()}


def document(app: Flask, secured: str) -> Object:
    """The document of what the routes declare; those below `secured` need an API key."""
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
        servers=[{"url": "."}],  # relative to the document's own URL: it holds under any prefix
        security=[{"apikey": []}, {"bearer": []}],  # either of them
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        webhooks=webhooks(example_of(task_schema)),
    )
    # No operation refers to it: OpenAPI can't express the effect of `fields` on a response.
    spec.components.schema("PartialTask", schema=PartialTaskSchema(partial=True))
    key = {"type": "apiKey", "in": "header", "name": "apikey"}
    spec.components.security_scheme("apikey", key)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    for name, header in RESPONSE_HEADERS.items():
        spec.components.header(name, header)
    for status, name in REFUSALS.items():
        spec.components.response(name, _problem(status, terms.CODES))
    for rule in _rules(app):
        view = app.view_functions[rule.endpoint]
        needs_key = rule.rule.startswith(f"{secured}/")
        operations: Object = {}
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = _operation(view, rule, method, needs_key=needs_key)
            operation["operationId"] += f"By{method.title()}" if operations else ""
            operations[method.lower()] = operation
        # First, since `path` copies what it gets, and a copy of each schema takes seconds.
        plugin.operation_helper(operations=operations)
        spec.path(openapi_path(rule.rule), operations=operations)
    return spec.to_dict()


def _rules(app: Flask) -> list[Rule]:
    """The rules of the routes that declare an operation, ordered as their tags are."""
    # The routes of a link answer as the routes with a key do.
    rules = (rule for rule in app.url_map.iter_rules() if "token" not in rule.arguments)
    declared = [rule for rule in rules if hasattr(app.view_functions[rule.endpoint], "operation")]
    return sorted(declared, key=lambda rule: list(TAGS).index(_tag(rule)))


def _tag(rule: Rule) -> str:
    return str(rule.endpoint.split(".")[-2])


def openapi_path(rule: str) -> str:
    """A rule of Flask's as OpenAPI spells it: `/task/<task_id>` becomes `/task/{taskId}`."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule).replace("_id}", "Id}")


def _operation(view: Any, rule: Rule, method: str, *, needs_key: bool) -> Object:
    declared: Operation = view.operation
    content = by_media_type(declared.body or declared.reads)
    arguments = re.findall("{(.+?)}", openapi_path(rule.rule))
    has_precondition = "taskId" in arguments and method != "GET"
    headers = [*declared.headers, *(["If-Match"] if has_precondition else [])]
    statuses = [
        *ALWAYS_REFUSED,
        *([401] if needs_key else []),
        *([403] if needs_key and (declared.user_key or method != "GET") else []),
        *([404] if arguments else []),
        *([412] if has_precondition else []),
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
            # The plugin turns each field of the schema into a parameter.
            {"in": "query", "schema": declared.query},
            *({"in": "header", "name": name, **REQUEST_HEADERS[name]} for name in headers),
        ],
        "responses": _responses(declared) | _refusals(statuses, declared.errors),
    }
    if content:
        # A text body can be empty, so it is not required.
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


def _refusals(statuses: Sequence[int], own: Sequence[str]) -> Object:
    """Status -> the name of a shared response, or one with the operation's `own` error codes."""
    responses: Object = {str(status): REFUSALS[status] for status in statuses}
    for status in {terms.CODES[code].status for code in own}:
        responses[str(status)] = _problem(status, own)
    return dict(sorted(responses.items()))


def _problem(status: int, codes: Iterable[str]) -> Object:
    """The response of an error with one of those codes that have this status."""
    codes = [code for code in codes if terms.CODES[code].status == status]
    example = example_of(problem_schema) | {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": terms.CODES[codes[0]].meaning.rstrip("."),
        "code": codes[0],
        **EXAMPLES.get(codes[0], {}),
    }
    return {
        "description": " ".join(f"`{code}`: {terms.CODES[code].meaning}" for code in codes),
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
        return _media(schema[0], example) | {"schema": {"description": "One of two forms."}}
    if isinstance(schema, list):
        one = example_of(schema[0]) | (example or {})
        return {"schema": {"type": "array", "items": schema[0]}, "example": [one]}
    return {"schema": schema, "example": example_of(schema) | (example or {})}


def example_of(schema: Schema) -> Object:
    """The example of a schema: the first example of each field that has one."""
    found: Object = {}
    for name, field in schema.fields.items():
        inner = field.inner if isinstance(field, fields.List) else field
        if "examples" in field.metadata:
            found[field.data_key or name] = field.metadata["examples"][0]
        elif field.required and isinstance(inner, fields.Nested):
            example = example_of(inner.schema)
            found[name] = [example] if isinstance(field, fields.List) else example
    return found
