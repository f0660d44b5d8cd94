"""Validates a request against the declaration of its operation before the view is called."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from itertools import chain
from typing import Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, urlsplit

import flask
from flask import Flask, Response, current_app
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface
from marshmallow import Schema, fields
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from taskservice.auth import Caller, authenticate_link, caller, current_caller
from taskservice.database.transactions import end_shared_reading
from taskservice.errors import Problem, invalid, require
from taskservice.http_request import request
from taskservice.schemas import strict_json
from taskservice.schemas.fields import parse_id
from taskservice.schemas.requests import EmptySchema
from taskservice.terms import API_PREFIX, MAX_IDEMPOTENCY_KEY
from taskservice.user_slots import UserSlots

# URLs and host names that clients send.


def url_parts(url: str) -> SplitResult:
    """The parts of a URL; all are empty if the URL is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def is_loopback(host: str | None) -> bool:
    """Whether this host, a name or address without port and brackets, is a loopback address."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host is not None and (host == "localhost" or host.endswith(".localhost"))


# The whitespace to strip from the value of a header. The bytes of a header are decoded as Latin-1,
# so `strip()` would also remove the bytes A0 and 85, which can be parts of UTF-8 characters.
SPACE = " \t"

WsgiApplication: TypeAlias = Callable[..., Iterable[bytes]]


def trust_proxies(application: WsgiApplication, hops: int) -> WsgiApplication:
    """Trust the `X-Forwarded-*` headers of `hops` proxies.

    Each proxy appends a value to `-For`, `-Proto` and `-Host`, so the value of the outermost
    trusted proxy is at position `hops` from the right. If `-Prefix` has fewer values, for example
    because only the outermost proxy sets it, the first value is used.
    """
    fixed = ProxyFix(application, x_for=hops, x_proto=hops, x_host=hops)

    def with_prefix(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        prefixes = environ.get("HTTP_X_FORWARDED_PREFIX", "").split(",")
        values = [prefix.strip(SPACE) for prefix in prefixes]
        outermost = values[-hops] if len(values) >= hops else values[0]
        # A URL that begins with `//other.example` refers to another host.
        if outermost.startswith("/") and not outermost.startswith("//"):
            environ["SCRIPT_NAME"] = outermost.rstrip("/")
        return fixed(environ, start_response)

    return with_prefix


# The declaration of an operation. Requests are validated against it, and the OpenAPI document is
# generated from it.

JSON = "application/json"
TEXT = "text/plain"
EVENTS = "text/event-stream"

# The content of a body: a schema for a JSON object, a list with one schema for an array, a media
# type for text. A tuple lists alternatives. A mapping assigns schemas to other media types.
Body: TypeAlias = Schema | list[Schema] | str
Content: TypeAlias = Body | tuple[Body, ...] | Mapping[str, Schema] | None


@dataclass(frozen=True)
class Operation:
    """One operation of the API; `name` is its name in generated clients."""

    name: str
    query: Schema = field(default_factory=EmptySchema)
    # A `body` is loaded before the view is called. With `reads`, the view loads the body, which can
    # have up to MAX_BODY bytes (a setting) instead of MAX_SMALL_BODY.
    body: Schema | None = None
    reads: Content = None
    # Names of request headers that the operation reads, and of headers in its successful responses.
    headers: Sequence[str] = ()
    response_headers: Sequence[str] = ()
    # The content of successful responses, by status.
    responses: Mapping[int, Content] = field(default_factory=dict)
    # The error codes that this operation can return in addition to the errors of all operations.
    errors: Sequence[str] = ()
    # Whether the operation can be called without a key. Its view then has no argument `caller`.
    is_public: bool = False
    # Whether the operation rejects agent keys.
    user_key: bool = False
    # Whether the operation rejects read keys even though its method is GET.
    full_access: bool = False
    # An example response: text, or the members that differ from the schema's example.
    example: Mapping[str, Any] | str = field(default_factory=dict)


def is_optional(schema: Schema) -> bool:
    """Whether a request can omit this body or query: none of its fields is required."""
    return bool(schema.partial) or not any(field.required for field in schema.fields.values())


def by_media_type(content: Content) -> dict[str, Any]:
    """Media type -> its schema: a list with one schema for an array, a tuple for alternatives, None
    for text.
    """
    if content is None:
        return {}
    if isinstance(content, Mapping):
        return dict(content)
    bodies = content if isinstance(content, tuple) else (content,)
    schemas: dict[str, Any] = {}
    for body in bodies:
        kind, schema = (body, None) if isinstance(body, str) else (JSON, body)
        schemas[kind] = (schemas[kind], schema) if kind in schemas else schema
    return schemas


View = Callable[..., Response]

# Request header -> the response headers that belong to it.
_RESPONSE_HEADERS = {"If-None-Match": ["ETag"], "Prefer": ["Preference-Applied", "Retry-After"]}


def ignore_dates() -> None:
    """Remove headers with dates: Werkzeug fails on some dates, such as a date with a huge year."""
    # `Range` is removed too, since it would apply unconditionally without its `If-Range`.
    for name in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_RANGE", "HTTP_RANGE"):
        request.environ.pop(name, None)


# Maximum size of a body in bytes, unless the operation has `reads`: twice the largest input.
MAX_SMALL_BODY = 2 * 1024 * 1024
# Maximum size of a body in bytes if the request needs no key.
MAX_BODY_WITHOUT_KEY = 64 * 1024

# A body larger than this, in bytes, needs a slot, since parsing it can take 25 times its size in
# memory. The batches of `taskservice run` are smaller.
LARGE_BODY = 640 * 1024
_TOO_MANY = "Too many large requests at once; try again later"
large_body_slots = UserSlots(2, 3.0, _TOO_MANY)
# Slots for large bodies while the service receives them.
_arriving_slots = UserSlots(16, 3.0, _TOO_MANY, per_user=8)


def large_json_slot(data: bytes) -> AbstractContextManager[None]:
    """Hold a slot while this JSON is parsed, if parsing takes much memory. Raises 503."""
    return _slot(len(data) > LARGE_BODY or strict_json.has_many_containers(data))


def _slot(is_large: bool, slots: UserSlots = large_body_slots) -> AbstractContextManager[None]:
    if not is_large:
        return nullcontext()
    end_shared_reading()
    return slots.hold(caller.user_id)


class Endpoint:
    """Calls a view with the arguments that its operation declares.

    The arguments are the `caller`, the IDs in the path, and `query` and `body` if the operation has
    schemas for them. If the response can be replayed, `sent` is the JSON of the body before the
    schema loads it. If the operation has `reads`, `data` is the body as received. Raises 400, 403,
    404, 406, 413, 415, 422 and 503.
    """

    def __init__(self, operation: Operation, view: View) -> None:
        self.operation = operation
        contents = map(by_media_type, operation.responses.values())
        self._media_types = tuple(dict.fromkeys(chain.from_iterable(contents)))
        self._has_query = not isinstance(operation.query, EmptySchema)
        self._needs_query = not is_optional(operation.query)
        self._view = view
        update_wrapper(self, view)

    def __call__(self, **path: str) -> Response:
        arguments = self._arguments(request.environ, path)
        with _slot(len(arguments.get("data", "")) > LARGE_BODY):
            return self._view(**arguments)

    def _arguments(self, environ: Mapping[str, Any], path: Mapping[str, str]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if not self.operation.is_public:
            arguments["caller"] = self._allowed_caller()
        _check_accept(environ.get("HTTP_ACCEPT"), self._media_types)
        is_given = self._needs_query or environ.get("QUERY_STRING")
        query = load_query(self.operation.query) if is_given else {}
        if self._has_query:
            arguments["query"] = query
        if self.operation.reads is not None:
            request.max_content_length = current_app.config["MAX_BODY"]
            arguments["data"] = body_bytes()
        if self.operation.body is not None:
            data = body_bytes()
            with large_json_slot(data):
                sent = json_value(data, self.operation.body)
                arguments["body"] = self.operation.body.load(sent)
            if "Idempotency-Replayed" in self.operation.response_headers:
                arguments["sent"] = sent
        elif self.operation.reads is None and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            _check_no_body()
        return arguments | canonical(path)

    def _allowed_caller(self) -> Caller:
        """The caller; raises 403 if the caller's key is not allowed to use the operation."""
        caller = current_caller()
        if self.operation.full_access:
            caller.require_full_access()
        if self.operation.user_key:
            caller.require_user_key()
        return caller


