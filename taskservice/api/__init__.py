"""The HTTP API: everything below `/api/v1` asks for a key, the operator's routes do not."""

from flask import Blueprint, Flask, Response, request

from taskservice import resources
from taskservice.api.agents import agents
from taskservice.api.deliveries import deliveries
from taskservice.api.docs import DocumentCache, docs
from taskservice.api.keys import keys
from taskservice.api.logs import logs
from taskservice.api.operations import operations
from taskservice.api.tasks import tasks
from taskservice.api.users import users
from taskservice.auth.authentication import KEY_HEADERS, authenticate
from taskservice.contract.terms import API_PREFIX

api = Blueprint("api", __name__, url_prefix=API_PREFIX)
for blueprint in (tasks, logs, deliveries, agents, users, keys):
    api.register_blueprint(blueprint)


@api.before_app_request
def require_key() -> None:
    """Ask for the key first, also where no route answers: 404 and 405 are for callers too."""
    if _is_below_prefix():
        authenticate()


@api.after_app_request
def uncached(response: Response) -> Response:
    """No cache keeps an answer that does not allow it, least of all for another caller."""
    if _is_below_prefix():
        response.vary.update(KEY_HEADERS)
    told = "private, no-cache" if "ETag" in response.headers else "no-store"
    response.headers.setdefault("Cache-Control", told)
    return response


def _is_below_prefix() -> bool:
    return request.path == API_PREFIX or request.path.startswith(f"{API_PREFIX}/")


@api.after_app_request
def untyped(response: Response) -> Response:
    """What has no body by its nature has no type; Flask would call it HTML."""
    if response.status_code == 204 or (request.method == "OPTIONS" and response.status_code == 200):
        response.headers.pop("Content-Type", None)
    return response


def init_app(app: Flask) -> None:
    resources.provide(app, DocumentCache())
    app.register_blueprint(api)
    app.register_blueprint(operations)
    app.register_blueprint(docs)
