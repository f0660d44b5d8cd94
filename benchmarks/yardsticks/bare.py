"""A Flask view that answers constant bytes: the least that a Flask service can do."""

import os

from flask import Flask, Response


def create_app() -> Flask:
    app = Flask(__name__, static_folder=None)
    # As long as a task with five lines.
    body = os.environ.get("YARDSTICK_BODY", "{}").encode()

    @app.get("/api/v1/task/<task_id>")
    def get(task_id: str) -> Response:
        return Response(body, mimetype="application/json")

    return app
