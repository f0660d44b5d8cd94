"""Routes that show one task to anyone who has a link to it."""

from flask import Blueprint, Response

from taskservice.api import logs, tasks
from taskservice.web import responses
from taskservice.web.request import require_link

blueprint = Blueprint("shared", __name__, url_prefix="/shared/<token>")
blueprint.before_request(require_link)


@blueprint.after_request
def add_headers(response: Response) -> Response:
    response.headers.update(responses.PRIVATE | {"Cache-Control": "no-store"})
    return response


# The same views as under `/api/v1`, for the task of the link.
blueprint.get("/task")(tasks.get)
blueprint.get("/logs")(logs.read)
blueprint.get("/events")(logs.follow)
