"""Attempts: one signed POST of one delivery, by the request that ended its task or by the loop."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from threading import Thread

from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

from taskservice import resources
from taskservice.contract.terms import FAILED, PENDING
from taskservice.database import timestamps
from taskservice.queries import task_json
from taskservice.queries import tasks as task_queries
from taskservice.queries import users as user_queries
from taskservice.resources import SharedSlots
from taskservice.services import deliveries as delivery_service
from taskservice.services.deliveries import Leased, LeaseLost
from taskservice.webhooks import signing, transport
from taskservice.webhooks.circuit_breaker import CircuitBreaker
from taskservice.webhooks.interrupt import Interrupt, Interrupted
from taskservice.webhooks.transport import Outcome

logger = logging.getLogger(__name__)

# A secret that was replaced still signs for a day, so that receivers can change over.
SECRET_OVERLAP_SECONDS = 86_400.0

NO_DELIVERY = "none"
UNPOSTED = "The service failed to post it; its log says more."

# A stop is noticed so soon, and a receiver then has so long to answer; what is then
# interrupted comes to its end at once, unless it waits for something else.
TURN_SECONDS = 0.1
STOP_SECONDS = 0.5
INTERRUPT_SECONDS = 0.2


class FirstAttemptSlots(SharedSlots):
    """Limits the threads that wait for receivers, so that ordinary requests stay fast."""


def init_app(app: Flask) -> None:
    resources.provide(app, FirstAttemptSlots(max(1, app.config["THREADS"] // 4)))
    resources.provide(app, CircuitBreaker())


def first_attempt(leased: Leased | None) -> str:
    """Post a webhook in the request that owes it; call it with no transaction open.

    Returns what `Callback-Status` says: `delivered`, `pending`, `failed` or `none`.
    It is left to the loop when too many threads are at this, its host just kept failing, or
    the process stops.
    Never raises: the task has ended whatever happens here.
    """
    if leased is None:
        return NO_DELIVERY
    with resources.find(FirstAttemptSlots).acquire(leased.user_id) as is_acquired:
        if is_acquired and leased.host not in resources.find(CircuitBreaker):
            state = _attempt_until_stop(leased)
            if state is not None:
                return state
    return _leave_to_loop(leased)


def attempt(leased: Leased, interrupt: Interrupt) -> str:
    """Post a webhook once and record what came of it; returns the delivery's state.

    Never raises: where the database gave no answer, it is made again when its lease has
    run out. One that was interrupted is given back, as if it had not been made. Nothing is
    posted of what is no longer to be posted when the receiver has taken the connection.
    """
    try:
        started = timestamps.now()
        outcome = _outcome(leased, interrupt)
        logger.info("Delivery %s to %s: %s", leased.id, leased.host, outcome.message)
        _note(leased, outcome)
        return delivery_service.record(leased, started, outcome)
    except Interrupted:
        return _leave_to_loop(leased)
    except LeaseLost as lost:
        logger.info("Delivery %s to %s is not posted: %s", leased.id, leased.host, lost)
        return lost.state
    except Exception:
        logger.exception("Delivery %s stays pending", leased.id)
        return PENDING


def post(
    url: str,
    secrets: Sequence[str],
    webhook_id: str,
    body: bytes,
    interrupt: Interrupt | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> Outcome:
    """Send one signed webhook by this service's settings; raises what `transport.send` raises."""
    signature = signing.sign(secrets, webhook_id, int(time.time()), body)
    return transport.send(
        url,
        {"content-type": "application/json", **signature},
        body,
        allowed=current_app.config["CALLBACK_ALLOWED"],
        deadline=current_app.config["CALLBACK_TIMEOUT"],
        interrupt=interrupt,
        confirm=confirm,
    )


def _attempt_until_stop(leased: Leased) -> str | None:
    """What `attempt` returns; None when the process stops before the receiver has answered.

    Then nothing more is sent, so that somebody else may post it.
    """
    state: Future[str] = Future()
    interrupt = Interrupt()
    # A thread that waits for a receiver can't be interrupted, only left behind: so it is one
    # of its own, in the context of this request.
    work = [lambda: state.set_result(attempt(leased, interrupt))]
    thread = Thread(target=copy_context().run, args=work, name="first attempt", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # No more threads on this machine.
        return attempt(leased, interrupt)
    while not resources.stopping.is_set() and not wait([state], TURN_SECONDS).done:
        pass
    if not wait([state], STOP_SECONDS).done:
        interrupt.set()
        wait([state], INTERRUPT_SECONDS)
    return state.result() if state.done() else None


def _leave_to_loop(leased: Leased) -> str:
    try:
        delivery_service.release([leased])
    except Exception:
        logger.exception("Delivery %s stays pending", leased.id)
    return PENDING


def _outcome(leased: Leased, interrupt: Interrupt) -> Outcome:
    """What came of posting it; what we did not think of counts as an attempt as well.

    Otherwise it would be made again for ever, and nobody would see it.
    """
    try:
        return _send(leased, interrupt)
    except (SQLAlchemyError, Interrupted, LeaseLost):
        raise  # where the database is away, that says nothing of this webhook
    except Exception:
        logger.exception("Delivery %s to %s could not be posted", leased.id, leased.host)
        return Outcome(UNPOSTED)


def _note(leased: Leased, outcome: Outcome) -> None:
    """Remember whether its host is well; where nobody was asked, as at a refusal, who knows."""
    is_well = outcome.status_code is not None and (outcome.delivered or outcome.permanent)
    if is_well or not outcome.permanent:
        resources.find(CircuitBreaker).note(leased.host, has_failed=not is_well)


def _send(leased: Leased, interrupt: Interrupt) -> Outcome:
    task = task_queries.find_by_id(leased.task_id)
    if task is None:
        raise LeaseLost("The task was deleted.", FAILED)
    since = timestamps.now(-SECRET_OVERLAP_SECONDS)
    secrets = user_queries.callback_secrets(task.user_id, since)
    body = task_json.webhook_body(task)
    confirm = partial(delivery_service.require_lease, leased)
    return post(leased.callback_url, secrets, leased.id, body, interrupt, confirm)
