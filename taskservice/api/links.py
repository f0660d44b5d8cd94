"""Routes of links to a task: create, list, revoke; and what everyone gets who has a link."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.api import logs as log_routes
from taskservice.api import tasks as task_routes
from taskservice.auth import authenticate_link, caller
from taskservice.schemas.requests import CreateLinkSchema
from taskservice.schemas.tasks import link_schema, link_with_url_schema
from taskservice.services import links
from taskservice.terms import TOO_MANY_LINKS
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("links", __name__)
shared = Blueprint("shared", __name__, url_prefix="/shared/<token>")

# Pages of every origin may read what a link shows: who has the link needs no cookie.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Prefer, If-None-Match, Last-Event-ID",
    "Access-Control-Expose-Headers": "ETag, Preference-Applied, Retry-After, X-Request-Id",
}


@blueprint.get("/task/<task_id>/link")
@operation("listLinks", user_key=True, responses={200: [link_schema]})
def list_all(task_id: str) -> Response:
    """List links to a task.

    Oldest first, without those that have expired.
    """
    return responses.dump(link_schema, links.list_all(caller, task_id), many=True)


@blueprint.post("/task/<task_id>/link")
@operation(
    "createLink",
    user_key=True,
    body=CreateLinkSchema(),
    responses={201: link_with_url_schema},
    errors=[TOO_MANY_LINKS],
)
def create(task_id: str, body: dict[str, Any]) -> Response:
    """Create a link to a task.

    Everyone who has the link can look at this task, without a key: its name, status, log, output
    and questions, live. Only this response contains the URL.
    """
    link = links.create(caller, task_id, body.get("expiresAt"))
    link.url = responses.shared_url(link.token)
    return responses.dump(link_with_url_schema, link, 201)


@blueprint.delete("/task/<task_id>/link/<link_id>")
@operation("revokeLink", user_key=True, responses={200: link_schema})
def revoke(task_id: str, link_id: str) -> Response:
    """Revoke a link to a task.

    Pages and streams that show the task by this link end within seconds.
    """
    return responses.dump(link_schema, links.revoke(caller, task_id, link_id))


@shared.before_request
def require_link() -> None:
    """Take the task from the link, instead of from the path."""
    path = request.view_args or {}
    authenticate_link(path.pop("token"))
    path["task_id"] = caller.task_id


@shared.after_request
def add_headers(response: Response) -> Response:
    response.headers.update({**CORS, **responses.PRIVATE, "Cache-Control": "no-store"})
    return response


# As the API answers them, for the task of the link.
shared.get("/task")(task_routes.get)
shared.get("/logs")(log_routes.read)
shared.get("/events")(log_routes.follow)
