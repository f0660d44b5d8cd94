"""The page that runs a task again, with the same input or another one."""

import hashlib

from flask import Blueprint, Response, flash, request
from marshmallow import ValidationError
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth.authentication import caller
from taskservice.dashboard.formatting import pretty
from taskservice.dashboard.forms import sentence
from taskservice.dashboard.pages import page, redirect_to, without_nul
from taskservice.dashboard.shared_pages import shared
from taskservice.database import timestamps
from taskservice.database.rows import TaskRow
from taskservice.problems import Problem
from taskservice.queries import tasks as task_queries
from taskservice.schemas import strict_json
from taskservice.schemas.requests import RerunSchema
from taskservice.services import tasks as task_service
from taskservice.services.tasks import Idempotency
from taskservice.web.request import require_id

reruns = Blueprint("reruns", __name__)

rerun_schema = RerunSchema()


@reruns.get("/tasks/<task_id>/rerun")
@shared
def ask(task_id: str) -> Response:
    task = _task(task_id)
    return _page(task, pretty(task.input))


@reruns.post("/tasks/<task_id>/rerun")
def rerun(task_id: str) -> AnyResponse:
    """What the input lacks is said in the form, which keeps the text."""
    task = _task(task_id)
    form = without_nul(request.form)
    text = form.get("input", "").replace("\r\n", "\n")
    try:
        again = _rerun(task, text, form.get("submission_id", ""))
    except ValueError as error:
        return _page(task, text, f"The input is not valid JSON: {error}.")
    except (Problem, ValidationError) as error:
        return _page(task, text, f"Nothing was started. {sentence(error)}")
    flash(f"Runs again: “{again.name}”. This is the new task.")
    return redirect_to("tasks.show", task_id=again.id)


def _rerun(task: TaskRow, text: str, submission_id: str) -> TaskRow:
    """Start it; a form that is sent twice with the same text starts one task. Raises 422."""
    is_same = text == pretty(task.input)
    body = {} if is_same else {"input": strict_json.loads(text.encode())}
    fields = rerun_schema.load(body)
    submission = f"{submission_id or timestamps.new_id()} {text}"
    key = hashlib.sha256(submission.encode()).hexdigest()
    again, _ = task_service.rerun(caller, task.id, fields, Idempotency.of(key, body, task.id))
    return again


def _page(task: TaskRow, text: str, fault: str = "") -> Response:
    new_id = timestamps.new_id()
    status = 422 if fault else 200
    again = task_queries.newest_rerun(caller, task.id)
    values = {"task": task, "text": text, "fault": fault, "new_id": new_id, "again": again}
    return page("rerun.html", status, **values)


def _task(task_id: str) -> TaskRow:
    return task_queries.get(caller, require_id("task", task_id))
