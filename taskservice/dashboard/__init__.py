"""The dashboard: pages for people, signed in with an API key, on the same services as the API."""

from flask import Flask

from taskservice import resources
from taskservice.dashboard import sessions
from taskservice.dashboard.agents import blueprint as agents
from taskservice.dashboard.keys import blueprint as keys
from taskservice.dashboard.pages import dashboard, unknown_page
from taskservice.dashboard.questions import blueprint as questions
from taskservice.dashboard.sign_in import Throttle
from taskservice.dashboard.sign_in import blueprint as sign_in
from taskservice.dashboard.tasks import blueprint as tasks
from taskservice.dashboard.tasks import reruns

for blueprint in (sign_in, tasks, questions, reruns, agents, keys):
    dashboard.register_blueprint(blueprint)


def init_app(app: Flask) -> None:
    sessions.init_app(app)
    # A form may contain the input of a task, which is longer than Flask's limit.
    app.config["MAX_FORM_MEMORY_SIZE"] = app.config["MAX_CONTENT_LENGTH"]
    resources.provide(app, Throttle())
    app.register_blueprint(dashboard)
    for status in (404, 405):
        app.register_error_handler(status, unknown_page)
