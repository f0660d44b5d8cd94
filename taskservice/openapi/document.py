"""Builds the OpenAPI document of an app from the operations that its routes declare."""

import inspect
import re
from collections.abc import Mapping, Sequence
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
from taskservice.schemas.tasks import partial_task_schema, problem_schema, task_schema
from taskservice.web.request import Operation, by_media_type, is_optional
from taskservice.webhooks.retries import MAX_RETRY_AFTER, SCHEDULE

Object: TypeAlias = dict[str, Any]

# What operations share: introduction, parameters, headers, errors.

DESCRIPTION = """\
taskservice keeps the tasks of agents, with logs that grow while they run, and sends a signed
callback when a task ends.

Every request below `/api/v1` carries an API key, in the header `apikey: <key>` or in
`Authorization: Bearer <key>`; in both, it must be the same. A *user key* may do everything with the
things of its user. An *agent key* sees and reports the tasks of one agent; an operation that needs
a user key answers it with 403. What a key may not see does not exist for it: 404.

Bodies are JSON in UTF-8, read strictly: no unknown fields, no duplicate keys, no NaN, nothing
nested deeper than 64. NUL in a string, `\\u0000` in JSON, becomes U+FFFD. An operation that takes
no body accepts `{}` and `null` too, and refuses any other body. An unknown query parameter is
refused, so that a misspelt filter does not return everything. Times are RFC 3339 in UTC with
milliseconds. `Location` and `Link` are relative to the request's own URL.

Every error is `application/problem+json` (RFC 9457); its `detail` is a sentence for a
person, its `code` a word for a program.
Beside the listed errors, a method that a path does not have is 405 with `Allow`, and the server
answers an unsupported expectation with 417 and an unsupported transfer coding with 501. Every path
with GET has HEAD too, and every path has OPTIONS.

Every answer has an `X-Request-Id`: the one that the request sent, if it has at most 128 visible
ASCII characters, else a new one. Problems and the log of the service contain it too.
"""

TAGS = {
    "tasks": "A task is one execution of an agent: its input, log, status and output.",
    "logs": "The lines of a task, which grow while it runs.",
    "questions": "What agents ask people before they go on.",
    "deliveries": "The webhooks of tasks that have ended, and each attempt to send them.",
    "agents": "The programs that do the work.",
    "users": "The person or team that owns tasks, agents and keys.",
    "keys": "The API keys of a user, and the secret that signs the webhooks.",
    "operations": "Health and metrics, for operators. No key is needed.",
    "docs": "This documentation. No key is needed.",
    "webhooks": "Requests that the service makes itself, to the receivers of its users.",
}


def _value(description: str, *, required: bool = False, **schema: Any) -> Object:
    """A parameter or header with its JSON Schema, by default a text.

    A header of an answer is required if every successful answer has it.
    """
    return {
        "description": description,
        "required": required,
        "schema": {"type": "string", **schema},
    }


PATH_PARAMETERS = {
    "task_id": _value("The task's id.", format="uuid", examples=[examples.TASK]),
    "agent_id": _value(
        "The agent's id.", pattern=f"^{terms.AGENT_ID.pattern}$", examples=["summarizer"]
    ),
    "question_id": _value("The question's id.", format="uuid", examples=[examples.QUESTION]),
    "key_id": _value("The key's id.", format="uuid", examples=[examples.KEY]),
}

REQUEST_HEADERS = {
    "Idempotency-Key": _value(
        "Makes the request safe to repeat: the same key and body start or claim nothing again and "
        "answer with the current task; the same key with another body is 422. Deleting the task "
        "frees the key.",
        minLength=1,
        maxLength=terms.MAX_IDEMPOTENCY_KEY,
        examples=["nightly 2026-11-24"],
    ),
    "Prefer": _value(
        "`wait=s`: the maximum number of seconds, up to 60, to wait for news.",
        examples=["wait=1"],
    ),
    "Last-Event-ID": _value(
        "Resumes after the line with this number: the `id` of the last event received.",
        pattern="^[0-9]*$",
        examples=["42"],
    ),
    "If-Match": _value(
        "`*`: change the task only if it exists. Its ETag is weak and never matches here.",
        examples=["*"],
    ),
    "If-None-Match": _value(
        "ETags of earlier answers: the answer is 304 if one is still current.",
        examples=['W/"3-0"'],
    ),
}

