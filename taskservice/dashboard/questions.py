"""The page of one question, and its form, which the pages of tasks have too."""

from flask import Blueprint, Response, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard import schema_form
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page
from taskservice.dashboard.schema_form import Errors, Json, Texts, texts
from taskservice.errors import Problem
from taskservice.schemas import json_schema
from taskservice.services import questions as question_service
from taskservice.services import tasks
from taskservice.terms import ACCEPT, DECLINE, OPEN, QUESTION_CLOSED
from taskservice.web.request import require_id

blueprint = Blueprint("questions", __name__)


@blueprint.get("/tasks/<task_id>/questions/<question_id>")
def show(task_id: str, question_id: str) -> AnyResponse:
    caller.require_user_key()
    question = _question(task_id, question_id)
    if question["state"] != OPEN:
        return redirect_to("tasks.show", task_id=task_id, _anchor="ended")
    return _page(task_id, question)


@blueprint.post("/tasks/<task_id>/questions/<question_id>")
def answer(task_id: str, question_id: str) -> AnyResponse:
    """What does not fit is said beside its field, which keeps its text."""
    caller.require_user_key()
    question = _question(task_id, question_id)
    typed = texts(request.form)
    content, errors = schema_form.content_of(question["schema"], typed)
    declines = request.form.get("action") == DECLINE
    if not declines and question["state"] == OPEN:
        errors = _misfits(question["schema"], content) | errors
        if errors:
            return _page(task_id, question, typed, errors)
    flash(_answer(task_id, question, None if declines else content))
    # The page that had the form: the list, or by default that of the task.
    return redirect_to_page(request.form.get("back", ""), "tasks.show", task_id=task_id)


def _answer(task_id: str, question: Json, content: Json | None) -> str:
    """Answer, or decline with None; returns the message for the next page."""
    action = DECLINE if content is None else ACCEPT
    try:
        question_service.answer(caller, task_id, question["id"], action, content)
    except Problem as problem:
        if problem.code != QUESTION_CLOSED:
            raise
        return schema_form.closed_sentence(_question(task_id, question["id"]))
    if content is None:
        return "Declined."
    return f"Answered: {schema_form.answer_text(question['schema'], content)}"


def _misfits(schema: Json, content: Json) -> Errors:
    """What does not fit the schema, beside what is missing."""
    errors = json_schema.problems_of_answer(schema, content)
    found = schema_form.by_property(schema, errors, "content")
    return {name: messages for name, messages in found.items() if name}


def _question(task_id: str, question_id: str) -> Json:
    """The question as the API answers it. Raises 404."""
    task_id, question_id = require_id("task", task_id), require_id("question", question_id)
    return schema_form.loaded(question_service.get(caller, task_id, question_id))


def _page(
    task_id: str, question: Json, typed: Texts | None = None, errors: Errors | None = None
) -> Response:
    return page(
        "question.html",
        422 if errors else 200,
        task=tasks.get(caller, task_id),
        question=schema_form.form(question, task_id, typed, errors),
        back=request.values.get("back", ""),
    )
