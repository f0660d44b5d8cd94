"""Routes for whoever operates the service; they need no key."""

from flask import Blueprint, Response
from sqlalchemy import text

from taskservice.api import answers
from taskservice.api.door import accepts
from taskservice.db import reading

operations = Blueprint("operations", __name__)


@operations.get("/livez")
@accepts()
def live() -> Response:
    """The process is up, whatever the database does."""
    return answers.json({"status": "ok"})


@operations.get("/readyz")
@accepts()
def ready() -> Response:
    """The database can be used; 503 where it can't."""
    with reading() as connection:
        connection.execute(text("SELECT 1 FROM alembic_version"))
    return answers.json({"status": "ok"})
