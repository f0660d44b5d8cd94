"""The dashboard: pages for people, signed in with an API key, on the same services as the API."""

from flask import Flask

from taskservice import resources
from taskservice.dashboard import sessions
from taskservice.dashboard.agents import agents
from taskservice.dashboard.keys import keys
from taskservice.dashboard.pages import dashboard, unknown_page
from taskservice.dashboard.sign_in import sign_in
from taskservice.dashboard.sign_in_throttle import Throttle
from taskservice.dashboard.tasks import tasks

for blueprint in (sign_in, tasks, agents, keys):
    dashboard.register_blueprint(blueprint)


def init_app(app: Flask) -> None:
    sessions.init_app(app)
    resources.provide(app, Throttle())
    app.register_blueprint(dashboard)
    for status in (404, 405):
        app.register_error_handler(status, unknown_page)
