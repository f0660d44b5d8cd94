"""Routes for tasks, their deliveries and their links."""

from typing import Any

from flask import Blueprint, Response

from taskservice import error_codes, terms
from taskservice.auth import Caller
from taskservice.database.rows import TaskRow
from taskservice.schemas import examples, requests
from taskservice.schemas.tasks import (
    BulkResultSchema,
    delivery_schema,
    expanded_task_schema,
    link_schema,
    link_with_url_schema,
)
from taskservice.services import deliveries as delivery_service
from taskservice.services import links as link_service
from taskservice.services import logs, reports, task_json
from taskservice.services import tasks as task_service
from taskservice.services.lists import TaskList
from taskservice.services.tasks import Idempotency
from taskservice.web import responses, waiting
from taskservice.web.request import idempotency_key, operation

blueprint = Blueprint("tasks", __name__)
deliveries = Blueprint("deliveries", __name__)
links = Blueprint("links", __name__)

task_query = requests.TaskQuerySchema()


@blueprint.get("/task")
@operation(
    "listTasks", [expanded_task_schema], query=requests.ListQuerySchema(), response_headers=["Link"]
)
def list_all(caller: Caller, query: dict[str, Any]) -> Response:
    """List tasks.

    Returns the tasks that the key has access to and that match the filters, newest first. Time
    bounds are exclusive. Without `limit`, all tasks are streamed: if an error occurs midway, the
    connection closes before the array is complete. With `limit`, the response is one page, and the
    `Link` header contains the URL of the next page. Each task that existed when the first page was
    requested is on exactly one page. If the filters exclude very many consecutive tasks, a page can
    contain fewer tasks than `limit`, or none, and still have a `Link`.
    """
    selection, shape = responses.selection(query), responses.shape(caller, query)
    tasks = TaskList(caller, selection)
    if "limit" not in query:
        return responses.whole_list(task_json.tasks(tasks.all(shape), shape))
    page, end = tasks.page(responses.after(query), query["limit"], shape)
    return responses.stream(task_json.tasks(page, shape), headers=responses.link(selection, end))


@blueprint.post("/task")
@operation(
    "startTask",
    responses={201: expanded_task_schema},
    query=task_query,
    body=requests.StartSchema(),
    headers=["Idempotency-Key"],
    response_headers=["Location", "Idempotency-Replayed"],
    example={"logs": [], "logCount": 0},
)
def start(caller: Caller, query: dict[str, Any], body: dict[str, Any], sent: Any) -> Response:
    """Start a task.

    The task waits, without a time limit, until a worker of the agent claims it. With `claim`, or
    with an agent key, the caller claims the task when starting it, and does the work.
    """
    idempotency = Idempotency.of(idempotency_key(), sent)
    task, replayed = task_service.start(caller, body, idempotency)
    headers = {"Location": f"task/{task.id}", **responses.replayed_header(replayed)}
    return responses.task(task, responses.shape(caller, query), 201, headers)


