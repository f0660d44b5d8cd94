"""The search page, which finds lines of logs, or tasks by their error messages."""

import re
from itertools import groupby
from typing import Any, TypeAlias

from flask import Blueprint, Response, request

from taskservice.auth import caller
from taskservice.dashboard.filters import WORDS, arguments, load, text_of, without_empty_fields
from taskservice.dashboard.pages import first_texts, page
from taskservice.database.rows import TaskRow
from taskservice.reasons import without_escapes
from taskservice.schemas.requests import SearchQuerySchema
from taskservice.services import lists, search
from taskservice.services import tasks as task_service
from taskservice.services.lists import Position, Selection
from taskservice.web import responses

blueprint = Blueprint("search", __name__)

search_query = SearchQuerySchema()
# Query parameters that are not filters.
OF_PAGE = ("q", "where", "sort", "cursor")
# Maximum number of lines of an error message on the page.
MAX_LINES = 3


# The tasks with matching lines, and the position at which the search continues. Each line is a
# pair: its number (None in an error message), and the pieces of its text. Every second piece is a
# match.
Found: TypeAlias = tuple[
    list[tuple[TaskRow, list[tuple[int | None, list[str]]]]], search.End | None
]


@blueprint.get("/search")
def show() -> Response:
    """Show the log lines that contain `q`, or with `where=errors` the tasks whose error message
    contains `q`.
    """
    if complete := without_empty_fields():
        return complete
    filters = [pair for pair in request.args.items(multi=True) if pair[0] not in OF_PAGE]
    values = first_texts(request.args)
    text, where = values.pop("q", ""), values.pop("where", "logs")
    values.pop("sort", None)
    query, selection = load({**values, "text": text or "?"}, search_query)
    find = _in_errors if where == "errors" else _in_logs
    tasks, end = find(selection, query) if text else (None, None)
    context: dict[str, Any] = {"where": where, "filters": filters, "words": WORDS}
    context |= {"text_of": text_of, "arguments": arguments}
    if end:
        context |= {"next": responses.next_query(selection, end), "until": end[0]}
    return page("search.html", found=tasks, **context)


def _in_logs(selection: Selection, query: dict[str, Any]) -> Found:
    text, start = query["text"], responses.end_of(query)
    result = search.search(caller, selection, text, start=start, limit=query["limit"])
    lines = {
        task_id: [(hit["line"], _pieces(hit["text"], text)) for hit in hits]
        for task_id, hits in groupby(result.hits, lambda hit: hit["taskId"])
    }
    rows = lists.summaries(caller, [Position("", task_id) for task_id in lines])
    return [(row, lines[row.id]) for row in rows], result.end


def _in_errors(selection: Selection, query: dict[str, Any]) -> Found:
    text, after = query["text"], responses.after(query)
    positions, end = search.in_errors(caller, selection, text, after, query["limit"])
    return [(row, _lines_of_error(row, text)) for row in lists.summaries(caller, positions)], end


def _lines_of_error(row: TaskRow, text: str) -> list[tuple[int | None, list[str]]]:
    """The first lines of an error message that contain the text."""
    message, pattern = row.error_message or "", _pattern(text)
    # `row` contains only the start of a long message, so the text may occur later in the message.
    if not pattern.search(message) and (task := task_service.find(caller, row.id)):
        message = task.error_message or ""
    searched = ((line, pattern.search(line)) for line in message.split("\n"))
    lines = [search.excerpt(line, *match.span()) for line, match in searched if match]
    return [(None, _pieces(line, text)) for line in lines[:MAX_LINES]]


def _pieces(line: str, text: str) -> list[str]:
    pattern = _pattern(text)
    pieces = re.split(f"({pattern.pattern})", line, flags=pattern.flags)
    return [without_escapes(piece) for piece in pieces]


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern that ignores case only for ASCII letters, as the database does."""
    return re.compile(re.escape(text), re.ASCII | re.IGNORECASE)
