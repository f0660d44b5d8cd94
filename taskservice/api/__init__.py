"""The HTTP API: paths under `/api/v1` require an API key, and the other paths do not."""

from flask import Blueprint, Flask

from taskservice.api import access, agents, hooks, logs, questions, service, shared, tasks, users
from taskservice.auth import ERRORS_OF_DELETED_USER
from taskservice.terms import API_PREFIX
from taskservice.web.request import TaskIdConverter

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
api.before_app_request(access.require_key)
api.after_app_request(access.prevent_caching)
for kind in ERRORS_OF_DELETED_USER:
    api.register_error_handler(kind, access.refuse_deleted_user)


def init_app(app: Flask) -> None:
    app.url_map.converters["task"] = TaskIdConverter
    for blueprint in (api, shared.blueprint, service.operators, service.docs, service.help_pages):
        app.register_blueprint(blueprint)
