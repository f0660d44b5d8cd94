"""Routes of tasks: start, list, get, report, cancel, delete."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice import documents, queries
from taskservice.api import answers, lists
from taskservice.api.door import accepts, json_body
from taskservice.auth import caller
from taskservice.problems import Problem, not_found
from taskservice.schemas import (
    ListQuerySchema,
    ReportSchema,
    StartSchema,
    TaskQuerySchema,
    parse_id,
)
from taskservice.services import tasks as service
from taskservice.services.tasks import Idempotency

tasks = Blueprint("tasks", __name__)

list_query = ListQuerySchema()
task_query = TaskQuerySchema()
start_schema = StartSchema()
report_schema = ReportSchema()

MAX_IDEMPOTENCY_KEY = 255


@tasks.get("/task")
@accepts(query=list_query)
def list_all(query: dict[str, Any]) -> Response:
    """All tasks that the key may see, or with `limit` a page of them."""
    selection, shape = lists.selection(query), lists.shape(query)
    if "limit" not in query:
        pages = queries.all_tasks(caller, selection)
        return answers.streamed(documents.of_tasks(pages, shape))
    page = lists.page(caller, selection, query)
    rows = queries.tasks_at(caller, selection, page.places)
    return answers.streamed(documents.of_tasks(rows, shape), headers=page.headers)


@tasks.post("/task")
@accepts()
def start() -> Response:
    """Start a task."""
    body = json_body()
    wishes = start_schema.load(body)
    task, replayed = service.start(caller, wishes, _idempotency(body))
    headers = {"Location": f"task/{task.id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return answers.task(task, status=201, headers=headers)


@tasks.get("/task/<task_id>")
@accepts(query=task_query)
def get(task_id: str, query: dict[str, Any]) -> Response:
    """One task."""
    task = queries.task(caller, known(task_id))
    if task is None:
        raise not_found("Task")
    return answers.unless_known(task, lists.shape(query))


@tasks.patch("/task/<task_id>")
@accepts(body=report_schema)
def report(task_id: str, body: dict[str, Any]) -> Response:
    """Change a task's status, output, error or name."""
    task, callback_status = service.report(caller, known(task_id), body)
    return answers.task(task, headers={"Callback-Status": callback_status})


@tasks.post("/task/<task_id>/cancel")
@accepts()
def cancel(task_id: str) -> Response:
    """End a running task as cancelled."""
    caller.require_user_key()
    task, callback_status = service.cancel(caller, known(task_id))
    return answers.task(task, headers={"Callback-Status": callback_status})


@tasks.delete("/task/<task_id>")
@accepts(query=task_query)
def delete(task_id: str, query: dict[str, Any]) -> Response:
    """Delete a task for good, with its log and its deliveries."""
    caller.require_user_key()
    task = service.delete_for_good(caller, known(task_id))
    return answers.task(task, lists.shape(query))


def known(task_id: str) -> str:
    """The id in its canonical spelling; what is no UUID is the id of no task."""
    parsed = parse_id(task_id)
    if parsed is None:
        raise not_found("Task")
    return parsed


def _idempotency(body: Any) -> Idempotency | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_IDEMPOTENCY_KEY:
        raise Problem(422, f"Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY} characters")
    return Idempotency.of(key, body)
