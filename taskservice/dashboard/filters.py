"""The filters of the list of tasks, and links that change them."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import Response, request, url_for
from marshmallow import Schema

from taskservice import terms
from taskservice.auth import caller
from taskservice.dashboard.chart import PERIODS
from taskservice.dashboard.pages import first_texts, see_other, texts
from taskservice.errors import invalid
from taskservice.schemas.requests import ListQuerySchema
from taskservice.services import lists
from taskservice.services.lists import WAITING, Selection, TaskList
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
    sent: Mapping[str, str] | None = None, schema: Schema = list_query_schema
) -> tuple[dict[str, Any], dict[str, str], Selection]:
    """The filters of the query string: for the API's list, from OWN_FILTERS, and as a selection.

    `sent` replaces the query string, `schema` the schema of the list. Raises 403 and 422.
    """
    sent = first_texts(request.args) if sent is None else sent
    values: dict[str, Any] = {"limit": str(PAGE_SIZE), **sent}
    if "label" in values:
        values["label"] = labels()
    page_filters = {name: values.pop(name) for name in OWN_FILTERS if name in values}
    if values.get("sort") == LONGEST_FIRST:
        del values["sort"]
    query: dict[str, Any] = schema.load(values)
    for name, text in page_filters.items():
        if text not in OWN_FILTERS[name]:
            raise invalid({name: ["Must be one of: " + ", ".join(OWN_FILTERS[name]) + "."]})
    if "callback" in page_filters:
        caller.require_user_key()
    if "since" in page_filters:
        # A bar of the chart selects a part of the period.
        query.setdefault("createdAfter", PERIODS[page_filters["since"]].since)
    return (
        query,
        page_filters,
        responses.selection(query)._replace(delivery=page_filters.get("callback")),
    )


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
