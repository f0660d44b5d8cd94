"""The search box of the list, and the page that searches in logs and in error messages."""

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

from flask import Blueprint, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard import filters, formatting
from taskservice.dashboard.pages import first_texts, page
from taskservice.database.types import AnyRow
from taskservice.schemas.requests import SearchQuerySchema
from taskservice.services import lists
from taskservice.services import search as search_service
from taskservice.services import tasks as task_service
from taskservice.services.lists import Position, Selection
from taskservice.terms import label_problem
from taskservice.web import responses

# The beginning of a task's id, without hyphens.
_DIGITS = re.compile("[0-9a-f]{8,32}")


def destination() -> str | None:
    """The URL to which the text in the list's search box leads; None if it is part of a name."""
    text = first_texts(request.args).get("q", "").strip()
    digits = text.lower().replace("-", "")
    if _DIGITS.fullmatch(digits):
        ids = lists.ids_with_prefix(caller, digits)
        if len(ids) == 1:
            return url_for("dashboard.tasks.show", task_id=ids[0])
    # The list shows labels with a colon.
    key, value = [*re.split("[=:]", text, maxsplit=1), ""][:2]
    if label_problem(key, value) is None:
        label = f"{key}:{value}"
        if lists.positions(caller, Selection(labels=(label,)), None, 1).positions:
            return filters.label_url(label, q=None)
    return None


# The page.

blueprint = Blueprint("search", __name__)

search_query = SearchQuerySchema()
LOGS, ERRORS = "logs", "errors"
# The other parameters of the page are filters.
OF_PAGE = ("q", "where", "sort", "cursor")
# How many lines of an error message are shown.
MAX_LINES = 3


class Line(NamedTuple):
    """A line that was found, in pieces: every second one is the text that was searched for.

    The line of an error message has no number.
    """

    pieces: list[str]
    number: int | None = None


class Found(NamedTuple):
    """The found lines by task, and the query string and the time from which a search continues."""

    tasks: list[tuple[AnyRow, list[Line]]]
    next: str | None
    until: str | None


@blueprint.get("/search")
def show() -> AnyResponse:
    """The lines of logs that contain `q`, or with `where=errors` the tasks whose error does."""
    if complete := filters.without_empty_fields():
        return complete
    kept = [pair for pair in request.args.items(multi=True) if pair[0] not in OF_PAGE]
    values = first_texts(request.args)
    text, where = values.pop("q", ""), values.pop("where", LOGS)
    values.pop("sort", None)
    query, _, selection = filters.load({**values, "text": text or "?"}, search_query)
    search = _in_errors if where == ERRORS else _in_logs
    found = search(selection, query) if text else None
    return page("search.html", found=found, where=where, kept=kept, filters=filters)


def _in_logs(selection: Selection, query: dict[str, Any]) -> Found:
    text, start = query["text"], responses.end_of(query)
    found = search_service.search(caller, selection, text, start=start, limit=query["limit"])
    lines = {
        task_id: [Line(_pieces(hit["text"], text), hit["line"]) for hit in hits]
        for task_id, hits in groupby(found.hits, lambda hit: hit["taskId"])
    }
    tasks = [(row, lines[row.id]) for row in _tasks(lines)]
    return Found(tasks, *_rest(selection, found.end))


def _in_errors(selection: Selection, query: dict[str, Any]) -> Found:
    text, after = query["text"], responses.after(query)
    found = search_service.in_errors(caller, selection, text, after, query["limit"])
    rows = _tasks(position.id for position in found.positions)
    tasks = [(row, _lines_of_error(row, text)) for row in rows]
    return Found(tasks, *_rest(selection, found.reached))


def _lines_of_error(row: AnyRow, text: str) -> list[Line]:
    """The first lines of an error message that contain the text."""
    message, pattern = row.error_message, search_service.pattern(text)
    # A summary has the start of a long message.
    if not pattern.search(message) and (task := task_service.find(caller, row.id)):
        message = task.error_message or ""
    found = ((line, pattern.search(line)) for line in message.split("\n"))
    lines = [search_service.excerpt(line, *match.span()) for line, match in found if match]
    return [Line(_pieces(line, text)) for line in lines[:MAX_LINES]]


def _tasks(ids: Iterable[str]) -> list[AnyRow]:
    return lists.summaries(caller, [Position("", task_id) for task_id in ids])


def _rest(selection: Selection, end: search_service.End | None) -> tuple[str | None, str | None]:
    return (responses.next_query(selection, end), end[0]) if end else (None, None)


def _pieces(line: str, text: str) -> list[str]:
    pattern = search_service.pattern(text)
    pieces = re.split(f"({pattern.pattern})", line, flags=pattern.flags)
    return [formatting.without_escapes(piece) for piece in pieces]
