"""The filters of the list of tasks, links that change them, and searches."""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, TypeAlias
from urllib.parse import urlencode

from flask import Blueprint, Response, request, url_for
from marshmallow import Schema

from taskservice import terms
from taskservice.auth import caller
from taskservice.dashboard import formatting
from taskservice.dashboard.chart import PERIODS
from taskservice.dashboard.pages import first_texts, page, see_other, texts
from taskservice.database.types import AnyRow
from taskservice.errors import invalid
from taskservice.schemas.requests import ListQuerySchema, SearchQuerySchema
from taskservice.services import lists, search
from taskservice.services import tasks as task_service
from taskservice.services.lists import WAITING, Position, Selection, TaskList
from taskservice.terms import CANCELLED, COMPLETE, FAILED, PENDING, RUNNING, TIMEOUT
from taskservice.web import responses

# The filters that the API's list does not have, and their values.
OWN_FILTERS = {"since": tuple(PERIODS), "callback": (PENDING, FAILED)}
# An order that the API's list does not have.
LONGEST_FIRST = "duration"
PAGE_SIZE = 50
# Tab -> the filters that it sets; it removes the filters of other tabs.
TABS: dict[str, dict[str, str]] = {
    "all": {},
    RUNNING: {"status": RUNNING, "claimed": "true"},
    WAITING: {"status": RUNNING, "claimed": "false"},
    COMPLETE: {"status": COMPLETE},
    FAILED: {"errorType": FAILED},
    CANCELLED: {"errorType": CANCELLED},
    TIMEOUT: {"errorType": TIMEOUT},
}
OF_TABS = ("status", "errorType", "claimed")
# The fields of the filter's form; it keeps the other filters as they are.
IN_FORM = ("q", "agentId", "since", "callback", "sort")

list_query_schema = ListQuerySchema()


def load(
    given: Mapping[str, str] | None = None, schema: Schema = list_query_schema
) -> tuple[dict[str, Any], dict[str, str], Selection]:
    """The filters of the query string: for the API's list, from OWN_FILTERS, and as a selection.

    `given` replaces the query string, `schema` the schema of the list. Raises 403 and 422.
    """
    given = first_texts(request.args) if given is None else given
    values: dict[str, Any] = {"limit": str(PAGE_SIZE), **given}
    if "label" in values:
        values["label"] = labels()
    own = {name: values.pop(name) for name in OWN_FILTERS if name in values}
    if values.get("sort") == LONGEST_FIRST:
        del values["sort"]
    query: dict[str, Any] = schema.load(values)
    for name, text in own.items():
        if text not in OWN_FILTERS[name]:
            raise invalid({name: ["Must be one of: " + ", ".join(OWN_FILTERS[name]) + "."]})
    if "callback" in own:
        caller.require_user_key()
    if "since" in own:
        # A bar of the chart selects a part of the period.
        query.setdefault("createdAfter", PERIODS[own["since"]].since)
    return query, own, responses.selection(query)._replace(delivery=own.get("callback"))


def labels() -> list[str]:
    """The labels that the query string names, each once."""
    return list(dict.fromkeys(texts(request.args).get("label", ())))


def list_url(**changes: Any) -> str:
    """The first page of this list with other filters; None or an empty list removes one."""
    return url_for("dashboard.tasks.list_all", **arguments(**changes, cursor=None))


def arguments(**changes: Any) -> dict[str, Any]:
    """The query string with these changes; None or an empty list removes an argument."""
    changed = request.args.to_dict(flat=False) | changes
    return {name: value for name, value in changed.items() if value}


def without_empty_fields() -> Response | None:
    """A redirect to this page without the empty fields that its form has sent; None without any."""
    pairs = list(request.args.items(multi=True))
    filled = [pair for pair in pairs if pair[1]]
    if filled == pairs:
        return None
    return see_other(f"{request.script_root}{request.path}?{urlencode(filled)}")


def tab_url(tab: str) -> str:
    return list_url(**{**dict.fromkeys(OF_TABS), **TABS[tab]})


