"""Sends webhooks and emails, in the request that ended a task or in the delivery loop."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from flask import Flask, current_app
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from taskservice import reasons, resources
from taskservice.database import clock
from taskservice.database.models import Delivery, Event, Hook
from taskservice.database.rows import HookRow, TaskRow
from taskservice.database.transactions import end_shared_reading, read_one, reading
from taskservice.database.types import AnyRow
from taskservice.errors import require
from taskservice.event_kinds import AGENT_BROKEN, KINDS, SAMPLE_TEXT, TASK_HANGS
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import question_schema
from taskservice.schemas.users import agent_of_task_schema
from taskservice.services import (
    agents,
    deliveries,
    links,
    logs,
    questions,
    samples,
    task_json,
    tasks,
    users,
)
from taskservice.services.events import WITH_TASKS
from taskservice.terms import FAILED, MAIL, OPEN, PENDING, STANDARD
from taskservice.webhooks import messages
from taskservice.webhooks.circuit_breaker import CircuitBreaker
from taskservice.webhooks.destinations import mail_address
from taskservice.webhooks.interrupt import Interrupt, Interrupted
from taskservice.webhooks.messages import Message, Notice
from taskservice.webhooks.outcome import Outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A first attempt checks every STOP_CHECK_SECONDS whether the process is stopping. If so, the
# receiver has STOP_SECONDS to respond. Then the attempt is interrupted, and has INTERRUPT_SECONDS
# to end.
STOP_CHECK_SECONDS = 0.1
STOP_SECONDS = 0.5
INTERRUPT_SECONDS = 0.2


class FirstAttemptSlots:
    """Limits how many request threads wait for receivers at the same time.

    Only a user who holds no slot can get the last free slot.
    """

    def __init__(self, count: int) -> None:
        self._lock = Lock()
        self._count = count
        self._held: list[str] = []  # the user ID for each slot in use

    @contextmanager
    def acquire(self, user_id: str) -> Iterator[bool]:
        """Release the database connection, and hold a slot during the block.

        Yields False if no slot is free.
        """
        end_shared_reading()
        with self._lock:
            is_acquired = len(self._held) + (user_id in self._held) < self._count
            if is_acquired:
                self._held.append(user_id)
        try:
            yield is_acquired
        finally:
            if is_acquired:
                with self._lock:
                    self._held.remove(user_id)


def init_app(app: Flask) -> None:
    resources.provide(app, deliveries.DueDeliveries())
    resources.provide(app, FirstAttemptSlots(max(1, app.config["THREADS"] // 4)))
    resources.provide(app, CircuitBreaker())


def first_attempt(leased: deliveries.Leased | None) -> str:
    """Post a webhook in the request that ended its task. No transaction may be open.

    Returns the `Callback-Status`. The delivery loop makes the attempt later if no slot is free, if
    the last attempts to reach the receiver failed, or if the process stops. Never raises, since the
    task has already ended.
    """
    if leased is None:
        return "none"
    with resources.find(FirstAttemptSlots).acquire(leased.user_id) as is_acquired:
        if is_acquired and not resources.find(CircuitBreaker).is_open(leased.receiver):
            state = until_stop(partial(attempt_delivery, leased))
            if state is not None:
                return state
    return _leave_to_loop(leased)


def until_stop(attempt: Callable[[Interrupt], T]) -> T | None:
    """The result of `attempt`, or None if the process stops first; then nothing more is sent."""
    interrupt = Interrupt()
    # A DNS lookup or a connection attempt cannot be interrupted, only abandoned. Therefore the
    # delivery attempt runs in a separate thread, with the context of this request.
    run = partial(copy_context().run, attempt, interrupt)
    try:
        result = resources.start_future("first attempt", run)
    except RuntimeError:
        # No thread can be started, so this thread makes the attempt.
        return attempt(interrupt)
    while not resources.stopping.is_set() and not wait([result], STOP_CHECK_SECONDS).done:
        pass
    if not wait([result], STOP_SECONDS).done:
        interrupt.set()
        wait([result], INTERRUPT_SECONDS)
    is_over = result.done() and not isinstance(result.exception(), Interrupted)
    return result.result() if is_over else None


def attempt_delivery(leased: deliveries.Leased, interrupt: Interrupt) -> str:
    """Send a delivery once and record the outcome; returns the delivery's state.

    Nothing is sent if the lease has been lost by the time the receiver accepts the connection.
    An interrupted attempt does not count, and its lease is released. Never raises: if the database
    is unavailable, the attempt is repeated when the lease has expired.
    """
    try:
        started = clock.now()
        outcome = _send(leased, interrupt)
        logger.info("Delivery %s to %s: %s", leased.id, leased.destination, outcome.message)
        is_well = outcome.status_code is not None and (outcome.delivered or outcome.permanent)
        # A URL that the settings do not allow is not a failure of the receiver.
        if is_well or not outcome.permanent:
            resources.find(CircuitBreaker).record(leased.receiver, has_failed=not is_well)
        return deliveries.record_attempt(leased, started, outcome)
    except Interrupted:
        return _leave_to_loop(leased)
    except deliveries.LeaseLost as lost:
        reason, state = lost.args
        logger.info("Delivery %s to %s was not posted: %s", leased.id, leased.destination, reason)
        return str(state)
    except Exception:
        logger.exception("Delivery %s remains pending", leased.id)
        return PENDING


def _send(leased: deliveries.Leased, interrupt: Interrupt) -> Outcome:
    """Send a delivery once; returns the outcome.

    An unexpected error counts as a failed attempt; otherwise the delivery would be retried forever.
    """
    try:
        if leased.hook_id is None:
            message = _webhook_of(_task(leased.task_id), leased)
        else:
            message = _message_to_hook(leased)
        outcome = send(message, interrupt, partial(deliveries.require_lease, leased))
        return outcome._replace(text=message.text)
    except (SQLAlchemyError, Interrupted, deliveries.LeaseLost):
        raise  # the receiver did not cause these errors
    except Exception:
        logger.exception("Delivery %s to %s could not be posted", leased.id, leased.destination)
        return Outcome("The service could not post the webhook; see the service's log.")


def send(
    message: Message, interrupt: Interrupt | None = None, confirm: Callable[[], None] = lambda: None
) -> Outcome:
    """Send a message with the service's settings; raises what `transport.post_once` raises."""
    # `smtp` and `transport` are imported when they are needed, since the import of `requests` takes
    # a tenth of the startup time.
    hook, config = message.hook, current_app.config
    attempt: dict[str, Any] = {"seconds": config["CALLBACK_TIMEOUT"]}
    attempt |= {"interrupt": interrupt, "confirm": confirm}
    if hook is not None and hook.format == MAIL:
        from taskservice.webhooks import smtp

        sender, recipient = config["MAIL_FROM"], mail_address(hook.target)
        text = (message.subject, message.body.decode())
        return smtp.send_mail(
            config["SMTP_URL"], sender, recipient, *text, message_id=message.id, **attempt
        )
    from taskservice.webhooks import transport

    webhook = (message.url, message.headers_now(), message.body)
    outcome = transport.post_once(*webhook, allowed=config["CALLBACK_ALLOWED"], **attempt)
    # Answer links must not be stored, but a response (of ntfy, for example) can repeat the message.
    is_secret = hook is not None and hook.answer_links
    return outcome._replace(answer=None) if is_secret else outcome


