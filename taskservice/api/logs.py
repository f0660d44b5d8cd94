"""Routes of logs: append, read, follow, compare with another log, and search in all logs."""

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

# The same URL returns JSON or text.
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

    The body is JSON or plain text; a PUT without a content type is plain text. A line ends at a
    line feed; one carriage return before it is removed. NUL becomes U+FFFD. Every append is a
    heartbeat, even without lines.

    `at` is the time at which the agent printed the lines. A time before the start of the task is
    replaced by the start, and a time in the future by the current time.

    With `seq`, an append is safe to repeat: `seq` is the number of the first line in the request,
    counted from 1 for each `writer`. Lines that are stored already are skipped. If lines are
    missing before `seq`, the request returns 409, with the number of the next line in `expected`.
    If the task has ended, it returns 409, with the state of the task in `task`. An agent must stop
    on 404, and if the `error` in `task` has the type `cancelled`, but on no other error.
    """
    fields = _append_fields(query, data)
    writer = (fields.get("writer") or "").replace("\0", "\ufffd")
    count, status = logs.append(caller, task_id, fields["chunks"], fields.get("seq"), writer)
    return responses.json({"logCount": count, "status": status}, 201)


@blueprint.get("/task/<task_id>/logs")
@operation("readLogs", (LogPageSchema(), TEXT), query=requests.LogQuerySchema(), headers=["Prefer"])
def read(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Read lines of a log.

    As JSON, returns one page of the lines after number `after`; pass `next` as `after` to get the
    next page. Lines that retention has deleted are left out. As `text/plain`, returns the lines
    unchanged, all of them unless the request has a `limit`. With `times`, a JSON page contains the
    time of each line, and a line of text begins with its time and a space. If the time of a line
    was not stored, it is null in JSON and `-` in text.

    With `Prefer: wait`, a request that finds no lines waits until there are some or the task ends.
    To follow a log live, see the events of a task.
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
    # OpenAPI 3.1 can't describe the items of a stream: this is the schema of one event.
    {EVENTS: EventSchema()},
    query=requests.FollowQuerySchema(),
    headers=["Last-Event-ID"],
    response_headers=["X-Accel-Buffering"],
)
def follow(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Follow a task.

    Returns a stream of Server-Sent Events. The first event is `task`: the task without its log. For
    each line there is a `log` event whose `id` is the number of the line: first for the stored
    lines, then for new lines as they arrive. Its data is the line as a JSON string; with `times`,
    it is an object with `at` and `line`. Any other change of the task sends another `task` event.
    When the task has ended, the stream ends after the last line and a last `task` event. The stream
    also ends when the task is deleted.

    A client that reconnects with `Last-Event-ID`, as browsers do, misses no line.
    """
    task = tasks.get(caller, task_id)
    return waiting.follow(task.id, _last_event_id(), has_times=query.get("times", False))


@blueprint.get("/task/<task_id>/new-lines")
@operation("readNewLines", NewLinesSchema(), query=requests.NewLinesQuerySchema())
def read_new_lines(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Read what is new in a log.

    Returns the lines of the task that the log of another task, `against`, does not contain. By
    default that is a complete task of the same agent and name that ended before this task started:
    the task with the most labels in common, and of several the latest. Child tasks are compared
    only with child tasks. The comparison ignores differences in numbers, UUIDs, `0x...`, 16 or more
    hexadecimal digits, dates, clock times and paths in /tmp. It reads only the first and the last
    8 MiB of a log, for at most 2 s; `cut` is true if something was left out.
    """
    return responses.json(new_lines.new_lines(caller, task_id, query.get("against")))


@blueprint.get("/search")
@operation(
    "searchLogs", FoundSchema(), query=requests.SearchQuerySchema(), response_headers=["Link"]
)
def search_all(caller: Caller, query: dict[str, Any]) -> Response:
    """Search in logs.

    Returns the lines that contain `text` in the logs of all tasks that match the filters. The
    newest task is first; the lines of a task are in their order in the log. ASCII letters match in
    any case unless `case` is true. One request reads at most 64 MiB of logs, for about 1 s. If logs
    remain to be searched, `Link` is the URL that continues, even if no line has matched yet. A
    server process runs two searches at a time, and one for each user. A further search waits for up
    to 1 s, and then returns 503 with `Retry-After`.
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
        raise invalid({"Last-Event-ID": ["Must be the number of a line."]})
    return int(text)


def _append_fields(query: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The fields of an append, from JSON or from text with a query; the lines become `chunks`."""
    # `curl -T log.txt` sends a PUT without a content type.
    if request.mimetype == TEXT or (request.method == "PUT" and not request.content_type):
        return query | {"chunks": logs.from_text(data, query.get("at"))}
    if query:
        raise invalid({name: ["Belongs in the JSON body."] for name in query})
    body: dict[str, Any] = append_schema.load(json_value(data, append_schema))
    return body | {"chunks": logs.from_strings(body["logs"], body.get("at"))}
