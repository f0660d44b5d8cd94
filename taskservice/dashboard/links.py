"""Links to a task: the page that creates and revokes them, and the page that everyone sees."""

from flask import Blueprint, Response, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import authenticate_link, caller
from taskservice.dashboard import questions
from taskservice.dashboard import tasks as task_pages
from taskservice.dashboard.pages import error_page, page, redirect_to, shared
from taskservice.database import clock
from taskservice.errors import Problem
from taskservice.services import links, tasks
from taskservice.terms import LINK_DAYS, MAX_LINK_DAYS
from taskservice.web import responses
from taskservice.web.request import require_id

blueprint = Blueprint("links", __name__)
public = Blueprint("shared", __name__, url_prefix="/shared")


@blueprint.before_request
def require_full_user_key() -> None:
    caller.require_full_user_key()


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


# The page that everyone sees who has a link.


@public.before_request
def require_link() -> None:
    authenticate_link((request.view_args or {}).pop("token"))


@public.after_request
def keep_private(response: Response) -> Response:
    response.headers.update(responses.PRIVATE)
    return response


@public.errorhandler(Problem)
def invalid_page(problem: Problem) -> Response:
    """The same page whether the link was revoked, has expired, or never existed."""
    return page("answer_link.html", 404) if problem.status == 404 else error_page(problem)


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
