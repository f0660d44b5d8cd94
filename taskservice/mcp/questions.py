"""Questions as the forms of MCP (elicitation), and the answers that a client sends to them."""

from typing import Any

from taskservice.auth import caller
from taskservice.database.types import TaskRow
from taskservice.errors import invalid
from taskservice.mcp import refusals
from taskservice.schemas.fields import NO_QUESTIONS, open_questions, parse_id
from taskservice.schemas.requests import AnswerQuestionSchema
from taskservice.services import questions as question_service
from taskservice.terms import ACCEPT

# The person closed the form and may answer later.
CANCEL = "cancel"

_answer_schema = AnswerQuestionSchema()


def open_of(task: TaskRow) -> list[dict[str, Any]]:
    """The open questions of a task, as the API has them."""
    return [] if task.questions == NO_QUESTIONS else open_questions(task.questions)


def listed(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions in the result of a tool."""
    return [
        {"questionId": each["id"], "message": each["message"], "schema": each["schema"]}
        for each in questions
    ]


def as_forms(questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Id of a question -> the form that a client shows for it."""
    return {each["id"]: _form(each["message"], each["schema"]) for each in questions}


def _form(message: str, schema: dict[str, Any]) -> dict[str, Any]:
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def answer_forms(task_id: str, responses: Any) -> set[str]:
    """Answer the questions of a task by id; returns those whose form was only closed.

    Ids that the task does not have are ignored. Raises 404, and 422 if some responses are refused:
    then the others have been accepted all the same.
    """
    if not isinstance(responses, dict):
        raise invalid({"inputResponses": ["Must be an object."]})
    closed, refused = set[str](), dict[str, list[str]]()
    given = {key: each for key, each in responses.items() if parse_id(key) == key}
    for question_id in question_service.ids_among(caller, task_id, given):
        response = given[question_id]
        if isinstance(response, dict) and response.get("action") == CANCEL:
            closed.add(question_id)
        elif response is not None:
            try:
                _answer(task_id, question_id, response)
            except refusals.REFUSED as error:
                place = f"question {question_id} of task {task_id}"
                refused[place] = [refusals.reason(error)]
    if refused:
        raise invalid(refused)
    return closed


def _answer(task_id: str, question_id: str, response: Any) -> None:
    given = dict(response) if isinstance(response, dict) else {}
    fields = {name: given[name] for name in ("action", "content") if name in given}
    if fields.get("action") != ACCEPT:
        # Some clients send an empty one with every action.
        fields.pop("content", None)
    answer = _answer_schema.load(fields)
    question_service.answer(caller, task_id, question_id, answer["action"], answer.get("content"))
