"""The list of tasks, the page of one task with its log, and its forms."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, flash, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from taskservice.auth import caller
from taskservice.dashboard import (
    chart,
    filters,
    formatting,
    question_forms,
    sessions,
    task_page,
    webhook_command,
)
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page, way_back
from taskservice.dashboard.shared_pages import shared
from taskservice.database.types import TaskRow
from taskservice.errors import Problem
from taskservice.services import agents, counts, lists, logs, reports, task_json
from taskservice.services import deliveries as delivery_service
from taskservice.services import tasks as task_service
from taskservice.terms import RUNNING
from taskservice.web import responses, waiting
from taskservice.web.request import TEXT, require_id

TOO_LATE = "The task had already ended."

tasks = Blueprint("tasks", __name__)

# From this number on the tabs show "1,000+".
MAX_COUNT = 1_000
# Maximum number of log lines in one response.
MAX_LINES = 1_000
# Longer lines are cut on the screen; the download has them whole.
MAX_LINE_LENGTH = 5_000


@tasks.get("/")
@shared
def list_all() -> AnyResponse:
    if not all(text for _, text in request.args.items(multi=True)):
        # A form sends its empty fields too; they make the URL longer.
        filled = [pair for pair in request.args.items(multi=True) if pair[1]]
        return redirect(f"{url_for('dashboard.tasks.list_all')}?{urlencode(filled)}", 303)
    query, own, selection = filters.load()
    found = responses.page(caller, selection, query)
    rows = lists.summaries(caller, found.positions)
    return page(
        "tasks.html",
        rows=rows,
        asking=question_forms.asking(caller),
        found=found,
        states=delivery_service.states(rows) if caller.agent_id is None else {},
        log_ends=logs.ends([row.id for row in rows if formatting.is_generic(row)]),
        agent_ids=_agent_choices(),
        tabs=filters.TABS,
        counts=counts.by_state(caller, selection, MAX_COUNT),
        max_count=MAX_COUNT,
        chart=chart.count(caller, selection, own.get("since", chart.DEFAULT)),
        chart_height=chart.HEIGHT,
        periods=chart.PERIODS,
        bar_start=chart.bar_start,
        **filters.TEMPLATE_FUNCTIONS,
    )


@tasks.get("/tasks", strict_slashes=False)
def redirect_to_list() -> AnyResponse:
    return redirect_to("tasks.list_all")


@tasks.get("/tasks/<task_id>")
@shared
def show(task_id: str) -> Response:
    task = _task(task_id)
    deliveries = _deliveries(task)
    return page("task.html", task=task, deliveries=deliveries, **task_page.values(caller, task))


@tasks.get("/tasks/<task_id>/lines")
def lines(task_id: str) -> Response:
    """At most `limit` lines of the log after line number `after`, with their times, as JSON."""
    after, limit = (request.args.get(name, 0, type=int) for name in ("after", "limit"))
    found = logs.lines_after(_task(task_id), max(after, 0), min(max(limit, 0), MAX_LINES))
    texts = [line.text[: MAX_LINE_LENGTH + 1] for line in found]
    return responses.json({"lines": texts, "times": [line.at for line in found]})


@tasks.get("/tasks/<task_id>/events")
def events(task_id: str) -> Response:
    """The task and its lines after line number `after`, live: Server-Sent Events."""
    # A browser that reconnects sends the number of its last line.
    after = request.headers.get("Last-Event-ID", request.args.get("after", 0, int), int)
    events = waiting.follow(caller, _task(task_id).id, max(after, 0))
    return waiting.respond(events, sessions.is_active, has_times=True)


@tasks.get("/tasks/<task_id>/log.txt")
def download(task_id: str) -> Response:
    task = _task(task_id)
    headers = {"Content-Disposition": f'attachment; filename="{task.id}.log.txt"'}
    lines = task_json.log_text(task, 0, None)
    return responses.stream(lines, headers=headers, media_type=TEXT)


@tasks.get("/tasks/<task_id>/cancel")
def ask_to_cancel(task_id: str) -> AnyResponse:
    caller.require_user_key()
    task = _task(task_id)
    if task.status == RUNNING:
        return page("cancel.html", task=task)
    flash(TOO_LATE)
    return redirect_to("tasks.show", task_id=task_id)


@tasks.post("/tasks/<task_id>/cancel")
def cancel(task_id: str) -> AnyResponse:
    caller.require_user_key()
    flash(_cancel(task_id))
    return redirect_to_page(way_back(), "tasks.show", task_id=task_id)


@tasks.get("/tasks/<task_id>/delete")
def ask_to_delete(task_id: str) -> Response:
    caller.require_user_key()
    task = _task(task_id)
    return page("delete.html", task=task, deliveries=_deliveries(task))


@tasks.post("/tasks/<task_id>/delete")
def delete(task_id: str) -> AnyResponse:
    caller.require_user_key()
    task = task_service.delete(caller, require_id("task", task_id))
    flash(f"Deleted “{task.name}”.")
    return redirect_to_page(way_back(), "tasks.list_all")


@tasks.post("/tasks/<task_id>/redeliver")
def redeliver(task_id: str) -> AnyResponse:
    caller.require_user_key()
    delivery_service.redeliver(caller, require_id("task", task_id))
    flash("The webhook is being sent again, with the same id.")
    return redirect_to("tasks.show", task_id=task_id, _anchor="callback")


@tasks.get("/tasks/<task_id>/webhook.sh")
def webhook(task_id: str) -> Response:
    caller.require_user_key()
    return Response(webhook_command.curl(caller, _task(task_id)), mimetype=TEXT)


def _agent_choices() -> Sequence[str]:
    """The agents to filter by, and the one that is chosen."""
    ids, chosen = agents.choices(caller), request.args.get("agentId")
    return [*ids, chosen] if chosen and chosen not in ids else ids


def _task(task_id: str) -> TaskRow:
    return task_service.get(caller, require_id("task", task_id))


def _cancel(task_id: str) -> str:
    """Cancel a task; returns the message for its page, also when it had already ended."""
    try:
        _, callback_status = reports.cancel(caller, require_id("task", task_id))
    except Problem as problem:
        if problem.status != 409:
            raise
        return TOO_LATE
    suffix = "" if callback_status == "none" else f" Its callback: {callback_status}."
    return f"The task is cancelled.{suffix}"


def _deliveries(task: TaskRow) -> list[Any]:
    """The deliveries of the task; an agent key sees none."""
    return delivery_service.list_of_task(caller, task.id) if caller.agent_id is None else []
