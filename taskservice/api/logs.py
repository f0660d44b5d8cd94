"""Routes of a task's log: append."""

from typing import Any

from flask import Blueprint, Response, request

from taskservice.api import answers
from taskservice.api.door import body_bytes, load_body, operation
from taskservice.api.tasks import known
from taskservice.auth import caller
from taskservice.openapi.operation import TEXT
from taskservice.problems import unfit
from taskservice.schemas import AppendQuerySchema, AppendSchema, appended_schema
from taskservice.services import logs as service

logs = Blueprint("logs", __name__)

append_query = AppendQuerySchema()
append_schema = AppendSchema()


@logs.route("/task/<task_id>/logs", methods=["POST", "PUT"])
@operation(
    "appendLogs",
    query=append_query,
    reads=(append_schema, TEXT),
    answers={201: appended_schema},
    errors={409: "The task is finished, or lines before these are missing."},
)
def append(task_id: str, query: dict[str, Any]) -> Response:
    """Append lines to a log.

    As JSON, or as plain text, which is also what a PUT without a content type is: a line ends
    at a line feed, a carriage return before it is dropped, and NUL becomes U+FFFD. No lines at
    all are a sign of life.

    With `seq`, an append is safe to repeat: it is the number, counted by `writer` from 1, of
    the first line sent. Lines that are stored already are skipped; a gap is 409, and
    `expected` tells the next number. When the task is finished, 409 has it as `task`; only an
    `error` of type `cancelled`, and 404, tell the agent to stop.
    """
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
