"""The dashboard: pages for people, signed in with an API key, on the same services as the API."""

import hmac

from flask import Flask

from taskservice.dashboard import agents, filters, hooks, keys, questions, tasks
from taskservice.dashboard.pages import LIFETIME, dashboard, sign_in, unknown_page
from taskservice.web.request import Sessions

for blueprint in (
    sign_in,
    tasks.blueprint,
    filters.blueprint,
    questions.blueprint,
    agents.blueprint,
    hooks.blueprint,
    keys.blueprint,
    tasks.managed,
    tasks.public,
    questions.answers,
):
    dashboard.register_blueprint(blueprint)


def init_app(app: Flask) -> None:
    # The name differs between services on one host, since browsers share cookies between ports.
    digest = hmac.digest(str(app.config["SECRET_KEY"]).encode(), b"cookie name", "sha256")
    app.config.update(
        SESSION_COOKIE_NAME=f"taskservice-{digest.hex()[:8]}",
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=LIFETIME,
    )
    app.session_interface = Sessions()
    # A form can contain the input of a task, which can be longer than Flask's limit.
    app.config["MAX_FORM_MEMORY_SIZE"] = app.config["MAX_CONTENT_LENGTH"]
    app.register_blueprint(dashboard)
    for status in (404, 405):
        app.register_error_handler(status, unknown_page)