ANSWER_HEADERS = {
    "Location": _value(
        "The URL of what was created, relative to the request.",
        format="uri-reference",
        examples=[f"task/{examples.TASK}"],
        required=True,
    ),
    "Link": _value(
        'The next page, as `<?...>; rel="next"`, relative to the request; none on the last page.',
        examples=['<?limit=50&cursor=WyI...>; rel="next"'],
    ),
    "ETag": _value("The version of the answer.", examples=['W/"3-0"']),
    "Idempotency-Replayed": _value(
        "`true` if an earlier request with the same Idempotency-Key started or claimed the task.",
        enum=["true"],
    ),
    "Callback-Status": _value(
        "The state of the callback: `delivered`; `pending`: it will be tried again; `failed`: it "
        "will not be tried again; `none`: there was nothing to send.",
        enum=["delivered", "pending", "failed", "none"],
        required=True,
    ),
    "Preference-Applied": _value(
        "The granted wait, as `wait=s`; absent, with `Retry-After` in its place, when too many "
        "requests wait already.",
        examples=["wait=1"],
    ),
    "X-Accel-Buffering": _value("Tells nginx not to buffer events.", enum=["no"], required=True),
    "Retry-After": _value(
        "Seconds after which to try again.",
        type="integer",
        minimum=0,
        examples=[2],
    ),
    "WWW-Authenticate": _value(
        "How a key is sent.", enum=['Bearer realm="taskservice"'], required=True
    ),
    "X-Request-Id": _value(
        "The id of the request: its own, or a new one.",
        examples=[examples.REQUEST],
        required=True,
    ),
}

SUCCESSES = {
    200: "Success.",
    201: "Created.",
    202: "Accepted; it will be done.",
    204: "There is none.",
    304: "Not changed.",
}
# The errors that several operations share: the names of their components.
REFUSALS = {
    400: "Unreadable",
    401: "InvalidKey",
    403: "NotForAgents",
    404: "NotFound",
    406: "NotAcceptable",
    408: "TooSlow",
    412: "PreconditionFailed",
    413: "TooLarge",
    414: "UrlTooLong",
    415: "WrongContentType",
    422: "Invalid",
    431: "HeadersTooLarge",
    500: "Failure",
    503: "Busy",
}
# Any request can get these.
ALWAYS_REFUSED = (400, 406, 408, 413, 414, 422, 431, 500, 503)
# Members of the example of an error, where the meaning of its code does not say what is sent.
EXAMPLES: dict[str, Object] = {
    "invalid_key": {"detail": "API key is invalid"},
    terms.NOT_FOUND: {"detail": "Task's ID is not found"},
    "invalid": {"errors": {"stauts": ["Unknown field."]}},
}
ERROR_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}

TEXT_EXAMPLE = "Synopsis: Running\n15 mails\n"

# The webhooks: what the service posts, and what an answer to it means.

