"""Creates responses and streams, and reads the query strings that select tasks and fields."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from flask import Response, current_app, request, stream_with_context
from marshmallow import Schema
from werkzeug.datastructures import Headers
from werkzeug.http import quote_etag, remove_entity_headers

from taskservice import resources
from taskservice.auth import Caller, caller
from taskservice.database.rows import TaskRow
from taskservice.errors import invalid
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS, open_questions
from taskservice.schemas.requests import dump_cursor
from taskservice.schemas.tasks import SHARED_FIELDS
from taskservice.services import logs, task_json
from taskservice.services.lists import Position, Selection
from taskservice.services.task_json import WHOLE, Shape
from taskservice.user_slots import UserSlots
from taskservice.web.request import JSON

# Headers that hide a secret path from other sites and from search engines.
PRIVATE = {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex"}

# Minimum size of a piece of a stream in bytes.
PIECE_BYTES = 64 * 1024


class FastResponse(Response):
    """A faster response: Werkzeug does not copy its headers if they are complete."""

    # A response without a body has no content type.
    default_mimetype = None

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        # Werkzeug copies the headers to add `Content-Length`, to remove headers of an empty body,
        # and to quote `Location`.
        if self.status_code == 304:
            remove_entity_headers(self.headers)
            return self.headers
        if self.status_code == 200 and "Content-Length" in self.headers:
            return self.headers
        return super().get_wsgi_headers(environ)


def dump(
    schema: Schema,
    row: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    many: bool = False,
) -> Response:
    """A JSON response with a row, or with several rows if `many`, serialized by a schema."""
    return json(schema.dump(row, many=many), status, headers)


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return FastResponse(strict_json.dumps(value), status, headers, content_type=JSON)


class LongListSlots(UserSlots):
    """Slots for long lists without `limit`, so that some threads remain free for other requests."""

    def __init__(self, threads: int) -> None:
        refusal = "Too many long lists at once; try again later, or use `limit`"
        super().__init__(threads // 2, 3.0, refusal, per_user=threads // 4)


def array(pages: Iterable[Sequence[Any]]) -> Response:
    """The items of all pages as one JSON array; streamed if the array is large. Raises 503."""
    return whole_list(task_json.array(pages))


def whole_list(texts: Iterable[bytes]) -> Response:
    """A list without `limit`. A stream of the list holds a slot until it ends. Raises 503."""
    return stream(texts, slots=resources.find(LongListSlots))


def task(
    row: TaskRow,
    shape: Shape = WHOLE,
    status: int = 200,
    headers: Mapping[str, str] | Headers | None = None,
) -> Response:
    """A task; streamed if its log is large."""
    return stream(task_json.task(row, shape), status, headers)


def page_url(path: str) -> str:
    """The full URL of a page of the dashboard."""
    base = current_app.config["PUBLIC_URL"] or request.url_root.rstrip("/")
    return f"{base}/{path}"


def replayed_header(replayed: bool) -> dict[str, str]:
    """The header that marks the response to a repeated request with the same `Idempotency-Key`."""
    return {"Idempotency-Replayed": "true"} if replayed else {}


def is_conditional(shape: Shape) -> bool:
    """Whether the response can be a 304 for the request's `If-None-Match`."""
    # The version of a task does not cover embedded objects.
    return "HTTP_IF_NONE_MATCH" in request.environ and not shape.expand


def not_modified(seen: TaskRow, shape: Shape) -> Response | None:
    """A 304 if the client already has this version of the task, otherwise None."""
    headers = _version_headers(seen, shape)
    known = request.environ["HTTP_IF_NONE_MATCH"]
    if known == headers["ETag"] or request.if_none_match.contains_weak(_etag(seen, shape)):
        return FastResponse(status=304, headers=headers)
    return None


def versioned_task(row: TaskRow, shape: Shape) -> Response:
    """A response with a task and its ETag. If the shape has logs, the row must be from
    `logs.get_task`.
    """
    if shape.expand:
        return task(row, shape)
    headers = _version_headers(row, shape)
    lines = logs.lines_in(row) if shape.has_logs else None
    if lines is None:
        return task(row, shape, headers=headers)
    return FastResponse(task_json.with_lines(row, shape, lines), 200, headers, content_type=JSON)


def _version_headers(seen: TaskRow, shape: Shape) -> Headers:
    # Creating `Headers` from a dictionary takes longer.
    headers = Headers()
    headers.add("ETag", quote_etag(_etag(seen, shape), weak=True))
    headers.add("Cache-Control", "private, no-cache")
    return headers


def _etag(seen: TaskRow, shape: Shape) -> str:
    if seen.questions == NO_QUESTIONS:
        return f"{seen.version}-{shape.version}"
    # The ETag contains the number of open questions, since a question can expire without a new
    # version.
    return f"{seen.version}-{shape.version}-{len(open_questions(seen.questions))}"


def stream(
    texts: Iterable[bytes],
    status: int = 200,
    headers: Mapping[str, str] | Headers | None = None,
    media_type: str = JSON,
    slots: UserSlots | None = None,
) -> Response:
    """A response of one piece, or a stream of several pieces, which holds one of the `slots` until
    it ends.
    """
    pieces = _in_pieces(texts)
    first, second = next(pieces), next(pieces, None)
    if second is None:
        return FastResponse(first, status, headers, mimetype=media_type)
    held = ExitStack()
    if slots is not None:
        held.enter_context(slots.hold(caller.user_id))
    # A failure midway closes the connection, so that no client mistakes a partial response for a
    # complete one.
    rest = stream_with_context(chain((first, second), pieces))
    response = Response(rest, status, headers, mimetype=media_type)
    response.call_on_close(held.close)
    return response


def _in_pieces(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The texts joined into larger pieces, since each piece takes a system call to send."""
    waiting, size = [], 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


# The query string of a list, which selects the tasks, their fields and the page.


def shape(caller: Caller, query: dict[str, Any]) -> Shape:
    """The fields and expansions in a query string. Raises 422 for fields that a link hides."""
    if caller.task_id:
        names = query.get("fields", SHARED_FIELDS)
        if "expand" in query or not set(names) <= set(SHARED_FIELDS):
            raise invalid({"fields": [f"A link shows only {', '.join(SHARED_FIELDS)}."]})
        return Shape(fields=names)
    if not query:
        return WHOLE
    return Shape(fields=query.get("fields", ()), expand=query.get("expand", ()))


def selection(query: dict[str, Any]) -> Selection:
    return Selection(**{name: query[name] for name in Selection._fields if name in query})


def after(query: dict[str, Any]) -> Position | None:
    """The position of the cursor; None for the first page."""
    return Position(*query["cursor"][1:3]) if "cursor" in query else None


def end_of(query: dict[str, Any]) -> Sequence[Any] | None:
    """The position at which the previous page of a search ended; None for the first page."""
    return query["cursor"][1:] if "cursor" in query else None


def link(tasks: Selection, end: Sequence[Any] | None) -> dict[str, str]:
    """The `Link` header to the next page, which begins after `end`; empty if `end` is None."""
    # The URL is relative to the path of the request, so that it works behind any proxy and prefix.
    return {"Link": f'<?{next_query(tasks, end)}>; rel="next"'} if end else {}


def next_query(tasks: Selection, end: Sequence[Any]) -> str:
    """The query string of the page that begins after `end`."""
    pairs = [pair for pair in request.args.items(multi=True) if pair[0] != "cursor"]
    return urlencode([*pairs, ("cursor", dump_cursor(tasks.sort, *end))])
