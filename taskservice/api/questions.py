"""Routes for the questions of a task."""

from typing import Any

from flask import Blueprint, Response

from taskservice import error_codes, terms
from taskservice.auth import Caller
from taskservice.schemas.requests import AnswerQuestionSchema, AskSchema
from taskservice.schemas.tasks import question_schema
from taskservice.services import questions as question_service
from taskservice.services.tasks import Idempotency
from taskservice.web import responses, waiting
from taskservice.web.request import idempotency_key, operation

blueprint = Blueprint("questions", __name__)


@blueprint.get("/task/<task_id>/question")
@operation("listQuestions", [question_schema])
def list_all(caller: Caller, task_id: str) -> Response:
    """List a task's questions.

    Returns all questions of the task, oldest first. The task object itself contains the open
    questions. The list is streamed: if an error occurs midway, the connection closes before the
    array is complete.
    """
    pages = question_service.list_of_task(caller, task_id)
    return responses.array(question_schema.dump(page, many=True) for page in pages)


@blueprint.post("/task/<task_id>/question")
@operation(
    "askQuestion",
    responses={201: question_schema},
    body=AskSchema(),
    headers=["Idempotency-Key", "Prefer"],
    response_headers=["Location", "Idempotency-Replayed"],
    errors=[error_codes.TASK_FINISHED, error_codes.NOT_CLAIMED, error_codes.TOO_MANY_QUESTIONS],
)
def ask(caller: Caller, task_id: str, body: dict[str, Any], sent: Any) -> Response:
    """Ask a question.

    Asks people a question on behalf of a claimed, running task. While a question is open, the task
    does not time out. With `Prefer: wait`, the request waits until the question is answered,
    declined, withdrawn or expired.
    """
    idempotency = Idempotency.of(idempotency_key(), sent)
    question, replayed = question_service.ask(caller, task_id, body, idempotency)
    ended = _ended(caller, task_id, question.id)
    headers = {"Location": f"question/{question.id}", **responses.replayed_header(replayed)}
    return responses.dump(question_schema, ended, 201, headers)


@blueprint.get("/task/<task_id>/question/<question_id>")
@operation("getQuestion", question_schema, headers=["Prefer"])
def get(caller: Caller, task_id: str, question_id: str) -> Response:
    """Get a question.

    With `Prefer: wait`, the request waits until the question is answered, declined, withdrawn or
    expired.
    """
    return responses.dump(question_schema, _ended(caller, task_id, question_id))


def _ended(caller: Caller, task_id: str, question_id: str) -> Any:
    """The question; with `Prefer: wait`, wait until the question is no longer open."""
    return waiting.until(
        lambda: question_service.get(caller, task_id, question_id),
        lambda question: bool(question.state != terms.OPEN),
        by_time=True,
    )


@blueprint.post("/task/<task_id>/question/<question_id>/answer")
@operation(
    "answerQuestion",
    question_schema,
    user_key=True,
    body=AnswerQuestionSchema(),
    errors=[error_codes.QUESTION_CLOSED],
    example={"state": terms.ANSWERED, "answer": {"deploy": True}, "answeredBy": "laptop"},
)
def answer(caller: Caller, task_id: str, question_id: str, body: dict[str, Any]) -> Response:
    """Answer a question.

    Only the first answer counts; sending the same answer again changes nothing. `answeredBy` is set
    to the name of the key.
    """
    action, content = body["action"], body.get("content")
    question = question_service.answer(caller, task_id, question_id, action, content)
    return responses.dump(question_schema, question)


@blueprint.delete("/task/<task_id>/question/<question_id>")
@operation("withdrawQuestion", question_schema, errors=[error_codes.QUESTION_CLOSED])
def withdraw(caller: Caller, task_id: str, question_id: str) -> Response:
    """Withdraw a question.

    Closes a question whose answer the agent no longer needs. An answered question can't be
    withdrawn.
    """
    return responses.dump(question_schema, question_service.withdraw(caller, task_id, question_id))