def is_tab(tab: str) -> bool:
    """Whether this tab is open."""
    return {name: request.args[name] for name in OF_TABS if name in request.args} == TABS[tab]


def label_url(label: str, **changes: Any) -> str:
    """This list with one more label, and with these changes."""
    return list_url(**changes, label=list(dict.fromkeys([*labels(), label])))


def url_without_label(label: str) -> str:
    return list_url(label=[other for other in labels() if other != label])


def hidden_filters() -> list[tuple[str, str]]:
    """The filters that the form keeps without showing them."""
    pairs = request.args.items(multi=True)
    return [(name, text) for name, text in pairs if name not in (*IN_FORM, "cursor")]


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
    if terms.label_problem(key, value) is None:
        label = f"{key}:{value}"
        if TaskList(caller, Selection(label=(label,))).positions(None, 1)[0]:
            return label_url(label, q=None)
    return None


blueprint = Blueprint("search", __name__)

search_query = SearchQuerySchema()
# The other parameters of the page are filters.
OF_PAGE = ("q", "where", "sort", "cursor")
# How many lines of an error message are shown.
MAX_LINES = 3


# The found tasks, each with its lines, and where a search continues. A line has its number, None in
# an error message, and its pieces: every second one is the text that was searched for.
Found: TypeAlias = tuple[list[tuple[AnyRow, list[tuple[int | None, list[str]]]]], search.End | None]


@blueprint.get("/search")
def show() -> Response:
    """The lines of logs that contain `q`, or with `where=errors` the tasks whose error does."""
    if complete := without_empty_fields():
        return complete
    kept = [pair for pair in request.args.items(multi=True) if pair[0] not in OF_PAGE]
    values = first_texts(request.args)
    text, where = values.pop("q", ""), values.pop("where", "logs")
    values.pop("sort", None)
    query, _, selection = load({**values, "text": text or "?"}, search_query)
    find = _in_errors if where == "errors" else _in_logs
    found, end = find(selection, query) if text else (None, None)
    more: dict[str, Any] = {"where": where, "kept": kept, "arguments": arguments}
    if end:
        more |= {"next": responses.next_query(selection, end), "until": end[0]}
    return page("search.html", found=found, **more)


def _in_logs(selection: Selection, query: dict[str, Any]) -> Found:
    text, start = query["text"], responses.end_of(query)
    found = search.search(caller, selection, text, start=start, limit=query["limit"])
    lines = {
        task_id: [(hit["line"], _pieces(hit["text"], text)) for hit in hits]
        for task_id, hits in groupby(found.hits, lambda hit: hit["taskId"])
    }
    rows = lists.summaries(caller, [Position("", task_id) for task_id in lines])
    return [(row, lines[row.id]) for row in rows], found.end


def _in_errors(selection: Selection, query: dict[str, Any]) -> Found:
    text, after = query["text"], responses.after(query)
    found, end = search.in_errors(caller, selection, text, after, query["limit"])
    return [(row, _lines_of_error(row, text)) for row in lists.summaries(caller, found)], end


def _lines_of_error(row: AnyRow, text: str) -> list[tuple[int | None, list[str]]]:
    """The first lines of an error message that contain the text."""
    message, pattern = row.error_message, _pattern(text)
    # A summary has the start of a long message.
    if not pattern.search(message) and (task := task_service.find(caller, row.id)):
        message = task.error_message or ""
    found = ((line, pattern.search(line)) for line in message.split("\n"))
    lines = [search.excerpt(line, *match.span()) for line, match in found if match]
    return [(None, _pieces(line, text)) for line in lines[:MAX_LINES]]


def _pieces(line: str, text: str) -> list[str]:
    pattern = _pattern(text)
    pieces = re.split(f"({pattern.pattern})", line, flags=pattern.flags)
    return [formatting.without_escapes(piece) for piece in pieces]


def _pattern(text: str) -> re.Pattern[str]:
    """What the database finds, in Python."""
    return re.compile(re.escape(text), re.ASCII | re.IGNORECASE)