@blueprint.get("/task/<task:task_id>")
@operation("getTask", expanded_task_schema, query=task_query, headers=["If-None-Match", "Prefer"])
def get(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Get a task.

    With `Prefer: wait`, the request waits until the task has ended or the given time has passed.

    With `If-None-Match`, the request returns 304 without a body if the task has not changed. With
    `expand`, the response has no ETag, since embedded objects have no version.
    """
    shape = responses.shape(caller, query)
    # `logs.get_task` also reads the log, if it is small.
    read = logs.get_task if shape.has_logs else task_service.get
    if not responses.is_conditional(shape):
        task = waiting.until(lambda: read(caller, task_id), _has_ended)
        return responses.versioned_task(task, shape)
    seen = waiting.until(lambda: task_service.get_version(caller, task_id), _has_ended)
    unchanged = responses.not_modified(seen, shape)
    return unchanged or responses.versioned_task(read(caller, task_id), shape)


def _has_ended(task: TaskRow) -> bool:
    return bool(task.status != terms.RUNNING)


@blueprint.patch("/task/<task:task_id>")
@operation(
    "reportTask",
    expanded_task_schema,
    query=task_query,
    body=requests.ReportSchema(),
    response_headers=["Callback-Status"],
    errors=[error_codes.TASK_FINISHED],
    example={
        "status": terms.COMPLETE,
        "output": {"sum": 15},
        "finishedAt": examples.LATER,
        "endedBy": "laptop",
    },
)
def report(caller: Caller, task_id: str, query: dict[str, Any], body: dict[str, Any]) -> Response:
    """Report on a task.

    Changes the status, output, error, name, progress, note or labels of a task. Every report is a
    heartbeat, even if it changes nothing. The status `complete` or `error` ends the task, and a
    signed webhook is sent to its callback before the response. The request returns 200 whatever the
    receiver responds; the `Callback-Status` header is the outcome of the webhook.

    The result of a finished task can't be changed: a report that changes more than the name and the
    labels returns 409. The exception is a late report: after a `timeout`, the agent can still
    report the outcome. A report that changes nothing returns 200 and sends no webhook.
    """
    task, status = reports.report(caller, task_id, body)
    return responses.task(task, responses.shape(caller, query), headers={"Callback-Status": status})


@blueprint.post("/task/<task_id>/cancel")
@operation(
    "cancelTask",
    expanded_task_schema,
    user_key=True,
    query=task_query,
    response_headers=["Callback-Status"],
    errors=[error_codes.TASK_FINISHED],
    example={
        "status": terms.ERROR,
        "error": {"type": terms.CANCELLED, "message": reports.CANCELLED_MESSAGE},
        "finishedAt": examples.LATER,
        "endedBy": "laptop",
    },
)
def cancel(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Cancel a task.

    A running task ends with an `error` of type `cancelled`, and a webhook is sent to its callback.
    Cancelling a cancelled task returns 200 and changes nothing.
    """
    task, status = reports.cancel(caller, task_id)
    return responses.task(task, responses.shape(caller, query), headers={"Callback-Status": status})


@blueprint.post("/task/<task_id>/rerun")
@operation(
    "rerunTask",
    responses={201: expanded_task_schema},
    query=task_query,
    body=requests.RerunSchema(),
    headers=["Idempotency-Key"],
    response_headers=["Location", "Idempotency-Replayed"],
    example={"logs": [], "logCount": 0, "rerunOf": examples.TASK},
)
def rerun(
    caller: Caller, task_id: str, query: dict[str, Any], body: dict[str, Any], sent: Any
) -> Response:
    """Run a task again.

    Starts a new task with the same agent, name, callback and timeout. The input and the labels are
    the same too, unless the request contains new values. The new task is unclaimed, even if the
    request has an agent key.
    """
    idempotency = Idempotency.of(idempotency_key(), sent, rerun_of=task_id)
    task, replayed = task_service.rerun(caller, task_id, body, idempotency)
    # The URL is relative to the path of the request.
    headers = {"Location": f"../{task.id}", **responses.replayed_header(replayed)}
    return responses.task(task, responses.shape(caller, query), 201, headers)


@blueprint.post("/task/bulk")
@operation(
    "changeTasks",
    BulkResultSchema(),
    user_key=True,
    body=requests.BulkSchema(),
    headers=["Idempotency-Key"],
)
def change_many(caller: Caller, body: dict[str, Any]) -> Response:
    """Cancel, delete or rerun many tasks.

    Applies the action to each task, with the rules of the operation for a single task. If the
    action is rejected for some tasks, the other tasks are still changed. Webhooks are sent after
    the response. An `Idempotency-Key` makes reruns safe to repeat; cancelling and deleting are
    always safe to repeat.
    """
    result = reports.change_many(caller, body["action"], body["taskIds"], idempotency_key())
    return responses.json(result)


@blueprint.delete("/task/<task:task_id>")
@operation("deleteTask", expanded_task_schema, user_key=True, query=task_query)
def delete(caller: Caller, task_id: str, query: dict[str, Any]) -> Response:
    """Delete a task permanently.

    Deletes the task with its log and its deliveries, and sends no webhook. Returns the deleted
    task.
    """
    return responses.task(task_service.delete(caller, task_id), responses.shape(caller, query))


@deliveries.get("/task/<task_id>/deliveries")
@operation("listDeliveries", [delivery_schema], user_key=True)
def list_deliveries(caller: Caller, task_id: str) -> Response:
    """List a task's deliveries.

    Returns the deliveries of the task, newest first, each with its newest attempts. The list is
    empty while the task is running, and if the task has no callback. Only a late report creates a
    second delivery.
    """
    task_service.get(caller, task_id)
    rows = delivery_service.list_of_task(caller, task_id)
    return responses.dump(delivery_schema, rows, many=True)


@deliveries.post("/task/<task_id>/deliveries")
@operation(
    "redeliver",
    responses={202: delivery_schema},
    user_key=True,
    errors=[error_codes.NO_DELIVERY, error_codes.DELIVERY_UNDER_WAY],
    example={"nextAttemptAt": examples.TIME},
)
def redeliver(caller: Caller, task_id: str) -> Response:
    """Send the webhook of a task again.

    Schedules the newest delivery for immediate sending, whatever its state, and restarts its retry
    schedule. The webhook is sent soon after this response, with the same `webhook-id` and the
    current state of the task.
    """
    return responses.dump(delivery_schema, delivery_service.redeliver(caller, task_id), 202)


@links.get("/task/<task_id>/link")
@operation("listLinks", [link_schema], user_key=True)
def list_links(caller: Caller, task_id: str) -> Response:
    """List the links to a task.

    Returns the links that have not expired, oldest first.
    """
    return responses.dump(link_schema, link_service.list_all(caller, task_id), many=True)


@links.post("/task/<task_id>/link")
@operation(
    "createLink",
    responses={201: link_with_url_schema},
    user_key=True,
    body=requests.CreateLinkSchema(),
    errors=[error_codes.TOO_MANY_LINKS],
)
def create_link(caller: Caller, task_id: str, body: dict[str, Any]) -> Response:
    """Create a link to a task.

    Anyone who has the link can see the task live, without a key: its name, status, log, output and
    questions. Only this response contains the URL.
    """
    link = link_service.create(caller, task_id, body.get("expiresAt"))
    link.url = responses.page_url(f"shared/{link.token}")
    return responses.dump(link_with_url_schema, link, 201)


@links.delete("/task/<task_id>/link/<link_id>")
@operation("revokeLink", link_schema, user_key=True)
def revoke_link(caller: Caller, task_id: str, link_id: str) -> Response:
    """Revoke a link to a task.

    Pages and streams that use this link lose access to the task within seconds.
    """
    return responses.dump(link_schema, link_service.revoke(caller, task_id, link_id))