def operation(name: str, content: Content = None, **fields: Any) -> Callable[[View], Endpoint]:
    """A decorator that turns a view into an Endpoint; it takes the fields of an Operation.

    `content` is the content of a 200 response, unless `responses` is given. Response headers that
    belong to the request `headers` are added.
    """
    headers = fields.get("headers", ())
    responses = fields.pop("responses", {200: content})
    if "If-None-Match" in headers:
        responses |= {304: None}
    sent = [header for name in headers for header in _RESPONSE_HEADERS.get(name, ())]
    fields["response_headers"] = [*fields.get("response_headers", ()), *sent]
    return partial(Endpoint, Operation(name, responses=responses, **fields))


def canonical(path: Mapping[str, str]) -> dict[str, str]:
    """The IDs in a path in their canonical form; raises 404 for invalid UUIDs."""
    return {
        # An agent's ID can be any text, but PostgreSQL cannot store NUL.
        name: text.replace("\0", "\ufffd")
        if name == "agent_id"
        else require_id(name.removesuffix("_id"), text)
        for name, text in path.items()
    }


class TaskIdConverter(BaseConverter):
    """The ID of a task in a path: any text except `bulk`, whose path has only the method POST."""

    regex = r"(?!bulk\Z)[^/]+"
    part_isolating = True


def require_link() -> None:
    """Replace the token of a link in the path with the ID of the task. Raises 404."""
    path = request.view_args or {}
    authenticate_link(path.pop("token"))
    path["task_id"] = caller.task_id


