"""The HTTP API: all paths below `/api/v1` require an API key, the operators' routes do not."""

from flask import Blueprint, Flask, Response, request

from taskservice import resources
from taskservice.api import (
    agents,
    deliveries,
    docs,
    keys,
    logs,
    operations,
    questions,
    tasks,
    users,
)
from taskservice.auth.authentication import KEY_HEADERS, authenticate
from taskservice.context import current
from taskservice.contract.terms import API_PREFIX

BELOW_PREFIX = f"{API_PREFIX}/"

api = Blueprint("api", __name__, url_prefix=API_PREFIX)
for module in (tasks, questions, logs, deliveries, agents, users, keys):
    api.register_blueprint(module.blueprint)


@api.before_app_request
def require_key() -> None:
    """Check the key before anything else, even if no route matches: 404 and 405 need one too."""
    if _is_below_prefix(current(request).path):
        authenticate()


@api.after_app_request
def prevent_caching(response: Response) -> Response:
    """Keep caches from storing an answer, unless it allows that, and from sharing it."""
    headers = response.headers
    if _is_below_prefix(current(request).path):
        headers.add("Vary", KEY_HEADERS)
    if "Cache-Control" not in headers:
        headers.add("Cache-Control", "no-store")
    return response


def _is_below_prefix(path: str) -> bool:
    return path.startswith(BELOW_PREFIX) or path == API_PREFIX


def init_app(app: Flask) -> None:
    resources.provide(app, docs.DocumentCache())
    app.register_blueprint(api)
    app.register_blueprint(operations.blueprint)
    app.register_blueprint(docs.blueprint)
