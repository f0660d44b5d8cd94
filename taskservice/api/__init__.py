"""The HTTP API: paths below `/api/v1` need a key, links and the paths for operators do not."""

from flask import Blueprint, Flask, Response, request

from taskservice.api import agents, hooks, logs, questions, service, tasks, users
from taskservice.auth import ERRORS_OF_DELETED_USER, KEY_HEADERS, authenticate, caller, still_valid
from taskservice.errors import from_exception, invalid_key, respond
from taskservice.terms import API_PREFIX
from taskservice.web import responses
from taskservice.web.request import require_link

BELOW_PREFIX = f"{API_PREFIX}/"

api = Blueprint("api", __name__, url_prefix=API_PREFIX)
for blueprint in (
    tasks.blueprint,
    tasks.deliveries,
    questions.blueprint,
    logs.blueprint,
    tasks.links,
    agents.blueprint,
    agents.attention,
    hooks.blueprint,
    users.blueprint,
    users.keys,
):
    api.register_blueprint(blueprint)


@api.before_app_request
def require_key() -> None:
    """Check the key before anything else, even if no route matches: 404 and 405 need one too."""
    if _is_below_prefix(request.path):
        authenticate()
        if request.method not in ("GET", "HEAD"):
            caller.require_full_access()


def refuse_deleted_user(error: Exception) -> Response:
    """401 to a request whose user was deleted since it came; other errors are as elsewhere."""
    return respond(from_exception(error) if still_valid() else invalid_key())


for kind in ERRORS_OF_DELETED_USER:
    api.register_error_handler(kind, refuse_deleted_user)


@api.after_app_request
def prevent_caching(response: Response) -> Response:
    """Send `Cache-Control: no-store` unless the view set it, and vary responses by the key."""
    headers = response.headers
    if _is_below_prefix(request.path):
        headers.add("Vary", KEY_HEADERS)
    if "Cache-Control" not in headers:
        headers.add("Cache-Control", "no-store")
    return response


def _is_below_prefix(path: str) -> bool:
    return path.startswith(BELOW_PREFIX) or path == API_PREFIX


# What everyone gets who has a link to a task.
shared = Blueprint("shared", __name__, url_prefix="/shared/<token>")
shared.before_request(require_link)

# Pages of every origin may read what a link shows: who has the link needs no cookie.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Prefer, If-None-Match, Last-Event-ID",
    "Access-Control-Expose-Headers": "ETag, Preference-Applied, Retry-After, X-Request-Id",
}


@shared.after_request
def add_headers(response: Response) -> Response:
    response.headers.update({**CORS, **responses.PRIVATE, "Cache-Control": "no-store"})
    return response


# As the API answers them, for the task of the link.
shared.get("/task")(tasks.get)
shared.get("/logs")(logs.read)
shared.get("/events")(logs.follow)


def init_app(app: Flask) -> None:
    app.register_blueprint(api)
    app.register_blueprint(shared)
    app.register_blueprint(service.operators)
    app.register_blueprint(service.docs)