def require_id(thing: str, text: str) -> str:
    """The ID in its canonical form; raises 404 for an invalid UUID."""
    return require(parse_id(text), thing)


def idempotency_key(key: str | None = None) -> str | None:
    """The idempotency key of a request: `key`, by default from the header. Raises 422."""
    key = request.headers.get("Idempotency-Key") if key is None else key
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise invalid({"Idempotency-Key": [f"Must have 1 to {MAX_IDEMPOTENCY_KEY} characters."]})
    return key


def load_query(schema: Schema) -> dict[str, Any]:
    """The query string, loaded by `schema`. Raises 400, or 422 if a parameter is unknown or
    repeated.
    """
    try:
        pairs = parse_qsl(request.query_string.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise Problem(400, "The query string is not UTF-8") from None
    values: dict[str, Any] = {}
    for name, sent in pairs:
        text = sent.replace("\0", "\ufffd")
        if isinstance(schema.load_fields.get(name), fields.List):
            values.setdefault(name, []).append(text)
        elif name in values:
            raise invalid({name: ["Given more than once."]})
        else:
            values[name] = text
    loaded: dict[str, Any] = schema.load(values)
    return loaded


def json_value(data: bytes, schema: Schema) -> Any:
    """The body `data` as strict JSON, not yet loaded by `schema`; raises 400, 415 and 422."""
    # A missing body is treated as `{}`. If all fields are optional, so is an empty JSON body, which
    # some clients send instead of no body.
    if not data and not request.content_type:
        return {}
    _require_json()
    if not data and is_optional(schema):
        return {}
    return _parsed(data)


def json_bytes() -> bytes:
    """The JSON body as received, for a view without an operation; raises 413 and 415."""
    _require_json()
    return body_bytes()


def _require_json() -> None:
    this = request.itself
    is_json = this.content_type == JSON or this.mimetype == JSON
    if not is_json and not this.mimetype.endswith("+json"):
        raise Problem(415, "The body must be application/json")


def _check_no_body() -> None:
    """Raises 400 or 422 unless the body is empty, null or `{}`, whatever its content type."""
    if data := _received():
        with large_json_slot(data):
            if (body := _parsed(data)) is not None:
                EmptySchema().load(body)


def _parsed(data: bytes) -> Any:
    try:
        return strict_json.loads_request(data)
    except strict_json.NotJson as error:
        raise Problem(400, f"The body cannot be read as JSON: {error}") from None
    except strict_json.UnsupportedNumber as error:
        raise invalid({"_schema": [str(error)]}) from None


def body_bytes() -> bytes:
    """The body as received; raises 413 if it is too long, 415 if it is compressed or not UTF-8."""
    this = request.itself
    encoding = this.environ.get("HTTP_CONTENT_ENCODING", "").strip(SPACE).lower()
    if encoding not in ("", "identity"):
        raise Problem(415, "The body must be sent without a Content-Encoding")
    if this.content_type not in (JSON, None):
        charset = this.mimetype_params.get("charset", "utf-8").lower()
        if charset not in ("utf-8", "utf8", "us-ascii"):
            raise Problem(415, "The body must be UTF-8")
    return _received()


def _received() -> bytes:
    this = request.itself
    limit, size = this.max_content_length or 0, this.content_length or 0
    is_chunked = "HTTP_TRANSFER_ENCODING" in this.environ
    if not (size or is_chunked):
        return b""
    if is_chunked:
        # Werkzeug silently truncates a chunked body to this limit; the extra byte shows that the
        # body is too long.
        this.max_content_length = limit + 1
    elif size > limit:
        raise RequestEntityTooLarge
    # Receiving the body can take long, so the shared database connection is released first.
    end_shared_reading()
    with _slot(is_chunked or size > LARGE_BODY, _arriving_slots):
        data = this.get_data(cache=False)
    if len(data) > limit:
        raise RequestEntityTooLarge
    return data


def _check_accept(accepted: str | None, media_types: tuple[str, ...]) -> None:
    if not accepted or accepted == "*/*" or accepted in media_types:
        return
    if not any(map(quality, media_types)):
        raise Problem(406, f"The response can only be {' or '.join(media_types)}; change Accept")


def quality(media_type: str) -> float:
    """The weight that `Accept` gives to a media type, from 0 to 1."""
    # All responses are in UTF-8, so a type with this charset is acceptable too.
    variants = (media_type, f"{media_type}; charset=utf-8")
    return max(map(request.accept_mimetypes.quality, variants))


# The sessions of the dashboard. They are in this module because Flask opens a session for each
# request, even for requests to the API.

_NO_SESSION = NullSession()


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, in a cookie for the path of this service; the API has no sessions."""

    def open_session(self, app: Flask, request: flask.Request) -> SecureCookieSession | None:
        is_api = request.path.startswith(f"{API_PREFIX}/")
        return _NO_SESSION if is_api else super().open_session(app, request)

    def get_cookie_path(self, app: Flask) -> str:
        return f"{request.script_root}/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure
