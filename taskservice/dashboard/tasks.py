"""The task list, the task page for users and for links, and their forms."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from operator import eq
from typing import Any

from flask import Blueprint, Response, flash, request

from taskservice import error_codes, terms
from taskservice.auth import caller
from taskservice.dashboard import filters, formatting, questions, schema_form, sessions
from taskservice.dashboard.agents import start_form
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page, see_other, way_back
from taskservice.dashboard.schema_form import InputForm
from taskservice.database import clock
from taskservice.database.rows import AgentRow, TaskRow
from taskservice.errors import Problem
from taskservice.quantities import plural
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions, parse_id
from taskservice.schemas.requests import BulkSchema, RerunSchema
from taskservice.services import (
    agents,
    attention,
    links,
    lists,
    logs,
    neighbours,
    new_lines,
    reports,
    tasks,
)
from taskservice.services import deliveries as delivery_service
from taskservice.services.lists import Position, Selection, TaskList
from taskservice.services.task_json import log_text
from taskservice.services.tasks import Idempotency
from taskservice.web import responses, waiting
from taskservice.web.request import TEXT, require_link

MAX_CHILDREN = 50
# The width of the waterfall chart, in SVG units.
WIDTH = 1_000
# The time scale grows in steps of this length while a child runs, so that the page seldom changes.
STEP_SECONDS = 10
# Maximum number of differences between two tasks on a page, and of characters in a value.
MAX_DIFFERENCES = 50
MAX_VALUE = 200
# Maximum number of new lines that are shown; earlier new lines are collapsed. New lines at the end
# of the log are collapsed too, since the log above shows them.
SHOWN_LINES = 20
# Maximum number of known lines between two new lines at the end of the log.
MAX_KNOWN_BETWEEN = 3
# Maximum duration in seconds of a task whose expected end is shown.
LONGEST = 366 * 86_400


def _expected_end(agent: AgentRow, task: TaskRow) -> str | None:
    """The estimated end of a running task, from its progress or its agent's usual duration."""
    if task.status != terms.RUNNING or task.claimed_at is None:
        return None
    if open_questions(task.questions) or task.hanging_since:
        # It is unknown when a person will answer, or when the task will stop hanging.
        return None
    progress = float(task.progress or 0)
    if progress > 0:
        seconds = _seconds(task.claimed_at, task.updated_at) / progress
        return clock.moved(task.claimed_at, seconds) if seconds < LONGEST else None
    usual = agents.health(agent, agents.runs(agent))["medianSeconds"]
    return None if usual is None else clock.moved(task.claimed_at, usual)


