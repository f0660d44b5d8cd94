"""Routes of a task's log: append."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.api import answers
from taskservice.api.door import TEXT, accepts, body_bytes, load_body
from taskservice.api.tasks import known
from taskservice.auth import caller
from taskservice.problems import unfit
from taskservice.schemas import AppendQuerySchema, AppendSchema
from taskservice.services import logs as service

logs = Blueprint("logs", __name__)

append_query = AppendQuerySchema()
append_schema = AppendSchema()


@logs.route("/task/<task_id>/logs", methods=["POST", "PUT"])
@accepts(query=append_query)
def append(task_id: str, query: dict[str, Any]) -> Response:
    """Add lines to a task's log, as JSON or as plain text."""
    wishes = _text_append(query) if _is_text() else _json_append(query)
    count, status = service.append(
        caller,
        known(task_id),
        wishes["lines"],
        wishes.get("seq"),
        (wishes.get("writer") or "").replace("\0", "\ufffd"),
    )
    return answers.json({"logCount": count, "status": status}, 201)


def _is_text() -> bool:
    # `curl -T log.txt` sends PUT and names no type.
    return request.mimetype == TEXT or (request.method == "PUT" and not request.content_type)


def _text_append(query: dict[str, Any]) -> dict[str, Any]:
    return query | {"lines": service.split_text(body_bytes().decode(errors="replace"))}


def _json_append(query: dict[str, Any]) -> dict[str, Any]:
    if query:
        raise unfit({name: ["Goes into the JSON body."] for name in query})
    body = load_body(append_schema)
    return body | {"lines": service.split_strings(body["logs"])}
