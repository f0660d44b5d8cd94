"""The Inbox: open questions with their forms, agents in trouble, notifications, the backup."""

from flask import Blueprint, Response

from taskservice.auth import caller
from taskservice.dashboard import questions
from taskservice.dashboard.formatting import is_generic
from taskservice.dashboard.page_cache import shared
from taskservice.dashboard.pages import attention_items, page
from taskservice.services import agents, attention, hooks, lists, logs
from taskservice.services.lists import Position
from taskservice.terms import BROKEN

blueprint = Blueprint("inbox", __name__)

# The forms of later questions are in a fold.
SHOWN_QUESTIONS = 3


@blueprint.get("/inbox", strict_slashes=False)
@shared
def show() -> Response:
    alarms = attention.by_agent(attention_items())
    broken = [kinds[BROKEN][0] for kinds in alarms.values() if BROKEN in kinds]
    failures = [Position("", item["taskId"]) for item in broken if item["taskId"]]
    tasks = lists.summaries(caller, failures)
    return page(
        "inbox.html",
        asking=questions.asking(caller),
        shown_questions=SHOWN_QUESTIONS,
        alarms=alarms,
        agents=agents.by_id(caller.user_id, alarms),
        failures={task.id: task for task in tasks},
        hooks=hooks.list_in_trouble(caller) if caller.agent_id is None else [],
        log_ends=logs.ends([task.id for task in tasks if is_generic(task)]),
    )
