"""The page of an answer link: one question and its form, without signing in."""

from flask import Blueprint, Response, request

from taskservice.dashboard import questions
from taskservice.dashboard.pages import error_page, page, texts
from taskservice.dashboard.schema_form import Errors, Texts
from taskservice.database.types import AnyRow
from taskservice.errors import Problem
from taskservice.operations import request_log
from taskservice.services import answer_links
from taskservice.terms import ACCEPT, DECLINE, LINK
from taskservice.web.responses import PRIVATE

blueprint = Blueprint("answer_links", __name__)


@blueprint.after_request
def keep_private(response: Response) -> Response:
    response.headers.update(PRIVATE)
    return response


@blueprint.errorhandler(Problem)
def invalid_page(problem: Problem) -> Response:
    """The same page whether the link was used, has expired, or never existed."""
    if problem.status in (404, 409):
        return page("answer_link.html", 404)
    return error_page(problem)


# Any path, so that a link with something appended gets this page too.
@blueprint.get("/answer/<path:token>")
def show(token: str) -> Response:
    """The form; link previews get it too, so that nothing changes."""
    return _page(answer_links.find(token))


@blueprint.post("/answer/<path:token>")
def answer(token: str) -> Response:
    """The token takes the place of a session and of the token of its forms."""
    found = answer_links.find(token)
    question = questions.loaded(found)
    content, errors = questions.submitted(question)
    if errors:
        return _page(found, texts(request.form), errors)
    answer_links.answer(found, DECLINE if content is None else ACCEPT, content)
    request_log.add_details(user=found.user_name, key=LINK)
    return page("answer_link.html", outcome=questions.outcome_text(question, content))


def _page(found: AnyRow, typed: Texts | None = None, errors: Errors | None = None) -> Response:
    return page(
        "answer_link.html",
        422 if errors else 200,
        task_name=found.task_name,
        agent_name=found.agent_name,
        question=questions.form(questions.loaded(found), None, typed, errors),
    )
