"""Routes of tasks: start, list, get, report, cancel, delete."""

from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from taskservice import documents, queries
from taskservice.api import answers, lists, waits
from taskservice.api.door import json_body, operation
from taskservice.auth import caller
from taskservice.error_codes import TASK_FINISHED
from taskservice.models import CANCELLED, COMPLETE, ERROR, RUNNING
from taskservice.problems import not_found, unfit
from taskservice.schemas import (
    EXAMPLE_MOMENT,
    MAX_IDEMPOTENCY_KEY,
    ListQuerySchema,
    ReportSchema,
    StartSchema,
    TaskQuerySchema,
    parse_id,
    shaped_task_schema,
    task_schema,
)
from taskservice.services import tasks as service
from taskservice.services.tasks import Idempotency

tasks = Blueprint("tasks", __name__)

list_query = ListQuerySchema()
task_query = TaskQuerySchema()
start_schema = StartSchema()
report_schema = ReportSchema()


@tasks.get("/task")
@operation(
    "listTasks", query=list_query, answers={200: [shaped_task_schema]}, answer_headers=["Link"]
)
def list_all(query: dict[str, Any]) -> Response:
    """List tasks.

    All that the key may see, newest first; the filters, whose bounds are exclusive, narrow it.
    Without `limit` all of them come, streamed: a failure midway breaks the connection. With
    `limit` there comes a page, and with `Link` the way to the next one; a task that existed
    at the first page is neither left out nor repeated.
    """
    selection, shape = lists.selection(query), lists.shape(query)
    if "limit" not in query:
        pages = queries.all_tasks(caller, selection, shape.large)
        return answers.streamed(documents.of_tasks(pages, shape))
    page = lists.page(caller, selection, query)
    rows = queries.tasks_at(caller, selection, page.places, shape.large)
    return answers.streamed(documents.of_tasks(rows, shape), headers=page.headers)


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
    wishes = start_schema.load(body)
    task, replayed = service.start(caller, wishes, _idempotency(body))
    headers = {"Location": f"task/{task.id}", **replay_headers(replayed)}
    return answers.task(task, status=201, headers=headers)


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
    find = partial(waits.find_task, known(task_id))
    task = waits.until(find, lambda task: task.status != RUNNING)
    return answers.unless_known(task, lists.shape(query))


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
    task, callback_status = service.report(caller, known(task_id), body)
    return answers.task(task, lists.shape(query), headers={"Callback-Status": callback_status})


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
        "error": {"type": CANCELLED, "message": service.CANCELLED_MESSAGE},
        "finishedAt": EXAMPLE_MOMENT,
    },
)
def cancel(task_id: str, query: dict[str, Any]) -> Response:
    """Cancel a task.

    A running task becomes an `error` of type `cancelled`, and its callback is told. Cancelling
    it again changes nothing and is 200.
    """
    task, callback_status = service.cancel(caller, known(task_id))
    return answers.task(task, lists.shape(query), headers={"Callback-Status": callback_status})


@tasks.delete("/task/<task_id>")
@operation("deleteTask", user_key=True, query=task_query, answers={200: shaped_task_schema})
def delete(task_id: str, query: dict[str, Any]) -> Response:
    """Delete a task for good.

    Its log and its deliveries go with it, and no webhook is sent. Answers the task as it was.
    """
    task = service.delete_for_good(caller, known(task_id))
    return answers.task(task, lists.shape(query))


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
        raise unfit({"Idempotency-Key": [f"Must have 1 to {MAX_IDEMPOTENCY_KEY} characters."]})
    return key


def replay_headers(replayed: bool) -> dict[str, str]:
    return {"Idempotency-Replayed": "true"} if replayed else {}


def _idempotency(body: Any) -> Idempotency | None:
    key = idempotency_key()
    return None if key is None else Idempotency.of(key, body)
