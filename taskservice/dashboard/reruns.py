"""The page that runs a task again, with the same input or another one."""

import hashlib

from flask import Blueprint, Response, flash, request
from marshmallow import ValidationError
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard import forms, input_form
from taskservice.dashboard.input_form import InputForm
from taskservice.dashboard.pages import page, redirect_to
from taskservice.dashboard.shared_pages import shared
from taskservice.database import clock
from taskservice.database.types import TaskRow
from taskservice.errors import Problem
from taskservice.schemas import strict_json
from taskservice.schemas.requests import RerunSchema
from taskservice.services import agents, starts, tasks
from taskservice.services.tasks import Idempotency
from taskservice.web.request import require_id

reruns = Blueprint("reruns", __name__)

rerun_schema = RerunSchema()


@reruns.get("/tasks/<task_id>/rerun")
@shared
def ask(task_id: str) -> Response:
    task = _task(task_id)
    return _page(task, input_form.with_input(_schema(task), task.input))


@reruns.post("/tasks/<task_id>/rerun")
def rerun(task_id: str) -> AnyResponse:
    """What the input lacks is said in the form, which keeps the text."""
    task = _task(task_id)
    given = input_form.of_request(_schema(task), forms.texts(request.form))
    if "show" in request.form:
        return _page(task, *given.switched())
    try:
        again = _rerun(task, given, request.form.get("submission_id", ""))
    except (Problem, ValidationError) as error:
        given, fault = given.refused(forms.errors_of(error))
        return _page(task, given, f"Nothing was started. {fault}", 422)
    flash(f"Runs again: “{again.name}”. This is the new task.")
    return redirect_to("tasks.show", task_id=again.id)


def _rerun(task: TaskRow, given: InputForm, submission_id: str) -> TaskRow:
    """Start it; a form that is sent twice with the same input starts one task. Raises 422."""
    value, before = given.value(), strict_json.loads(task.input.encode())
    is_same = strict_json.canonical(value) == strict_json.canonical(before)
    body = {} if is_same else {"input": value}
    fields = rerun_schema.load(body)
    submission = (submission_id or clock.new_id()).encode() + strict_json.dumps(value)
    key = hashlib.sha256(submission).hexdigest()
    again, _ = starts.rerun(caller, task.id, fields, Idempotency.of(key, body, task.id))
    return again


def _page(task: TaskRow, given: InputForm, fault: str = "", status: int = 200) -> Response:
    new_id = clock.new_id()
    again = tasks.newest_rerun(caller, task.id)
    values = {"task": task, "given": given, "fault": fault, "new_id": new_id, "again": again}
    return page("rerun.html", status, **values)


def _schema(task: TaskRow) -> str:
    """The schema of its agent's input, as it is stored."""
    return str(agents.get(caller, task.agent_id).input_schema)


def _task(task_id: str) -> TaskRow:
    return tasks.get(caller, require_id("task", task_id))
