"""The filters of the list: what the query string selects, and links that change it."""

from typing import Any, NamedTuple

from flask import request, url_for

from taskservice.auth import caller
from taskservice.dashboard import chart
from taskservice.dashboard.pages import without_nul
from taskservice.errors import invalid
from taskservice.schemas.requests import ListQuerySchema
from taskservice.services.lists import WAITING, Selection
from taskservice.terms import CANCELLED, COMPLETE, ERROR, FAILED, PENDING, RUNNING, TIMEOUT
from taskservice.web import responses

# The filters that the API's list does not have, and their values.
OWN_FILTERS = {"since": tuple(chart.PERIODS), "callback": (PENDING, FAILED)}
PAGE_SIZE = 50
# Tab -> the filters that it sets; it removes those of the other tabs.
TABS: dict[str, dict[str, str]] = {
    "all": {},
    RUNNING: {"status": RUNNING, "claimed": "true"},
    WAITING: {"status": RUNNING, "claimed": "false"},
    COMPLETE: {"status": COMPLETE},
    ERROR: {"status": ERROR},
    FAILED: {"errorType": FAILED},
    CANCELLED: {"errorType": CANCELLED},
    TIMEOUT: {"errorType": TIMEOUT},
}
OF_TABS = ("status", "errorType", "claimed")
# The fields of the filter's form; it keeps the other filters as they are.
IN_FORM = ("q", "agentId", "since", "callback", "sort")

list_query_schema = ListQuerySchema()


class Query(NamedTuple):
    """What the query string asks for."""

    # As ListQuerySchema loads it.
    loaded: dict[str, Any]
    own: dict[str, str]
    selection: Selection


def load() -> Query:
    """The filters that the API's list has too, and those of OWN_FILTERS; raises 403 and 422."""
    values: dict[str, Any] = {"limit": str(PAGE_SIZE), **without_nul(request.args)}
    if "label" in values:
        values["label"] = labels()
    own = {name: values.pop(name) for name in OWN_FILTERS if name in values}
    query: dict[str, Any] = list_query_schema.load(values)
    for name, text in own.items():
        if text not in OWN_FILTERS[name]:
            raise invalid({name: ["Must be one of: " + ", ".join(OWN_FILTERS[name]) + "."]})
    if "callback" in own:
        caller.require_user_key()
    if "since" in own:
        # A bar of the chart selects a part of the period.
        query.setdefault("createdAfter", chart.PERIODS[own["since"]].since)
    return Query(query, own, responses.selection(query)._replace(delivery=own.get("callback")))


def labels() -> list[str]:
    """The labels that the query string names, each once."""
    return list(dict.fromkeys(text.replace("\0", "\ufffd") for text in _args().get("label", ())))


def list_url(**changes: Any) -> str:
    """The first page of this list with other filters; None or an empty list removes one."""
    wanted = {name: value for name, value in (_args() | changes).items() if value}
    wanted.pop("cursor", None)
    return url_for("dashboard.tasks.list_all", **wanted)


def tab_url(tab: str) -> str:
    return list_url(**{**dict.fromkeys(OF_TABS), **TABS[tab]})


def is_tab(tab: str) -> bool:
    """Whether the list is that of this tab."""
    return {name: request.args[name] for name in OF_TABS if name in request.args} == TABS[tab]


def label_url(label: str) -> str:
    """This list with one more label."""
    return list_url(label=list(dict.fromkeys([*labels(), label])))


def url_without_label(label: str) -> str:
    return list_url(label=[other for other in labels() if other != label])


def kept() -> list[tuple[str, str]]:
    """The filters that the form does not have, and keeps."""
    pairs = request.args.items(multi=True)
    return [(name, text) for name, text in pairs if name not in (*IN_FORM, "cursor")]


def _args() -> dict[str, Any]:
    return request.args.to_dict(flat=False)


TEMPLATE_FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        is_tab,
        kept,
        label_url,
        labels,
        list_url,
        tab_url,
        url_without_label,
    )
}
