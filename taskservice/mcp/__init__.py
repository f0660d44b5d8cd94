"""The Model Context Protocol at `/mcp`: agents as tools, tasks, questions as forms."""

from flask import Flask

from taskservice.mcp.endpoint import blueprint


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