_HEADERS = {
    "webhook-id": (
        "The delivery's id, the same at every attempt: a receiver that has seen it before has "
        "seen this webhook.",
        {"type": "string", "format": "uuid", "examples": [examples.DELIVERY]},
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
that moment, with the last {terms.WEBHOOK_LINES:,} lines of its log, and at most
{terms.WEBHOOK_LOG_BYTES // 1024} KiB of them.

A webhook that is not answered with 2xx is posted up to {len(SCHEDULE)} more times, within about
{round(sum(SCHEDULE) / 86_400)} days, and has then failed. A receiver can get it more than
once.
"""


def webhooks(example: Object) -> Object:
    """The section `webhooks`; `example` is a task that has just been started."""
    ended = {
        "status": terms.COMPLETE,
        "output": {"sum": 15},
        "claimedAt": examples.MOMENT,
        "finishedAt": examples.LATER,
        "endedBy": "laptop",
    }
    body = {"schema": {"$ref": "#/components/schemas/Task"}, "example": example | ended}
    again = "Any other answer, a redirect too, and no answer in time: it is posted again later."
    hours = MAX_RETRY_AFTER / 3600
    retry_after = {
        "description": f"Seconds, or a date, to wait before the next attempt: at most {hours:g} h.",
        "schema": {"type": "string", "examples": ["120"]},
    }
    operation = {
        "operationId": "taskEnded",
        "tags": ["webhooks"],
        "summary": "A task has ended",
        "description": _DESCRIPTION,
        "security": [],
        "parameters": [
            {"in": "header", "name": name, "required": True, "description": text, "schema": schema}
            for name, (text, schema) in _HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "2XX": {"description": "The webhook is delivered."},
            "410": {"description": "The webhook has failed, and is not posted again."},
            "default": {"description": again, "headers": {"Retry-After": retry_after}},
        },
    }
    return {"taskEnded": {"post": operation}}


# The document of an app, from the operations that its routes declare.


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


def document(app: Flask, secured: str) -> Object:
    """The OpenAPI document of what the routes of `app` declare.

    Those below the path `secured` want an API key.
    """
    spec = APISpec(
        "taskservice",
        __version__,
        "3.1.0",
        [Plugin()],
        info={
            "description": DESCRIPTION,
            "contact": {"name": "The operator of this service"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        # Relative to the document's own URL, so that it holds under any prefix.
        servers=[{"url": "."}],
        # Either of them.
        security=[{"apikey": []}, {"bearer": []}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        webhooks=webhooks(example_of(task_schema)),
    )
    _add_components(spec)
    for rule in _rules(app):
        first, *others = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        view: Any = app.view_functions[rule.endpoint]
        needs_key = rule.rule.startswith(f"{secured}/")
        operations = {first.lower(): _operation(view, rule, first, needs_key=needs_key)}
        for method in others:
            own = {"operationId": f"{view.operation.name}By{method.title()}"}
            operations[method.lower()] = _operation(view, rule, method, needs_key=needs_key) | own
        spec.path(openapi_path(rule.rule), operations=operations)
    return spec.to_dict()


def _add_components(spec: APISpec) -> None:
    # No operation refers to it: what `fields` does to an answer cannot be said of an operation.
    spec.components.schema("PartialTask", schema=partial_task_schema)
    key = {"type": "apiKey", "in": "header", "name": "apikey"}
    spec.components.security_scheme("apikey", key)
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    for name, header in ANSWER_HEADERS.items():
        spec.components.header(name, header)
    for status, name in REFUSALS.items():
        codes = [code for code in terms.CODES if terms.CODES[code].status == status]
        spec.components.response(name, _problem(codes))


def _rules(app: Flask) -> list[Rule]:
    """The rules of the routes that declare an operation, ordered as their tags are."""
    order = list(TAGS)
    rules = app.url_map.iter_rules()
    declared = [rule for rule in rules if hasattr(app.view_functions[rule.endpoint], "operation")]
    return sorted(declared, key=lambda rule: order.index(_tag(rule)))


def _tag(rule: Rule) -> str:
    return str(rule.endpoint.split(".")[-2])


_ARGUMENT = r"<(?:\w+:)?(\w+)>"


def openapi_path(rule: str) -> str:
    """A rule of Flask's as OpenAPI spells it: `/task/<task_id>` becomes `/task/{taskId}`."""
    return re.sub(_ARGUMENT, lambda found: f"{{{_camel(found[1])}}}", rule)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))


def _operation(view: Any, rule: Rule, method: str, *, needs_key: bool) -> Object:
    declared: Operation = view.operation
    arguments = re.findall(_ARGUMENT, rule.rule)
    has_precondition = "task_id" in arguments and method != "GET"
    headers = [*declared.headers, *(["If-Match"] if has_precondition else [])]
    statuses = [
        *ALWAYS_REFUSED,
        *([401] if needs_key else []),
        *([403] if declared.user_key else []),
        *([404] if arguments else []),
        *([412] if has_precondition else []),
        *([415] if declared.request_content else []),
    ]
    summary, _, description = (inspect.getdoc(view) or "").partition("\n\n")
    operation = {
        "operationId": declared.name,
        "tags": [_tag(rule)],
        "summary": summary.rstrip("."),
        "description": description or summary,
        "parameters": [
            *({"in": "path", "name": _camel(name), **PATH_PARAMETERS[name]} for name in arguments),
            # The plugin turns each field of the schema into a parameter.
            {"in": "query", "schema": declared.query},
            *({"in": "header", "name": name, **REQUEST_HEADERS[name]} for name in headers),
        ],
        "responses": _answers(declared) | _refusals(statuses, declared.errors),
    }
    if declared.request_content:
        operation["requestBody"] = _request_body(declared.request_content)
    if not needs_key:
        operation["security"] = []
    return operation


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
            "description": SUCCESSES[status],
            "headers": {name: name for name in names},
            **_content(by_media_type(answer), operation.example),
        }
        for status, answer in operation.answers.items()
    }


def _refusals(statuses: Sequence[int], own: Sequence[str]) -> Object:
    """Status -> the name of a shared response, or one with the operation's `own` error codes."""
    responses: Object = {str(status): REFUSALS[status] for status in statuses}
    for status in {terms.CODES[code].status for code in own}:
        responses[str(status)] = _problem(
            [code for code in own if terms.CODES[code].status == status]
        )
    return dict(sorted(responses.items()))


def _problem(codes: Sequence[str]) -> Object:
    """The response of an error with one of these codes, which have the same status."""
    status, meaning = terms.CODES[codes[0]]
    example = example_of(problem_schema) | {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": meaning.rstrip("."),
        "code": codes[0],
        **EXAMPLES.get(codes[0], {}),
    }
    headers = [*ERROR_HEADERS.get(status, []), "X-Request-Id"]
    return {
        "description": " ".join(f"`{code}`: {terms.CODES[code].meaning}" for code in codes),
        "headers": {name: name for name in headers},
        "content": {terms.PROBLEM_TYPE: {"schema": problem_schema, "example": example}},
    }


def _content(content: Mapping[str, Any], example: Any = None) -> Object:
    media = {kind: _media(schema, example) for kind, schema in content.items()}
    return {"content": media} if media else {}


def _media(schema: Any, example: Any) -> Object:
    if schema is None:
        return {"schema": {"type": "string"}, "example": example or TEXT_EXAMPLE}
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
