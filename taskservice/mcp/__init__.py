"""The Model Context Protocol at `/mcp`: agents are tools, and questions are forms."""

from flask import Flask

from taskservice.mcp.endpoint import blueprint


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
