"""The Inbox: open questions with their forms, and problems with agents, hooks and the backup."""

from flask import Blueprint, Response

from taskservice.auth import caller
from taskservice.dashboard import questions
from taskservice.dashboard.pages import attention_items, page
from taskservice.services import agents, attention, hooks

blueprint = Blueprint("inbox", __name__)


@blueprint.get("/inbox", strict_slashes=False)
def show() -> Response:
    alarms = attention.by_agent(attention_items())
    return page(
        "inbox.html",
        asking=questions.asking(caller),
        alarms=alarms,
        agents=agents.by_id(caller.user_id, alarms),
        hooks=hooks.list_in_trouble(caller) if caller.agent_id is None else [],
    )
