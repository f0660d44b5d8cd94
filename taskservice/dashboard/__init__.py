"""The dashboard: pages for people, signed in with an API key, on the same services as the API."""

from flask import Flask

from taskservice.dashboard import agents, hooks, keys, questions, search, sessions, tasks
from taskservice.dashboard.pages import dashboard, sign_in, unknown_page

for blueprint in (
    sign_in,
    tasks.blueprint,
    search.blueprint,
    questions.blueprint,
    agents.blueprint,
    hooks.blueprint,
    keys.blueprint,
    tasks.sharing,
    tasks.public,
    questions.answers,
):
    dashboard.register_blueprint(blueprint)


def init_app(app: Flask) -> None:
    sessions.init_app(app)
    # A form can contain the input of a task, which can be longer than Flask's limit.
    app.config["MAX_FORM_MEMORY_SIZE"] = app.config["MAX_CONTENT_LENGTH"]
    app.register_blueprint(dashboard)
    for status in (404, 405):
        app.register_error_handler(status, unknown_page)
