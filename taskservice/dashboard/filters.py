"""The filters of the task list, and URLs that change the filters."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import Response, request, url_for
from marshmallow import Schema

from taskservice import terms
from taskservice.auth import caller
from taskservice.dashboard.pages import first_texts, see_other, texts
from taskservice.database import clock
from taskservice.errors import invalid
from taskservice.schemas.fields import parse_id
from taskservice.schemas.requests import ListQuerySchema
from taskservice.services import lists
from taskservice.services.lists import WAITING, Selection, TaskList
from taskservice.terms import CANCELLED, COMPLETE, FAILED, HANGING, PENDING, RUNNING, TIMEOUT
from taskservice.web import responses

# Maps each value of the "Started" field to its text on the page, the API's filter, and an age in
# seconds.
DAY = 86_400
STARTED = {
    "1h": ("in the last hour", "createdAfter", 3_600),
    "24h": ("in the last 24 hours", "createdAfter", DAY),
    "7d": ("in the last 7 days", "createdAfter", 7 * DAY),
    "30d": ("in the last 30 days", "createdAfter", 30 * DAY),
    "before-24h": ("older than 24 hours", "createdBefore", DAY),
    "before-7d": ("older than 7 days", "createdBefore", 7 * DAY),
    "before-30d": ("older than 30 days", "createdBefore", 30 * DAY),
    "before-90d": ("older than 90 days", "createdBefore", 90 * DAY),
    "before-1y": ("older than a year", "createdBefore", 365 * DAY),
}
# Filters that the page has but the API does not, and their values.
OWN_FILTERS = {"started": tuple(STARTED), "callback": (PENDING, FAILED)}
# Maps each filter to its name on the page.
WORDS = {
    "q": "Name",
    "agentId": "Agent",
    "label": "Label",
    "parentId": "Started by",
    "status": "Status",
    "errorType": "Error",
    "claimed": "Claimed",
    "asking": "Asks",
    "hanging": "Hangs",
    "callback": "Callback",
    "started": "Started",
    "createdAfter": "Started after",
    "createdBefore": "Started before",
    "finishedAfter": "Ended after",
}
# A sort order that the page has but the API does not.
LONGEST_FIRST = "duration"
PAGE_SIZE = 50
# Maps each tab to the filters that it sets. Choosing a tab removes the filters of the other tabs.
TABS: dict[str, dict[str, str]] = {
    "all": {},
    HANGING: {"hanging": "true"},
    RUNNING: {"status": RUNNING, "claimed": "true"},
    WAITING: {"status": RUNNING, "claimed": "false"},
    COMPLETE: {"status": COMPLETE},
    FAILED: {"errorType": FAILED},
    CANCELLED: {"errorType": CANCELLED},
    TIMEOUT: {"errorType": TIMEOUT},
}
OF_TABS = ("status", "errorType", "claimed", "hanging")
# The filters that have a field in the form. The form does not change other filters.
IN_FORM = ("q", "agentId", "started", "callback", "sort")
# The parameters for the position in the list: the page, and the tasks whose children are shown.
OF_PLACE = ("cursor", "open")

list_query_schema = ListQuerySchema()


def load(
    sent: Mapping[str, str] | None = None, schema: Schema = list_query_schema
) -> tuple[dict[str, Any], Selection]:
    """The filters in the query string, as a query of the API's task list and as a Selection.

    If `sent` is given, it replaces the query string; `schema` can replace the task list's schema.
    Raises 403 and 422.
    """
    sent = first_texts(request.args) if sent is None else sent
    values: dict[str, Any] = {"limit": str(PAGE_SIZE), **sent}
    if "label" in values:
        values["label"] = labels()
    values.pop("open", None)
    page_filters = {name: values.pop(name) for name in OWN_FILTERS if name in values}
    if values.get("sort") == LONGEST_FIRST:
        del values["sort"]
    query: dict[str, Any] = schema.load(values)
    for name, text in page_filters.items():
        if text not in OWN_FILTERS[name]:
            raise invalid({name: ["Must be one of: " + ", ".join(OWN_FILTERS[name]) + "."]})
    if "callback" in page_filters:
        caller.require_user_key()
    if "started" in page_filters:
        _, bound, seconds = STARTED[page_filters["started"]]
        query.setdefault(bound, clock.now(-seconds))
    selection = responses.selection(query)._replace(delivery=page_filters.get("callback"))
    return query, selection


def labels() -> list[str]:
    """The labels in the query string, without duplicates."""
    return list(dict.fromkeys(texts(request.args).get("label", ())))


def list_url(**changes: Any) -> str:
    """The URL of the first page of the list with these filters; None or an empty list removes a
    filter.
    """
    place = dict.fromkeys(OF_PLACE)
    return url_for("dashboard.tasks.list_all", **arguments(**place | changes))


def opened() -> list[str]:
    """The IDs of the tasks whose children the page shows."""
    return [task_id for text in request.args.getlist("open") if (task_id := parse_id(text))]


def url_of_children(task_id: str) -> str:
    """The URL that toggles whether this page shows the children of a task."""
    ids = [other for other in opened() if other != task_id]
    ids += [task_id] if len(ids) == len(opened()) else []
    return list_url(cursor=request.args.get("cursor"), open=ids)


def is_folded(selection: Selection) -> bool:
    """Whether the list shows child tasks only under their parents. A filtered list shows child
    tasks like other tasks, since a filter can hide the parent.
    """
    return caller.agent_id is None and selection == Selection(sort=selection.sort)


def arguments(**changes: Any) -> dict[str, Any]:
    """The arguments of the query string with these changes; None or an empty list removes an
    argument.
    """
    changed = request.args.to_dict(flat=False) | changes
    return {name: value for name, value in changed.items() if value}


def without_empty_fields() -> Response | None:
    """A redirect that removes the empty fields of the form from the URL, or None if no field is
    empty.
    """
    pairs = list(request.args.items(multi=True))
    filled = [pair for pair in pairs if pair[1]]
    if filled == pairs:
        return None
    return see_other(f"{request.script_root}{request.path}?{urlencode(filled)}")


def tab_url(tab: str) -> str:
    return list_url(**{**dict.fromkeys(OF_TABS), **TABS[tab]})


def is_tab(tab: str) -> bool:
    """Whether `tab` is the current tab."""
    return {name: request.args[name] for name in OF_TABS if name in request.args} == TABS[tab]


def label_url(label: str, **changes: Any) -> str:
    """The URL of this list with an additional label and these changes."""
    return list_url(**changes, label=list(dict.fromkeys([*labels(), label])))


def chosen() -> list[tuple[str, str, str]]:
    """The filters not set by the current tab: (name, text, URL of the list without the filter)."""
    is_of_tab = any(map(is_tab, TABS))
    filters = []
    for name, texts_of_name in texts(request.args).items():
        if name in WORDS and not (is_of_tab and name in OF_TABS):
            for text in dict.fromkeys(texts_of_name):
                others = [other for other in texts_of_name if other != text]
                filters.append((name, text, list_url(**{name: others})))
    return filters


def text_of(name: str, text: str) -> str:
    """The text that the page shows for the value of a filter."""
    return STARTED[text][0] if name == "started" else text


def hidden_filters() -> list[tuple[str, str]]:
    """The names and values of the filters that the form sends in hidden fields."""
    pairs = request.args.items(multi=True)
    return [(name, text) for name, text in pairs if name not in (*IN_FORM, *OF_PLACE)]


# The first 8 to 32 hexadecimal digits of a task ID.
_DIGITS = re.compile("[0-9a-f]{8,32}")


def destination() -> str | None:
    """The URL for the text in the search box: the task with this ID, or the list of tasks with this
    label. None for any other text, since the list of tasks searches the names for it.
    """
    text = first_texts(request.args).get("q", "").strip()
    digits = text.lower().replace("-", "")
    if _DIGITS.fullmatch(digits):
        ids = lists.ids_with_prefix(caller, digits)
        if len(ids) == 1:
            return url_for("dashboard.tasks.show", task_id=ids[0])
    # The page shows labels with a colon, but people type them in commands with an equals sign.
    key, value = [*re.split("[=:]", text, maxsplit=1), ""][:2]
    if terms.label_problem(key, value) is None:
        label = f"{key}:{value}"
        if TaskList(caller, Selection(label=(label,))).positions(None, 1)[0]:
            return label_url(label, q=None)
    return None
