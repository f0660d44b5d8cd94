"""The HTTP API: all paths below `/api/v1` require an API key, the operators' routes do not."""

from flask import Blueprint, Flask, Response, request

from taskservice.api import agents, hooks, links, logs, questions, service, tasks, users
from taskservice.auth import ERRORS_OF_DELETED_USER, KEY_HEADERS, authenticate, caller, is_key_valid
from taskservice.errors import from_exception, invalid_key, respond
from taskservice.terms import API_PREFIX

BELOW_PREFIX = f"{API_PREFIX}/"

api = Blueprint("api", __name__, url_prefix=API_PREFIX)
for blueprint in (
    tasks.blueprint,
    tasks.deliveries,
    questions.blueprint,
    logs.blueprint,
    links.blueprint,
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
    return respond(from_exception(error) if is_key_valid() else invalid_key())


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


def init_app(app: Flask) -> None:
    app.register_blueprint(api)
    app.register_blueprint(links.shared)
    app.register_blueprint(service.operators)
    app.register_blueprint(service.docs)
