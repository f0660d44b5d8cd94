"""Routes for logs: append, read, follow, compare and search."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.auth import Caller
from taskservice.error_codes import SEQ_GAP, TASK_FINISHED
from taskservice.errors import invalid
from taskservice.schemas import requests
from taskservice.schemas.tasks import (
    AppendedSchema,
    EventSchema,
    FoundSchema,
    LogPageSchema,
    NewLinesSchema,
)
from taskservice.services import logs, new_lines, search, task_json, tasks
from taskservice.terms import DEFAULT_HITS, DEFAULT_LINES, RUNNING
from taskservice.web import responses, waiting
from taskservice.web.request import EVENTS, JSON, TEXT, json_value, operation, quality

blueprint = Blueprint("logs", __name__)

append_schema = requests.AppendSchema()

# The same URL returns JSON or text, depending on `Accept`.
VARY = {"Vary": "Accept"}


@blueprint.route("/task/<task_id>/logs", methods=["POST", "PUT"])
@operation(
    "appendLogs",
    responses={201: AppendedSchema()},
    query=requests.AppendQuerySchema(),
    reads=(append_schema, TEXT),
    errors=[TASK_FINISHED, SEQ_GAP],
)
def append(caller: Caller, task_id: str, query: dict[str, Any], data: bytes) -> Response:
    """Append lines to a log.

    The body is JSON or plain text; a PUT without a content type is plain text. A line ends with a
    line feed; a carriage return directly before the line feed is removed. NUL becomes U+FFFD. Every
    append is a heartbeat, even without lines.

    `at` is the time at which the agent printed the lines. The server replaces a time before the
    start of the task with the start time, and a future time with the current time.

    With `seq`, an append is safe to repeat: `seq` is the number of the first line in the request,
    counted from 1 for each `writer`. Lines that are already stored are skipped. If lines are
    missing before `seq`, the request returns 409; `expected` in the response is the number of the
    next line to send. If the task has ended, the request returns 409, with the state of the task in
    `task`. An agent must stop its work if it gets 404, or if the `error` in `task` has the type
    `cancelled`. It must not stop because of any other error.
    """
    fields = _append_fields(query, data)
    writer = (fields.get("writer") or "").replace("\0", "\ufffd")
    count, status = logs.append(caller, task_id, fields["chunks"], fields.get("seq"), writer)
    return responses.json({"logCount": count, "status": status}, 201)


@blueprint.get("/task/<task_id>/logs")
@operation("readLogs", (LogPageSchema(), TEXT), query=requests.LogQuerySchema(), headers=["Prefer"])
def read(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Read lines of a log.

    As JSON, returns one page of the lines whose numbers are greater than `after`; to get the next
    page, pass `next` as `after`. Lines that the retention policy has deleted are omitted. As
    `text/plain`, returns the lines unchanged: at most `limit` lines, or all lines without a
    `limit`. With `times`, a JSON page also contains the time of each line, and each line of text
    starts with its time and a space. If the time of a line was not stored, it is null in JSON and
    `-` in text.

    With `Prefer: wait`, a request that finds no lines waits until a line arrives or the task ends.
    To follow a log live, use the events of the task.
    """
    after = query.get("after", 0)
    task = waiting.until(
        lambda: tasks.get(caller, task_id),
        lambda task: task.log_count > after or task.status != RUNNING,
    )
    has_times = query.get("times", False)
    if quality(TEXT) > quality(JSON):
        text = task_json.log_text(task, after, query.get("limit"), has_times=has_times)
        return responses.stream(text, headers=VARY, media_type=TEXT)
    limit = query.get("limit", DEFAULT_LINES)
    page = task_json.log_page(task, after, limit, has_times=has_times)
    return responses.stream(page, headers=VARY)


@blueprint.get("/task/<task_id>/events")
@operation(
    "followTask",
    # OpenAPI 3.1 can't describe the items of a stream, so this is the schema of a single event.
    {EVENTS: EventSchema()},
    query=requests.FollowQuerySchema(),
    headers=["Last-Event-ID"],
    response_headers=["X-Accel-Buffering"],
)
def follow(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Follow a task.

    Returns a stream of Server-Sent Events. The first event is `task`: the task without its log.
    Each line of the log is a `log` event whose `id` is the line number: the stored lines are sent
    first, then new lines as they arrive. The data of a `log` event is the line as a JSON string or,
    with `times`, an object with `at` and `line`. Any other change of the task sends another `task`
    event. After the task has ended, the stream sends the remaining lines and a last `task` event,
    and then ends. The stream also ends when the task is deleted.

    A client that reconnects with `Last-Event-ID`, as browsers do, does not miss any lines.
    """
    task = tasks.get(caller, task_id)
    return waiting.follow(task.id, _last_event_id(), has_times=query.get("times", False))


@blueprint.get("/task/<task_id>/new-lines")
@operation("readNewLines", NewLinesSchema(), query=requests.NewLinesQuerySchema())
def read_new_lines(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Read the new lines of a log.

    Returns the lines of the task that are not in the log of another task, `against`. By default,
    `against` is a task of the same agent and name that ended with the status `complete` before this
    task started: the task with the most labels in common or, if several tasks have equally many,
    the latest of them. Child tasks are compared only with child tasks, and top-level tasks only
    with top-level tasks. The comparison ignores differences in numbers, UUIDs, `0x...`, runs of at
    least 16 hexadecimal digits, dates, clock times and paths in /tmp. The comparison reads at most
    the first and the last 8 MiB of each log and takes at most 2 s; `cut` is true if it left out any
    lines.
    """
    return responses.json(new_lines.new_lines(caller, task_id, query.get("against")))


@blueprint.get("/search")
@operation(
    "searchLogs", FoundSchema(), query=requests.SearchQuerySchema(), response_headers=["Link"]
)
def search_all(caller: Caller, query: dict[str, Any]) -> Response:
    """Search in logs.

    Returns the log lines that contain `text`, from all tasks that match the filters. The newest
    task is first; the lines of each task are in the order of its log. The search ignores the case
    of ASCII letters unless `case` is true. One request reads at most 64 MiB of logs and stops after
    about 1 s. If more logs remain to be searched, the `Link` header contains the URL that
    continues the search, even if no line has matched yet. A server process runs at most two
    searches at a time, and at most one search of each user. An additional search waits for up to
    1 s, and then returns 503 with `Retry-After`.
    """
    selection = responses.selection(query)
    result = search.search(
        caller,
        selection,
        query["text"],
        is_exact=query.get("case", False),
        limit=query.get("limit", DEFAULT_HITS),
        start=responses.end_of(query),
    )
    return responses.json(result.as_json(), headers=responses.link(selection, result.end))


def _last_event_id() -> int:
    text = request.headers.get("Last-Event-ID") or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise invalid({"Last-Event-ID": ["Must be a line number."]})
    return int(text)


def _append_fields(query: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The fields of an append, from a JSON body or from a text body and its query string. `chunks`
    contains the lines.
    """
    # `curl -T log.txt` sends a PUT without a content type.
    if request.mimetype == TEXT or (request.method == "PUT" and not request.content_type):
        return query | {"chunks": logs.from_text(data, query.get("at"))}
    if query:
        raise invalid({name: ["Belongs in the JSON body."] for name in query})
    body: dict[str, Any] = append_schema.load(json_value(data, append_schema))
    return body | {"chunks": logs.from_strings(body["logs"], body.get("at"))}
