"""The page that says which tasks of a list are cancelled, deleted or run again, and does it."""

from collections import Counter

from flask import Blueprint, flash, request
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard import filters
from taskservice.dashboard.formatting import plural
from taskservice.dashboard.pages import page, redirect_to_page
from taskservice.database import clock
from taskservice.schemas.fields import parse_id
from taskservice.schemas.requests import BulkSchema
from taskservice.services import bulk, lists
from taskservice.services.lists import Position, Selection
from taskservice.terms import CANCEL, CODES, DELETE, MAX_LIMIT, RERUN, RUNNING
from taskservice.web import responses

blueprint = Blueprint("bulk", __name__)

bulk_schema = BulkSchema()
PARTICIPLES = {CANCEL: "cancelled", DELETE: "deleted", RERUN: "started again"}


@blueprint.post("/tasks/selected")
def change() -> AnyResponse:
    """Without `ids`, the page that says what is selected; its form has the ids of these tasks."""
    caller.require_user_key()
    back = "/?" + request.query_string.decode(errors="replace")
    if "ids" not in request.form:
        return _confirm(back)
    fields = {"action": request.form.get("action"), "taskIds": request.form["ids"].split()}
    wanted = bulk_schema.load(fields)
    key = request.form.get("submission_id") or None
    result = bulk.run(caller, wanted["action"], wanted["taskIds"], key)
    flash(f"{plural(result['done'], 'task')} {PARTICIPLES[wanted['action']]}.")
    for code, count in Counter(refused["code"] for refused in result["refused"]).items():
        flash(f"{plural(count, 'task')} left as before: {CODES[code].meaning}")
    return redirect_to_page(back, "tasks.list_all")


def _confirm(back: str) -> AnyResponse:
    _, _, selection = filters.load()
    action, has_more = request.form.get("action", ""), False
    if "all" in request.form:
        wanted, has_more = _first(selection, action)
    else:
        ids = map(parse_id, request.form.getlist("taskId")[:MAX_LIMIT])
        wanted = [Position("", task_id) for task_id in ids if task_id]
    rows = lists.summaries(caller, wanted)
    if action == CANCEL:
        rows = [row for row in rows if row.status == RUNNING]
    if not rows or action not in PARTICIPLES:
        flash("Nothing is selected." if not wanted else "No selected task is running.")
        return redirect_to_page(back, "tasks.list_all")
    return page(
        "bulk.html",
        action=action,
        rows=rows,
        agents=Counter(row.agent_id for row in rows).most_common(),
        since=min(row.created_at for row in rows),
        until=max(row.created_at for row in rows),
        has_more=has_more,
        back=back,
        new_id=clock.new_id(),
    )


def _first(selection: Selection, action: str) -> tuple[list[Position], bool]:
    """The first tasks of a list that the action can change, and whether there may be more."""
    if action == CANCEL and selection.status is None:
        selection = selection._replace(status=RUNNING)
    found = responses.page(caller, selection, {"limit": MAX_LIMIT})
    return found.positions, found.next is not None
