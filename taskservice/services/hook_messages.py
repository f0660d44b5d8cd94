"""What a hook is told of events: a signed webhook for a program, or one message for people."""

from collections.abc import Mapping, Sequence
from secrets import token_urlsafe
from typing import Any, NamedTuple

from flask import current_app
from sqlalchemy import ColumnElement, func, select

from taskservice.database import clock
from taskservice.database.models import Delivery, Event, Hook
from taskservice.database.transactions import reading
from taskservice.database.types import AnyRow
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import question_schema
from taskservice.schemas.users import agent_of_task_schema
from taskservice.services import agents, links, questions, subscriptions, task_json, tasks
from taskservice.services.deliveries import Leased, LeaseLost
from taskservice.services.events import WITH_TASKS
from taskservice.terms import AGENT_BROKEN, FAILED, MCP, OPEN, PENDING, STANDARD
from taskservice.webhooks import messages
from taskservice.webhooks.messages import Notice

# Events whose agents one message counts; of the others it tells the number.
MAX_DESCRIBED = 200


class HookMessage(NamedTuple):
    """What is sent to the target of a hook; a webhook for a program is signed later."""

    hook: AnyRow
    id: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    # Of a mail, of which the body is the text.
    subject: str = ""
    is_last_attempt: bool = False


def of_delivery(leased: Leased) -> HookMessage:
    """The message of a delivery that is sent now. Raises LeaseLost if it was deleted."""
    is_told: ColumnElement[bool] = Event.id == leased.event_id
    if leased.is_shared:
        of_message = select(Delivery.event_id).where(
            Delivery.hook_id == leased.hook_id,
            Delivery.state == PENDING,
            Delivery.lease == leased.lease,
        )
        is_told = Event.id.in_(of_message)
    with reading() as connection:
        hook = connection.execute(select(Hook.__table__).where(Hook.id == leased.hook_id)).first()
        events = connection.execute(WITH_TASKS.where(is_told).limit(MAX_DESCRIBED)).all()
        count = connection.scalar(select(func.count()).select_from(Event).where(is_told)) or 0
    if hook is None or not events:
        raise LeaseLost("The hook or the task was deleted.", FAILED)
    if hook.format == MCP:
        [event] = events
        is_last = (
            event.name == subscriptions.TERMINATED
            and leased.attempt_count + 1 >= subscriptions.MAX_TERMINATIONS
        )
        return _for_mcp(hook, *subscriptions.message(hook, event), is_last)
    if hook.format == STANDARD:
        [event] = events
        return _webhook(hook, leased.id, event.name, event.at, _data(hook, event))
    return _for_people(hook, leased.id, [_notice(hook, event) for event in events], count)


def sample(hook: AnyRow) -> HookMessage:
    """A message that shows how this hook is told of a broken agent."""
    now = clock.now()
    if hook.format == MCP:
        return _for_mcp(hook, *subscriptions.challenge(token_urlsafe(32)))
    if hook.format == STANDARD:
        data = {"agent": {"id": "sample", "name": "Sample"}, "url": page("")}
        return _webhook(hook, clock.new_id(), AGENT_BROKEN, now, data)
    notice = Notice(
        AGENT_BROKEN, now, "Sample", reason="This is a test: no agent broke.", url=page("")
    )
    return _for_people(hook, clock.new_id(), [notice], 1)


def page(path: str) -> str | None:
    """The address of a page of the dashboard; None if the service does not know its own."""
    public_url: str = current_app.config["PUBLIC_URL"]
    return f"{public_url.rstrip('/')}/{path}" if public_url else None


def _webhook(
    hook: AnyRow, webhook_id: str, name: str, at: str, data: dict[str, Any]
) -> HookMessage:
    body = strict_json.dumps({"type": name, "timestamp": at, "data": data})
    return HookMessage(hook, webhook_id, hook.target, body, {})


def _for_mcp(hook: AnyRow, webhook_id: str, body: bytes, is_last: bool = False) -> HookMessage:
    headers = {subscriptions.SUBSCRIPTION_HEADER: hook.subscription}
    return HookMessage(hook, webhook_id, hook.target, body, headers, is_last_attempt=is_last)


def _data(hook: AnyRow, event: AnyRow) -> dict[str, Any]:
    """The data of an event as a program gets it."""
    data: dict[str, Any] = {}
    if event.name.startswith("agent."):
        agent = agents.by_id(event.user_id, [event.agent_id]).get(event.agent_id)
        data["agent"] = agent and agent_of_task_schema.dump(agent)
    if event.task_id is not None:
        task = tasks.find_by_id(event.task_id)
        if task is None:
            raise LeaseLost("The task was deleted.", FAILED)
        data["task"] = strict_json.fragment(task_json.webhook_body(task))
    if event.question_id is not None:
        question = questions.find_by_id(event.question_id)
        data["question"] = question_schema.dump(question)
        if hook.answer_links:
            data["answerUrl"] = _answer_url(event)
    details: dict[str, Any] = strict_json.loads(event.details.encode())
    return data | details | {"url": _url(event)}


def _url(event: AnyRow) -> str | None:
    return page(f"tasks/{event.task_id}" if event.task_id else f"agents/{event.agent_id}")


def _answer_url(event: AnyRow) -> str | None:
    return page(f"answer/{links.token_of(event.question_id)}")


def _notice(hook: AnyRow, event: AnyRow) -> Notice:
    """The event as a person is told of it."""
    details = strict_json.loads(event.details.encode())
    seconds = None
    if event.claimed_at and event.finished_at:
        seconds = max(0.0, clock.seconds_between(event.claimed_at, event.finished_at))
    answer_url, choices = None, []
    if hook.answer_links and event.question_state == OPEN and (answer_url := _answer_url(event)):
        choices = links.choices(strict_json.loads(event.question_schema.encode()))
    return Notice(
        event.name,
        event.at,
        event.agent_name or event.agent_id,
        task=event.task_name,
        reason=event.question or event.error_message,
        seconds=seconds,
        since=details.get("brokenSince") or details.get("dueAt"),
        on_time=details.get("onTime"),
        url=_url(event),
        answer_url=answer_url,
        choices=choices,
        task_id=event.task_id,
    )


def _for_people(
    hook: AnyRow, message_id: str, notices: Sequence[Notice], count: int
) -> HookMessage:
    made = messages.FORMATS[hook.format](hook.target, notices, count)
    headers = {"authorization": f"Bearer {hook.token}"} if hook.token else {}
    return HookMessage(hook, message_id, made.url, made.body, headers, made.subject)