def _waterfall(children: Sequence[TaskRow]) -> dict[str, Any] | None:
    """The waterfall chart of a task's first children: the start and the width of each bar."""
    if not children:
        return None
    shown = children[:MAX_CHILDREN]
    start = min(at for child in shown for at in (child.created_at, child.claimed_at) if at)
    ends = [_seconds(start, child.finished_at or clock.now()) for child in shown]
    if any(child.finished_at is None for child in shown):
        ends.append(max(ends) // STEP_SECONDS * STEP_SECONDS + STEP_SECONDS)
    scale = WIDTH / max(*ends, 0.001)
    bars = []
    for child in shown:
        x = round(_seconds(start, child.claimed_at or child.created_at) * scale)
        # The bars of running tasks end at the right edge of the chart, which is the current time.
        end = round(_seconds(start, child.finished_at) * scale) if child.finished_at else WIDTH
        # The bar of a short task has a minimum width, so that it is visible.
        bars.append({"task": child, "x": min(x, WIDTH - 4), "width": max(4, end - x)})
    return {"bars": bars, "has_more": len(children) > len(shown)}


def _seconds(since: str, until: str) -> float:
    return max(0.0, clock.seconds_between(since, until))


def _differences(task: TaskRow, good: TaskRow) -> list[tuple[str, ...]]:
    """The differences between a task and a good run: (part, key, value, value in the good run).

    A value is JSON text, or empty if the key is missing.
    """
    differences = []
    for part in ("Labels", "Input", "Output"):
        of_task, of_good = (_values(getattr(run, part.lower())) for run in (task, good))
        # A failed run often lacks parts of its output, so only keys that both outputs contain are
        # compared.
        is_output = part == "Output"
        keys = [key for key in of_task if key in of_good] if is_output else of_task | of_good
        for key in keys:
            pair = of_task.get(key, ""), of_good.get(key, "")
            if pair[0] != pair[1]:
                # Long values are shortened to the text around the first difference.
                start = max(0, sum(takewhile(bool, map(eq, *pair))) - MAX_VALUE // 2)
                differences.append((part, key, *(_shortened(text, start) for text in pair)))
    return differences


def _shortened(text: str, start: int) -> str:
    """The text or, if it is too long, its part from `start` on."""
    if len(text) <= MAX_VALUE:
        return text
    end = start + MAX_VALUE
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _values(text: str) -> dict[str, str]:
    """The members of the JSON object in `text`; each value is JSON text."""
    loaded = strict_json.loads(text.encode())
    return {key: strict_json.canonical(value).decode() for key, value in loaded.items()}


blueprint = Blueprint("tasks", __name__)
# The pages that need a user key with full access.
managed = Blueprint("managed", __name__)
managed.before_request(lambda: caller.require_full_user_key())

rerun_schema, bulk_schema = RerunSchema(), BulkSchema()
TOO_LATE = "The task has already ended."

# Tabs count tasks up to this number, and then show "1,000+".
MAX_COUNT = 1_000
# Maximum number of log lines in one response.
MAX_LINES = 1_000
# Maximum number of characters of a line on the page; the download contains the whole line.
MAX_LINE_LENGTH = 5_000


@blueprint.get("/")
def list_all() -> Response:
    if complete := filters.without_empty_fields():
        return complete
    query, selection = filters.load()
    if url := filters.destination():
        return see_other(url)
    is_folded = filters.is_folded(selection)
    listed = selection._replace(is_top_level=True) if is_folded else selection
    positions, following, stopped = _found(listed, query)
    agent_ids, chosen = agents.ids(caller, agents.MAX_CHOICES), request.args.get("agentId")
    rows = lists.summaries(caller, positions)
    if is_folded:
        rows = list(_with_children(rows, filters.opened()))
    counts, all_are_counted = lists.count_by_state(caller, selection, MAX_COUNT)
    return page(
        "tasks.html",
        rows=rows,
        is_folded=is_folded,
        children=lists.children_of(rows) if is_folded else {},
        max_counted_children=lists.MAX_CHILDREN,
        max_shown_children=MAX_CHILDREN,
        following=following,
        stopped=stopped,
        states=delivery_service.states(rows) if caller.agent_id is None else {},
        log_ends=logs.ends([row.id for row in rows if formatting.is_generic(row)]),
        agent_ids=[*agent_ids, chosen] if chosen and chosen not in agent_ids else agent_ids,
        filters=filters,
        counts=counts,
        all_are_counted=all_are_counted,
        max_count=MAX_COUNT,
    )


def _with_children(rows: Sequence[TaskRow], opened: Sequence[str]) -> Iterator[TaskRow]:
    """The tasks in `rows`; a task whose ID is in `opened` is followed by its first children.

    The children whose IDs are in `opened` are followed by their own children, and so on.
    """
    for row in rows:
        yield row
        if row.id in opened:
            children = tasks.children(caller, row.id, MAX_CHILDREN)
            positions = [Position(child.created_at, child.id) for child in children]
            yield from _with_children(lists.summaries(caller, positions), opened)


def _found(
    selection: Selection, query: dict[str, Any]
) -> tuple[list[Position], str | None, Position | None]:
    """The positions of a page, the query of the next page, and the position at which the search
    stopped if the page is not full.
    """
    tasks, limit = TaskList(caller, selection), query["limit"]
    if request.args.get("sort") == filters.LONGEST_FIRST:
        positions, end = tasks.longest(limit)
        return positions, None, end
    positions, end = tasks.positions(responses.after(query), limit)
    following = responses.next_query(selection, end) if end else None
    return positions, following, end if len(positions) < limit else None


@blueprint.get("/tasks", strict_slashes=False)
def redirect_to_list() -> Response:
    return redirect_to("tasks.list_all")


@blueprint.get("/tasks/<task_id>")
def show(task_id: str) -> Response:
    task = tasks.get(caller, task_id)
    agent = agents.get(caller, task.agent_id)
    previous, following = neighbours.runs_beside(task)
    has_failed = task.error_type in (terms.FAILED, terms.TIMEOUT)
    is_waiting = formatting.state_of(task) == lists.WAITING
    return page(
        "task.html",
        task=task,
        # An agent key has no access to deliveries.
        deliveries=[] if caller.agent_id else delivery_service.list_of_task(caller, task.id),
        parent=tasks.find(caller, task.parent_id) if task.parent_id else None,
        original=tasks.find(caller, task.rerun_of) if task.rerun_of else None,
        again=tasks.newest_rerun(caller, task.id),
        previous=previous,
        following=following,
        good=neighbours.last_good_run(task) if has_failed else None,
        log_end=_log_end(task),
        children=_waterfall(tasks.children(caller, task.id, MAX_CHILDREN + 1)),
        questions=questions.forms(task),
        ended_questions=questions.ended(task.id),
        no_worker=attention.missing_worker(agent) if is_waiting else None,
        expected=_expected_end(agent, task),
    )


def _log_end(task: TaskRow) -> str:
    """The end of a failed task's log, which often contains the reason; empty for any other task."""
    return logs.ends([task.id]).get(task.id, "") if task.error_type == terms.FAILED else ""


@blueprint.get("/tasks/<task_id>/lines")
def lines(task_id: str) -> Response:
    """At most `limit` lines of the log after line number `after`, with their times, as JSON."""
    after, limit = (max(request.args.get(name, 0, type=int), 0) for name in ("after", "limit"))
    lines = logs.lines_after(tasks.get(caller, task_id), after, min(limit, MAX_LINES))
    texts = [text[: MAX_LINE_LENGTH + 1] for text, _ in lines]
    return responses.json({"lines": texts, "times": [at for _, at in lines]})


@blueprint.get("/tasks/<task_id>/new-lines")
def show_new_lines(task_id: str) -> Response:
    """The new lines of a failed task, which page.js inserts into the task page."""
    task = tasks.get(caller, task_id)
    nearest = neighbours.last_good_run(task)
    if nearest is None:
        return redirect_to("tasks.show", task_id=task.id)
    good = tasks.get(caller, nearest.id)
    try:
        compared, status = new_lines.lines_not_in(good, task), 200
    except Problem as problem:
        if problem.status != 503:
            raise
        compared, status = None, 503
    sizes = {"shown": SHOWN_LINES, "max_differences": MAX_DIFFERENCES}
    values = {
        "task": task,
        "good": good,
        "found": compared,
        "count_before_end": _count_before_end(compared["lines"], task) if compared else 0,
        "differences": _differences(task, good),
    }
    return page("new_lines.html", status, **values, **sizes)


def _count_before_end(new: list[dict[str, Any]], task: TaskRow) -> int:
    """The number of new lines before the new lines at the end of the log."""
    following = task.log_count + 1
    for count in range(len(new), 0, -1):
        number = new[count - 1]["line"]
        if following - number > MAX_KNOWN_BETWEEN + 1:
            return count
        following = number
    return 0


@blueprint.get("/tasks/<task_id>/events")
def events(task_id: str) -> Response:
    """A stream of the task's changes, and of its lines after line number `after`."""
    # A browser that reconnects sends the number of the last line that it received.
    after = request.headers.get("Last-Event-ID", request.args.get("after", 0, int), int)
    task = tasks.get(caller, task_id)
    # Viewers of a link have no session.
    is_allowed = (lambda: True) if caller.task_id else sessions.is_session_unexpired
    return waiting.follow(task.id, max(after, 0), is_allowed, has_times=True)


@blueprint.get("/tasks/<task_id>/log.txt")
def download(task_id: str) -> Response:
    task = tasks.get(caller, task_id)
    headers = {"Content-Disposition": f'attachment; filename="{task.id}.log.txt"'}
    return responses.stream(log_text(task, 0, None), headers=headers, media_type=TEXT)


@managed.route("/tasks/<task_id>/cancel", methods=["GET", "POST"])
def cancel(task_id: str) -> Response:
    if request.method == "POST":
        try:
            _, callback_status = reports.cancel(caller, task_id)
            suffix = "" if callback_status == "none" else f" Webhook: {callback_status}."
            flash(f"The task was cancelled.{suffix}")
        except Problem as problem:
            if problem.status != 409:
                raise
            flash(TOO_LATE)
        return redirect_to_page(way_back(), "tasks.show", task_id=task_id)
    task = tasks.get(caller, task_id)
    if task.status == terms.RUNNING:
        return page("cancel.html", task=task)
    return redirect_to("tasks.show", TOO_LATE, task_id=task_id)


@managed.route("/tasks/<task_id>/delete", methods=["GET", "POST"])
def delete(task_id: str) -> Response:
    if request.method == "POST":
        task = tasks.delete(caller, task_id)
        flash(f"Deleted “{task.name}”.")
        return redirect_to_page(way_back(), "tasks.list_all")
    task = tasks.get(caller, task_id)
    return page("delete.html", task=task, deliveries=delivery_service.list_of_task(caller, task.id))


@managed.post("/tasks/<task_id>/redeliver")
def redeliver(task_id: str) -> Response:
    delivery_service.redeliver(caller, task_id)
    message = "The webhook is being sent again, with the same ID."
    return redirect_to("tasks.show", message, task_id=task_id, _anchor="callback")


@managed.route("/tasks/<task_id>/links", methods=["GET", "POST"])
def show_links(task_id: str) -> Response:
    """Show the links, or create a link. A POST is not redirected, since only its response shows the
    URL.
    """
    task, status, url = tasks.get(caller, task_id), 200, ""
    if request.method == "POST":
        days = min(max(request.form.get("days", terms.LINK_DAYS, int), 0), terms.MAX_LINK_DAYS)
        link = links.create(caller, task_id, clock.now(days * 86_400))
        status, url = 201, responses.page_url(f"shared/{link.token}")
    return page("links.html", status, task=task, links=links.list_all(caller, task_id), url=url)


@managed.post("/tasks/<task_id>/links/<link_id>/revoke")
def revoke_link(task_id: str, link_id: str) -> Response:
    links.revoke(caller, task_id, link_id)
    message = "Revoked. Pages that show the task by this link end within seconds."
    return redirect_to("managed.show_links", message, task_id=task_id)


# The page that a link to a task opens.

public = Blueprint("shared", __name__, url_prefix="/shared")
public.before_request(require_link)


# `path` matches slashes too, so that a link with appended text gets the page for invalid links.
@public.get("/<path:token>")
def show_by_link(task_id: str) -> Response:
    task = tasks.get(caller, task_id)
    return page(
        "task.html",
        task=task,
        is_shared=True,
        questions=questions.forms(task),
        log_end=_log_end(task),
    )


public.get("/<token>/live")(events)
public.get("/<token>/lines")(lines)
public.get("/<token>/log.txt")(download)


@blueprint.route("/tasks/<task_id>/rerun", methods=["GET", "POST"])
def rerun(task_id: str) -> Response:
    caller.require_full_access()
    task = tasks.get(caller, task_id)
    agent = agents.get(caller, task.agent_id)
    return start_form(
        "rerun.html",
        agent,
        schema_form.begun(agent.input_schema, task.input, "json" in request.args),
        partial(_rerun, task),
        task=task,
        again=tasks.newest_rerun(caller, task.id),
        labels=request.form.get("labels", "\n".join(_label_lines(task))),
    )


def _rerun(task: TaskRow, input_form: InputForm) -> Response:
    """Start the rerun; submitting the same form again starts no second rerun. Raises 422."""
    value, before = input_form.value(), strict_json.loads(task.input.encode())
    is_same = strict_json.canonical(value) == strict_json.canonical(before)
    body = {} if is_same else {"input": value}
    typed = request.form.get("labels")
    if typed is not None and schema_form.lines_of(typed) != _label_lines(task):
        body["labels"] = schema_form.labels(typed)
    fields = rerun_schema.load(body)
    submission_id = request.form.get("submission_id") or clock.new_id()
    submission = submission_id.encode() + strict_json.dumps([value, body])
    key = hashlib.sha256(submission).hexdigest()
    again, _ = tasks.rerun(caller, task.id, fields, Idempotency.of(key, body, task.id))
    return redirect_to("tasks.show", f"Started a rerun of “{again.name}”.", task_id=again.id)


def _label_lines(task: TaskRow) -> list[str]:
    """The lines of the labels in the form; a value with line breaks becomes several lines."""
    pairs = strict_json.loads(task.labels.encode()).items()
    return schema_form.lines_of("\n".join(f"{key}={value}" for key, value in pairs))


# The page to confirm an action on several tasks of the list.

PARTICIPLES = {terms.CANCEL: "cancelled", terms.DELETE: "deleted", terms.RERUN: "started again"}


@blueprint.post("/tasks/selected")
def change_selected() -> Response:
    """Apply the action to the tasks in `ids`. Without `ids`, show a page that asks for
    confirmation, with the IDs of the selected tasks in its form.
    """
    caller.require_user_key()
    back = "/?" + request.query_string.decode(errors="replace")
    if "ids" not in request.form:
        return _confirm(back)
    fields = {"action": request.form.get("action"), "taskIds": request.form["ids"].split()}
    change = bulk_schema.load(fields)
    key = request.form.get("submission_id") or None
    result = reports.change_many(caller, change["action"], change["taskIds"], key)
    flash(f"{plural(result['done'], 'task')} {PARTICIPLES[change['action']]}.")
    for code, count in Counter(refused["code"] for refused in result["refused"]).items():
        flash(f"{plural(count, 'task')} not changed: {error_codes.CODES[code].meaning}")
    return redirect_to_page(back, "tasks.list_all")


def _confirm(back: str) -> Response:
    _, selection = filters.load()
    action, has_more = request.form.get("action", ""), False
    if "all" in request.form:
        # Select all matching tasks that the action can change.
        if action == terms.CANCEL and selection.status is None:
            selection = selection._replace(status=terms.RUNNING)
        positions, end = TaskList(caller, selection).positions(None, terms.MAX_LIMIT)
        has_more = end is not None
    else:
        # The value of the checkbox for a whole page is the IDs of all tasks on the page.
        ids = map(parse_id, " ".join(request.form.getlist("taskId")).split())
        chosen = list(dict.fromkeys(task_id for task_id in ids if task_id))
        positions = [Position("", task_id) for task_id in chosen[: terms.MAX_LIMIT]]
    rows = lists.summaries(caller, positions)
    if action == terms.CANCEL:
        rows = [row for row in rows if row.status == terms.RUNNING]
    if not rows or action not in PARTICIPLES:
        flash("Nothing is selected." if not positions else "No selected task is running.")
        return redirect_to_page(back, "tasks.list_all")
    return page(
        "bulk.html",
        action=action,
        rows=rows,
        have_children=bool(lists.children_of(rows)),
        agents=Counter(row.agent_id for row in rows).most_common(),
        since=min(row.created_at for row in rows),
        until=max(row.created_at for row in rows),
        has_more=has_more,
        back=back,
        new_id=clock.new_id(),
    )
