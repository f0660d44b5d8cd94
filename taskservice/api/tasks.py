"""Routes of tasks: start, list, get, report, cancel, delete."""

from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from taskservice.auth.authentication import caller
from taskservice.contract.error_codes import TASK_FINISHED
from taskservice.contract.terms import CANCELLED, COMPLETE, ERROR, MAX_IDEMPOTENCY_KEY, RUNNING
from taskservice.problems import invalid, not_found
from taskservice.queries import lists as list_queries
from taskservice.queries import task_json
from taskservice.schemas.answers import shaped_task_schema, task_schema
from taskservice.schemas.fields import EXAMPLE_MOMENT, parse_id
from taskservice.schemas.parameters import ListQuerySchema, TaskQuerySchema
from taskservice.schemas.requests import ReportSchema, StartSchema
from taskservice.services import tasks as task_service
from taskservice.services.tasks import Idempotency
from taskservice.web import list_query, long_poll, responses
from taskservice.web.request import json_body, operation

tasks = Blueprint("tasks", __name__)

list_query_schema = ListQuerySchema()
task_query = TaskQuerySchema()
start_schema = StartSchema()
report_schema = ReportSchema()


@tasks.get("/task")
@operation(
    "listTasks",
    query=list_query_schema,
    answers={200: [shaped_task_schema]},
    answer_headers=["Link"],
)
def list_all(query: dict[str, Any]) -> Response:
    """List tasks.

    All that the key may see, newest first; the filters, whose bounds are exclusive, narrow it.
    Without `limit` all of them come, streamed: a failure midway breaks the connection. With
    `limit` there comes a page, and with `Link` the way to the next one; a task that existed
    at the first page is neither left out nor repeated.
    """
    selection, shape = list_query.selection(query), list_query.shape(query)
    if "limit" not in query:
        pages = list_queries.all_tasks(caller, selection, shape.large)
        return responses.stream(task_json.tasks(pages, shape))
    page = list_query.page(caller, selection, query)
    rows = list_queries.tasks_at(caller, selection, page.positions, shape.large)
    return responses.stream(task_json.tasks(rows, shape), headers=page.headers)


@tasks.post("/task")
@operation(
    "startTask",
    reads=start_schema,
    headers=["Idempotency-Key"],
    answers={201: task_schema},
    answer_headers=["Location", "Idempotency-Replayed"],
    example={"logs": [], "logCount": 0},
)
def start() -> Response:
    """Start a task.

    It waits for an agent to claim it, however long that takes. With `claim`, or an agent key,
    it is the caller's already, who does the work.
    """
    body = json_body()
    fields = start_schema.load(body)
    task, replayed = task_service.start(caller, fields, _idempotency(body))
    headers = {"Location": f"task/{task.id}", **replay_headers(replayed)}
    return responses.task(task, status=201, headers=headers)


@tasks.get("/task/<task_id>")
@operation(
    "getTask",
    query=task_query,
    headers=["If-None-Match", "Prefer"],
    answers={200: shaped_task_schema, 304: None},
    answer_headers=["ETag", "Preference-Applied"],
)
def get(task_id: str, query: dict[str, Any]) -> Response:
    """Get a task.

    With `Prefer: wait`, the answer comes when the task has ended, or the time is over.

    With `If-None-Match`, a task that has not changed is 304 without a body. With `expand`
    there is no ETag, since what is embedded has no version.
    """
    find = partial(long_poll.find_task, known(task_id))
    task = long_poll.until(find, lambda task: task.status != RUNNING)
    return responses.conditional_task(task, list_query.shape(query))


@tasks.patch("/task/<task_id>")
@operation(
    "reportTask",
    query=task_query,
    body=report_schema,
    answers={200: shaped_task_schema},
    answer_headers=["Callback-Status"],
    errors=[TASK_FINISHED],
    example={"status": COMPLETE, "output": {"sum": 15}, "finishedAt": EXAMPLE_MOMENT},
)
def report(task_id: str, query: dict[str, Any], body: dict[str, Any]) -> Response:
    """Report on a task.

    Changes its status, output, error or name; a sign of life even when it changes nothing.
    `complete` and `error` end the task, and its callback gets a signed webhook before the
    answer comes; whatever becomes of that, this is 200, and `Callback-Status` tells.

    A finished task keeps its result: what would change more than its name is 409, what
    changes nothing is 200 and sends nothing. But a task that was ended for silence may still
    be finished by its agent.
    """
    task, callback_status = task_service.report(caller, known(task_id), body)
    return responses.task(
        task, list_query.shape(query), headers={"Callback-Status": callback_status}
    )


@tasks.post("/task/<task_id>/cancel")
@operation(
    "cancelTask",
    user_key=True,
    query=task_query,
    answers={200: shaped_task_schema},
    answer_headers=["Callback-Status"],
    errors=[TASK_FINISHED],
    example={
        "status": ERROR,
        "error": {"type": CANCELLED, "message": task_service.CANCELLED_MESSAGE},
        "finishedAt": EXAMPLE_MOMENT,
    },
)
def cancel(task_id: str, query: dict[str, Any]) -> Response:
    """Cancel a task.

    A running task becomes an `error` of type `cancelled`, and its callback is told. Cancelling
    it again changes nothing and is 200.
    """
    task, callback_status = task_service.cancel(caller, known(task_id))
    return responses.task(
        task, list_query.shape(query), headers={"Callback-Status": callback_status}
    )


@tasks.delete("/task/<task_id>")
@operation("deleteTask", user_key=True, query=task_query, answers={200: shaped_task_schema})
def delete(task_id: str, query: dict[str, Any]) -> Response:
    """Delete a task for good.

    Its log and its deliveries go with it, and no webhook is sent. Answers the task as it was.
    """
    task = task_service.delete_for_good(caller, known(task_id))
    return responses.task(task, list_query.shape(query))


def known(task_id: str) -> str:
    """The id in its canonical spelling; what is no UUID is the id of no task."""
    parsed = parse_id(task_id)
    if parsed is None:
        raise not_found("Task")
    return parsed


def idempotency_key() -> str | None:
    """What the caller calls this request, so that it can be repeated; raises 422."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise invalid({"Idempotency-Key": [f"Must have 1 to {MAX_IDEMPOTENCY_KEY} characters."]})
    return key


def replay_headers(replayed: bool) -> dict[str, str]:
    return {"Idempotency-Replayed": "true"} if replayed else {}


def _idempotency(body: Any) -> Idempotency | None:
    key = idempotency_key()
    return None if key is None else Idempotency.of(key, body)
