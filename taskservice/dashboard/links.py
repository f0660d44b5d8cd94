"""The pages that everyone sees who has a link to a task or a question, and the page of links."""

from flask import Blueprint, Response, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import authenticate_link, caller
from taskservice.dashboard import questions
from taskservice.dashboard import tasks as task_pages
from taskservice.dashboard.pages import (
    error_page,
    page,
    redirect_to,
    require_full_user_key,
    shared,
    texts,
)
from taskservice.dashboard.schema_form import Errors, Texts
from taskservice.database import clock
from taskservice.database.types import AnyRow
from taskservice.errors import Problem
from taskservice.operations import request_log
from taskservice.services import answer_links, links, tasks
from taskservice.terms import ACCEPT, DECLINE, LINK, LINK_DAYS, MAX_LINK_DAYS
from taskservice.web import responses
from taskservice.web.request import require_id

# The page that creates and revokes links to a task.

blueprint = Blueprint("links", __name__)
blueprint.before_request(require_full_user_key)


@blueprint.get("/tasks/<task_id>/links")
def list_all(task_id: str) -> Response:
    return _page(task_id)


@blueprint.post("/tasks/<task_id>/links")
def create(task_id: str) -> Response:
    """No redirect: only this response shows the link."""
    days = min(max(request.form.get("days", LINK_DAYS, int), 0), MAX_LINK_DAYS)
    link = links.create(caller, require_id("task", task_id), clock.now(days * 86_400))
    return _page(task_id, 201, url=responses.shared_url(link.token))


@blueprint.post("/tasks/<task_id>/links/<link_id>/revoke")
def revoke(task_id: str, link_id: str) -> AnyResponse:
    links.revoke(caller, require_id("task", task_id), require_id("link", link_id))
    flash("Revoked. Pages that show the task by this link end within seconds.")
    return redirect_to("links.list_all", task_id=task_id)


def _page(task_id: str, status: int = 200, url: str = "") -> Response:
    task = tasks.get(caller, require_id("task", task_id))
    found = links.list_all(caller, task.id)
    return page("links.html", status, task=task, links=found, url=url)


# What both kinds of links have in common.

public = Blueprint("shared", __name__, url_prefix="/shared")
answers = Blueprint("answer_links", __name__, url_prefix="/answer")


def keep_private(response: Response) -> Response:
    response.headers.update(responses.PRIVATE)
    return response


def invalid_page(problem: Problem) -> Response:
    """The same page whether the link was used or revoked, has expired, or never existed."""
    return page("answer_link.html", 404) if problem.status in (404, 409) else error_page(problem)


for each in (public, answers):
    each.after_request(keep_private)
    each.register_error_handler(Problem, invalid_page)


# A task, for everyone who has a link to it.


@public.before_request
def require_link() -> None:
    authenticate_link((request.view_args or {}).pop("token"))


# Any path, so that a link with something appended gets the same page as another invalid link.
@public.get("/<path:token>")
@shared
def show() -> Response:
    task = tasks.get(caller, caller.task_id)
    return page("task.html", task=task, is_shared=True, questions=questions.forms(task))


@public.get("/<token>/live")
def live() -> Response:
    return task_pages.events(caller.task_id)


@public.get("/<token>/lines")
def lines() -> Response:
    return task_pages.lines(caller.task_id)


@public.get("/<token>/log.txt")
def download() -> Response:
    return task_pages.download(caller.task_id)


# A question and its form, for everyone who has a link that answers it.


@answers.get("/<path:token>")
def show_question(token: str) -> Response:
    """The form; link previews get it too, so that nothing changes."""
    return _question_page(answer_links.find(token))


@answers.post("/<path:token>")
def answer(token: str) -> Response:
    """The token takes the place of a session and of the token of its forms."""
    found = answer_links.find(token)
    question = questions.loaded(found)
    content, errors = questions.submitted(question)
    if errors:
        return _question_page(found, texts(request.form), errors)
    answer_links.answer(found, DECLINE if content is None else ACCEPT, content)
    request_log.add_details(user=found.user_name, key=LINK)
    return page("answer_link.html", outcome=questions.outcome_text(question, content))


def _question_page(
    found: AnyRow, typed: Texts | None = None, errors: Errors | None = None
) -> Response:
    return page(
        "answer_link.html",
        422 if errors else 200,
        task_name=found.task_name,
        agent_name=found.agent_name,
        question=questions.form(questions.loaded(found), None, typed, errors),
    )
