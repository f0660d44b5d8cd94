"""The dashboard: web pages for people, which use the same services as the API."""

import hmac
from inspect import getmembers, isfunction
from typing import Any

from flask import Flask

from taskservice import quantities, reasons
from taskservice.dashboard import (
    agents,
    formatting,
    hooks,
    inbox,
    keys,
    pages,
    questions,
    search,
    sessions,
    sign_in,
    tasks,
)
from taskservice.dashboard.pages import dashboard, unknown_page
from taskservice.dashboard.sessions import LIFETIME
from taskservice.database import clock
from taskservice.web.request import Sessions

for blueprint in (
    inbox.blueprint,
    tasks.blueprint,
    search.blueprint,
    sign_in.blueprint,
    questions.blueprint,
    agents.blueprint,
    hooks.blueprint,
    keys.blueprint,
    tasks.managed,
    tasks.public,
    questions.answers,
    sign_in.links,
):
    dashboard.register_blueprint(blueprint)

# The functions that all templates can call.
FUNCTIONS: dict[str, Any] = {
    **dict(getmembers(formatting, isfunction) + getmembers(quantities, isfunction)),
    "error_reason": reasons.error_reason,
    "form_token": sessions.form_token,
    "log_reason": reasons.log_reason,
    "seconds_between": clock.seconds_between,
    "submission_id": sessions.submission_id,
    "way_back": pages.way_back,
    "without_escapes": reasons.without_escapes,
}
dashboard.app_context_processor(lambda: FUNCTIONS)


def init_app(app: Flask) -> None:
    # Services on the same host need different cookie names, since browsers share cookies between
    # ports.
    digest = hmac.digest(str(app.config["SECRET_KEY"]).encode(), b"cookie name", "sha256")
    app.config.update(
        SESSION_COOKIE_NAME=f"taskservice-{digest.hex()[:8]}",
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=LIFETIME,
    )
    app.session_interface = Sessions()
    app.register_blueprint(dashboard)
    for status in (404, 405):
        app.register_error_handler(status, unknown_page)