def _leave_to_loop(leased: deliveries.Leased) -> str:
    try:
        deliveries.release([leased])
    except Exception:
        logger.exception("Delivery %s remains pending", leased.id)
    return PENDING


# The messages. A callback gets a webhook; a hook gets a webhook, or a message for people.

# The maximum number of events that a message describes; further events are only counted.
MAX_DESCRIBED = 200


def _webhook_of(task: TaskRow, leased: deliveries.Leased) -> Message:
    body, secrets = task_json.webhook_body(task), users.callback_secrets(task.user_id)
    return Message(leased.callback_url, body, id=leased.id, secrets=secrets)


def _message_to_hook(leased: deliveries.Leased) -> Message:
    """The message of a delivery to a hook. Raises LeaseLost if the hook or the task was deleted."""
    of_message = deliveries.of_message(leased)
    newest = WITH_TASKS.join(Delivery, Delivery.event_id == Event.id).where(*of_message)
    newest = newest.order_by(None).order_by(Event.position.desc()).limit(MAX_DESCRIBED)
    number = select(func.count()).select_from(Delivery).join(Event, Event.id == Delivery.event_id)
    with reading() as connection:
        hook: Any = connection.execute(
            select(Hook.__table__).where(Hook.id == leased.hook_id)
        ).first()
        events = connection.execute(newest).all()[::-1]
        count = connection.scalar(number.where(*of_message)) or 0
    if hook is None or not events:
        raise deliveries.LeaseLost("The hook or the task was deleted.", FAILED)
    if hook.format == STANDARD:
        event = events[0]
        return _for_program(hook, leased.id, event.name, event.at, _data(hook, event))
    log_ends = logs.ends([event.task_id for event in events if _needs_log(event)])
    notices = [_notice(hook, event, log_ends.get(event.task_id, "")) for event in events]
    return _for_people(hook, leased.id, notices, count)


def _needs_log(event: AnyRow) -> bool:
    return event.error_message is not None and reasons.is_generic(event.error_message)


