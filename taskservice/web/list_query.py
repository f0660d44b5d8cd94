"""Reads the query string of a list: which tasks, in which shape, and which page."""

from typing import Any, NamedTuple
from urllib.parse import urlencode

from flask import request

from taskservice.auth import Caller
from taskservice.schemas.requests import dump_cursor
from taskservice.services import lists
from taskservice.services.lists import Position, Selection
from taskservice.services.task_json import WHOLE, Shape
from taskservice.terms import SORTS


class Page(NamedTuple):
    """The positions of a page, and the query string of the next one, if there is one.

    `stopped` is where the search stopped before the page was full.
    """

    positions: list[Position]
    next: str | None
    stopped: Position | None = None


def shape(query: dict[str, Any]) -> Shape:
    if not query:
        return WHOLE
    return Shape(fields=query.get("fields", ()), expand=query.get("expand", ()))


def selection(query: dict[str, Any]) -> Selection:
    return Selection(
        status=query.get("status"),
        error_type=query.get("errorType"),
        is_claimed=query.get("claimed"),
        agent_id=query.get("agentId"),
        parent_id=query.get("parentId"),
        labels=query.get("label", ()),
        name_part=query.get("q"),
        created_after=query.get("createdAfter"),
        created_before=query.get("createdBefore"),
        finished_after=query.get("finishedAfter"),
        sort=query.get("sort", SORTS[0]),
    )


def page(caller: Caller, wanted: Selection, query: dict[str, Any]) -> Page:
    """The positions of the page of `limit` tasks after `cursor`."""
    limit = query["limit"]
    positions, reached = lists.page_positions(caller, wanted, after(query), limit)
    if reached is None:
        return Page(positions, None)
    is_cut = len(positions) < limit
    return Page(positions, _next(wanted, reached), reached if is_cut else None)


def after(query: dict[str, Any]) -> Position | None:
    """The position that the cursor names; None for the first page."""
    return Position(*query["cursor"][1:]) if "cursor" in query else None


def link(wanted: Selection, end: Position | None) -> dict[str, str]:
    """The `Link` header to the next page, which begins after `end`; none if that is None."""
    # Relative to the path of the request, so that it works behind any proxy and prefix.
    return {"Link": f'<?{_next(wanted, end)}>; rel="next"'} if end else {}


def _next(wanted: Selection, end: Position) -> str:
    given = [pair for pair in request.args.items(multi=True) if pair[0] != "cursor"]
    return urlencode([*given, ("cursor", dump_cursor(wanted.sort, *end))])
