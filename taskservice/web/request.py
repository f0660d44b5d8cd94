"""The door of the API: what a request says is read strictly, before its view sees it."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import update_wrapper
from typing import Any
from urllib.parse import parse_qsl

from flask import Response, g, request
from marshmallow import Schema

from taskservice.auth.authentication import caller
from taskservice.contract.error_codes import OVERLOADED
from taskservice.openapi.operation import JSON, Operation
from taskservice.problems import Problem, invalid
from taskservice.resources import Slots
from taskservice.schemas import strict_json
from taskservice.schemas.requests import NothingSchema

View = Callable[..., Response]

# Every path below it asks for a key.


# A body past this many bytes may cost some dozen times as much memory while it is read: so
# many of a process may be in work at once, and others wait so many seconds.
LARGE = 1024 * 1024
LARGE_SECONDS = 3.0
large_bodies = Slots(2)

nothing_schema = NothingSchema()


class operation(Operation):
    """Declares a route; as a decorator it puts the door before the view."""

    def __call__(self, view: View) -> "Endpoint":
        return Endpoint(self, view)


class Endpoint:
    """A view behind its door, which raises 400, 403, 406, 413, 415 and 422.

    The view gets `query` and `body`, loaded, where its operation has schemas for them.
    """

    def __init__(self, operation: Operation, view: View) -> None:
        self.operation = operation
        self._media_types = operation.media_types
        self._reads_body = bool(operation.request_content)
        self._has_query = not isinstance(operation.query, NothingSchema)
        self._view = view
        update_wrapper(self, view)

    def __call__(self, **path: Any) -> Response:
        with ExitStack() as g.held:
            return self._answer(path)

    def _answer(self, path: dict[str, Any]) -> Response:
        if self.operation.user_key:
            caller.require_user_key()
        _check_accept(self._media_types)
        query = load_query(self.operation.query)
        if self._has_query:
            path["query"] = query
        if self.operation.body is not None:
            path["body"] = load_body(self.operation.body)
        elif not self._reads_body and request.method not in ("GET", "HEAD"):
            _check_no_body()
        return self._view(**path)


def load_query(schema: Schema) -> dict[str, Any]:
    """The query string by `schema`; a parameter that it does not know, or twice, is 422."""
    if not request.query_string:
        return {}
    values: dict[str, str] = {}
    for name, text in _pairs(request.query_string):
        if name in values:
            raise invalid({name: ["Given more than once."]})
        values[name] = text.replace("\0", "\ufffd")
    loaded: dict[str, Any] = schema.load(values)
    return loaded


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise Problem(400, "The query string is not UTF-8") from None


def load_body(schema: Schema) -> dict[str, Any]:
    """The JSON body by `schema`; no body at all counts as `{}`."""
    loaded: dict[str, Any] = schema.load(json_body())
    return loaded


def json_body() -> Any:
    """The body as strict JSON; raises 400, 415 and 422."""
    data = body_bytes()
    if not data and not request.content_type:
        return {}
    if request.mimetype != JSON and not request.mimetype.endswith("+json"):
        raise Problem(415, "The body must be application/json")
    return _parsed(data)


def _check_no_body() -> None:
    """Raises 400 and 422 for a body, of whatever type, that says more than `{}`."""
    data = _received()
    if data:
        nothing_schema.load(_parsed(data))


def _parsed(data: bytes) -> Any:
    try:
        return strict_json.loads(data)
    except strict_json.NotJson as error:
        raise Problem(400, f"The body cannot be read as JSON: {error}") from None
    except strict_json.UnfitNumber as error:
        raise invalid({"_schema": [str(error)]}) from None


def body_bytes() -> bytes:
    """The body as it came; raises 413, and 415 for one that is coded or not in UTF-8."""
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise Problem(415, "The body must be sent without a Content-Encoding")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, "The body must be UTF-8")
    return _received()


def _received() -> bytes:
    if request.content_length is not None:
        _wait_for_place(request.content_length)
        return request.get_data(cache=False)
    data = request.get_data(cache=False)
    _wait_for_place(len(data))
    return data


def _wait_for_place(size: int) -> None:
    """Wait until few enough other large bodies are in work; raises 503."""
    if size <= LARGE or g.held.enter_context(large_bodies.acquire(LARGE_SECONDS)):
        return
    headers = {"Retry-After": "2"}
    raise Problem(503, "Too many large bodies at once", code=OVERLOADED, headers=headers)


def prefers(wanted: str, other: str) -> bool:
    """Whether the caller would rather have `wanted` than `other`, which is the default."""
    return _quality(wanted) > _quality(other)


def _check_accept(media_types: tuple[str, ...]) -> None:
    if (request.headers.get("Accept") or "*/*") in ("*/*", *media_types):
        return
    if not any(map(_quality, media_types)):
        raise Problem(406, f"The answer can be {' or '.join(media_types)} only")


def _quality(media_type: str) -> float:
    """How much the caller would like this type, from 0 to 1."""
    # Whatever we answer is in UTF-8, whether that is asked for or not.
    spellings = (media_type, f"{media_type}; charset=utf-8")
    return max(map(request.accept_mimetypes.quality, spellings))