def body_of(hook: HookRow, delivery_id: str) -> bytes:
    """The body of a delivery to a hook for programs. Raises 404."""
    this = (Delivery.hook_id == hook.id, Delivery.id == delivery_id)
    told = WITH_TASKS.join(Delivery, Delivery.event_id == Event.id).where(*this)
    event = require(read_one(told), "delivery")
    return _for_program(hook, delivery_id, event.name, event.at, _data(hook, event)).body


def sample(hook: HookRow) -> Message:
    """A sample message to a hook, about one of its events, marked as a test."""
    event, agent, task, question = samples.sample(hook)
    message_id, url = clock.new_id(), page("")
    if hook.format == STANDARD:
        body = task and task_json.with_lines(task, task_json.WHOLE, [SAMPLE_TEXT])
        data = _data_of(hook, event, agent, body, question) | {"url": url}
        return _for_program(hook, message_id, event.name, event.at, data, test=True)
    return _for_people(hook, message_id, [_notice(hook, event)._replace(url=url)], 1)


def _for_program(
    hook: HookRow, webhook_id: str, name: str, at: str, data: dict[str, Any], **marks: bool
) -> Message:
    body = strict_json.dumps({"type": name, "timestamp": at, **marks, "data": data})
    secrets = users.callback_secrets(hook.user_id)
    return Message(hook.target, body, id=webhook_id, secrets=secrets, hook=hook)


def _for_people(hook: HookRow, message_id: str, notices: Sequence[Notice], count: int) -> Message:
    message = messages.FORMATS[hook.format](hook.target, notices, count)
    headers = {"authorization": f"Bearer {hook.token}"} if hook.token else {}
    text = messages.plain(notices, count)
    return message._replace(id=message_id, headers=headers, hook=hook, text=text)


def _task(task_id: str | None) -> TaskRow:
    task = tasks.find_by_id(task_id or "")
    if task is None:
        raise deliveries.LeaseLost("The task was deleted.", FAILED)
    return task


def page(path: str) -> str | None:
    """The URL of a page of the dashboard; None if PUBLIC_URL is not set."""
    public_url: str = current_app.config["PUBLIC_URL"]
    return f"{public_url.rstrip('/')}/{path}" if public_url else None


def _data(hook: HookRow, event: AnyRow) -> dict[str, Any]:
    ids = [event.agent_id] if KINDS[event.name].has_agent else []
    agent = agents.by_id(event.user_id, ids).get(event.agent_id)
    task = event.task_id and task_json.webhook_body(_task(event.task_id))
    question = event.question_id and questions.find_by_id(event.question_id)
    return _data_of(hook, event, agent, task, question)


def _data_of(
    hook: HookRow, event: AnyRow, agent: Any, task: bytes | None, question: Any
) -> dict[str, Any]:
    """The `data` of an event in a webhook: the event's agent, task (JSON) and question."""
    data: dict[str, Any] = {}
    if KINDS[event.name].has_agent:
        data["agent"] = agent and agent_of_task_schema.dump(agent)
    if task is not None:
        data["task"] = strict_json.fragment(task)
    if question is not None:
        data["question"] = question_schema.dump(question)
        if hook.answer_links:
            data["answerUrl"] = _answer_url(event)
    details: dict[str, Any] = strict_json.loads(event.details.encode())
    return data | details | {"url": _url(event)}


def _url(event: AnyRow) -> str | None:
    return page(f"tasks/{event.task_id}" if event.task_id else f"agents/{event.agent_id}")


def _answer_url(event: AnyRow) -> str | None:
    return page(f"answer/{links.token_of(event.question_id)}")


def _notice(hook: HookRow, event: AnyRow, log_end: str = "") -> Notice:
    kind, details = KINDS[event.name], strict_json.loads(event.details.encode())
    reason = details["reason"] if kind == TASK_HANGS else event.question
    if reason is None and event.error_message is not None:
        reason = reasons.reason(event.error_message, log_end)
    answer_url, choices = None, list[tuple[str, str]]()
    if hook.answer_links and event.question_state == OPEN and (answer_url := _answer_url(event)):
        choices, texts = links.choices(strict_json.loads(event.question_schema.encode()))
        reason = "\n".join([event.question, *texts])
    # If the agent was muted when it broke, the event was recorded only when the mute ended, so the
    # notice shows the time of the failure instead.
    broke_at = event.finished_at if kind == AGENT_BROKEN else None
    return Notice(
        kind,
        min(event.at, broke_at or event.at),
        event.agent_name or event.agent_id,
        task=event.task_name,
        reason=reason,
        seconds=agents.seconds(event),
        since=details[kind.since] if kind.since else None,
        on_time=details.get("onTime"),
        url=_url(event),
        answer_url=answer_url,
        choices=choices,
        task_id=event.task_id,
        agent_id=event.agent_id,
    )
