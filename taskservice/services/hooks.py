"""Creates, changes, tests and deletes a user's hooks, and lists their deliveries."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from flask import current_app
from sqlalchemy import Connection, and_, bindparam, case, exists, func, insert, select, update
from sqlalchemy import delete as delete_from

from taskservice import error_codes, resources, terms
from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.database.connections import Statement
from taskservice.database.models import Attempt, Delivery, Event, Hook, HookTest
from taskservice.database.rows import HookRow
from taskservice.database.transactions import read_all, read_one, retry_on_conflict, transaction
from taskservice.database.types import AnySelect, database_now
from taskservice.errors import Problem, invalid, overloaded, require, stopping
from taskservice.event_kinds import DEFAULT_EVENTS
from taskservice.schemas.hooks import HOOK_DELIVERY_COLUMNS, hook_schema
from taskservice.services import attempts, deliveries, events
from taskservice.webhooks import hook_targets, messages
from taskservice.webhooks.destinations import check_url, mail_address
from taskservice.webhooks.outcome import Outcome

MAX_LISTED = 100  # the maximum number of deliveries in a response
MAX_SHOWN = 20  # the maximum number of deliveries on a page
# Limits how often a user can send a test, in total and to one address. Otherwise the outcomes of
# tests could be used to scan a network, and emails could flood a mailbox.
MAX_TESTS = 10
MINUTE_SECONDS = 60.0
TEST_SECONDS = 10.0
_OWN = and_(Hook.user_id == bindparam("user_id"), Hook.deleted_at.is_(None))
# A hook is failing if at least two attempts have failed since its last successful delivery, and the
# first of these attempts failed at least this many seconds ago.
FAILING_SECONDS = 120.0
_is_failing = and_(
    Hook.state == terms.ACTIVE,
    Hook.attempt_count >= 2,
    Hook.failed_since <= database_now(-FAILING_SECONDS),
)
_COLUMNS = [column for column in Hook.__table__.columns if column.name != Hook.reason.key]
_HOOKS: AnySelect = (
    select(
        *_COLUMNS,
        func.coalesce(Hook.reason, case((_is_failing, Hook.last_error))).label(Hook.reason.key),
        case((_is_failing, Hook.failed_since)).label("failing_since"),
    )
    .where(_OWN)
    .order_by(Hook.created_at, Hook.id)
)
_THIS = Hook.id == bindparam("hook_id")
_HOOK = _HOOKS.where(_THIS)
# Hooks that are failing, or that the service, not the user, has turned off.
IN_TROUBLE = Statement[HookRow](_HOOKS.where(Hook.reason.is_not(None) | _is_failing))
_DELIVERIES: AnySelect = (
    select(*HOOK_DELIVERY_COLUMNS)
    .join(Event, Event.id == Delivery.event_id)
    .where(Delivery.hook_id == bindparam("hook_id"))
    .order_by(Delivery.created_at.desc(), Delivery.id.desc())
)


def list_in_trouble(caller: Caller) -> Sequence[HookRow]:
    """The hooks of the user that are failing, or that the service has turned off."""
    return read_all(IN_TROUBLE, user_id=caller.user_id)


def list_all(caller: Caller) -> Sequence[HookRow]:
    """All hooks of the user, oldest first."""
    return read_all(_HOOKS, user_id=caller.user_id)


def get(caller: Caller, hook_id: str) -> HookRow:
    """A hook of the user. Raises 404."""
    hook: HookRow = require(read_one(_HOOK, user_id=caller.user_id, hook_id=hook_id), "hook")
    return hook


def _locked(connection: Connection, caller: Caller, hook_id: str) -> HookRow:
    ids = {"user_id": caller.user_id, "hook_id": hook_id}
    locked = connection.execute(_HOOK.with_for_update(key_share=True), ids)
    return cast(HookRow, require(locked.one_or_none(), "hook"))


@retry_on_conflict
def create(caller: Caller, fields: dict[str, Any], hook_id: str | None = None) -> Any:
    """Create a hook; returns None if the ID `hook_id` already exists. Raises 409 and 422."""
    defaults = {"events": DEFAULT_EVENTS, "answerLinks": False}
    defaults |= _defaults(fields["target"], fields.get("format"))
    new_id = hook_id or clock.new_id()
    new = {"id": new_id, "user_id": caller.user_id, "created_at": clock.now()}
    new |= _stored({**defaults, **fields, "state": terms.ACTIVE})
    _check(new)
    with transaction() as connection:
        # Prevent other transactions from creating hooks of this user at the same time.
        events.lock_stream(connection, caller.user_id)
        if connection.scalar(select(Hook.id).where(_THIS), {"hook_id": new_id}):
            return None
        count = select(func.count()).where(_OWN)
        if (connection.scalar(count, {"user_id": caller.user_id}) or 0) >= terms.MAX_HOOKS:
            detail = f"The user has {terms.MAX_HOOKS} hooks already"
            raise Problem(409, detail, code=error_codes.TOO_MANY_HOOKS)
        connection.execute(insert(Hook), new)
        return _locked(connection, caller, new_id)


def change(caller: Caller, hook_id: str, fields: dict[str, Any]) -> HookRow:
    """Change fields of a hook; a new target does not change the format. Raises 404 and 422."""
    values = _stored(fields)
    with transaction() as connection:
        before = _locked(connection, caller, hook_id)
        _check(before._asdict() | values)
        if _is_elsewhere(before, values):
            values.setdefault("token", None)
        if values:
            connection.execute(update(Hook).where(Hook.id == hook_id).values(values))
        changed = _locked(connection, caller, hook_id)
        is_moved = (changed.target, changed.format) != (before.target, before.format)
        # Reset the failures, since they occurred at the previous address.
        if changed.state != before.state or (is_moved and changed.state == terms.ACTIVE):
            deliveries.set_hook_state(connection, hook_id, changed.state)
            changed = _locked(connection, caller, hook_id)
    resources.find(deliveries.DueDeliveries).set()
    return changed


def _is_elsewhere(hook: HookRow, values: dict[str, Any]) -> bool:
    """Whether these changes would send the hook's token to another host, or in another format."""
    before, after = urlsplit(hook.target), urlsplit(values.get("target", hook.target))
    is_same = (before.scheme, before.netloc.lower()) == (after.scheme, after.netloc.lower())
    return not is_same or values.get("format", hook.format) != hook.format


def _stored(fields: dict[str, Any]) -> dict[str, Any]:
    # The schema omits the token, since no response contains it.
    token = {"token": fields["token"]} if "token" in fields else {}
    return hook_schema.stored(fields) | token


def _defaults(target: str, kind: str | None) -> dict[str, Any]:
    """The default format and name of a hook with this target. Raises 422 for an invalid URL."""
    try:
        kind = kind or hook_targets.format_of(target)
        name = hook_targets.without_secret(target, kind)
    except ValueError:
        raise invalid({"target": ["Not a valid URL."]}) from None
    return {"format": kind, "name": name[: terms.MAX_NAME]}


def _check(hook: dict[str, Any]) -> None:
    """Raises 422 for a target that is invalid in its format, or that the settings do not allow."""
    config, target = current_app.config, hook["target"]
    is_mail = hook["format"] == terms.MAIL
    try:
        mail_address(target) if is_mail else check_url(target, config["CALLBACK_ALLOWED"])
        if hook["format"] == terms.NTFY:
            messages.ntfy_address(target)
    except ValueError as error:
        raise invalid({"target": [str(error)]}) from None
    if is_mail and not (config["SMTP_URL"] and config["MAIL_FROM"]):
        detail = "This service sends no email: its SMTP_URL and MAIL_FROM are not set."
        raise invalid({"target": [detail]})
    if hook["answer_links"] and not config["PUBLIC_URL"]:
        detail = "This service sends no answer links: its PUBLIC_URL is not set."
        raise invalid({"answerLinks": [detail]})


def delete(caller: Caller, hook_id: str) -> HookRow:
    """Delete a hook with its deliveries; returns the hook. Raises 404.

    `remove_deleted` removes the rows later, since the hook may have very many deliveries.
    """
    with transaction() as connection:
        # Prevent other transactions from storing deliveries of this hook at the same time.
        events.lock_stream(connection, caller.user_id)
        hook = _locked(connection, caller, hook_id)
        gone = {"deleted_at": clock.now(), "reason": None, "next_attempt_at": None}
        this = update(Hook).where(Hook.id == hook_id)
        connection.execute(this.values(state=terms.OFF, **gone))
        # Delete leased deliveries now, so that they are no longer sent.
        leased = (deliveries.leased_hook_id == hook_id, deliveries.has_lease)
        connection.execute(delete_from(Delivery).where(*leased))
    return hook


def remove_deleted() -> bool:
    """Remove a batch of deliveries of a deleted hook, or the hook if it has none left.

    Returns whether more may remain.
    """
    hook = read_one(select(Hook.id).where(Hook.deleted_at.is_not(None)).limit(1))
    if hook is None:
        return False
    batch = select(Delivery.id).where(Delivery.hook_id == hook.id).limit(deliveries.BATCH)
    with transaction() as connection:
        ids = connection.scalars(batch).all()
        connection.execute(delete_from(Delivery).where(Delivery.id.in_(ids)))
        if not ids:
            connection.execute(delete_from(Hook).where(Hook.id == hook.id))
    return True


def test(caller: Caller, hook_id: str) -> Outcome:
    """Send a sample to a hook in any state. If the sample is delivered, the failures of the hook
    are reset.

    Raises 404, 429, and 503 if too many webhooks are being sent or if the process stops.
    """
    hook = get(caller, hook_id)
    with resources.find(attempts.FirstAttemptSlots).acquire(caller.user_id) as is_acquired:
        if not is_acquired:
            raise overloaded("Too many webhooks are being sent")
        _count_test(hook)
        outcome = attempts.until_stop(partial(attempts.send, attempts.sample(hook)))
    if outcome is None:
        raise stopping()
    if outcome.delivered and hook.failed_since is not None:
        _restart(caller, hook_id)
    return outcome


def _restart(caller: Caller, hook_id: str) -> None:
    """Reset the failures of a hook whose address works again, and send its pending deliveries."""
    with transaction() as connection:
        if _locked(connection, caller, hook_id).state == terms.ACTIVE:
            deliveries.set_hook_state(connection, hook_id, terms.ACTIVE)
    resources.find(deliveries.DueDeliveries).set()


def _count_test(hook: HookRow) -> None:
    """Count a test; raises 429 if this user or this address has reached its limit."""
    now = clock.now()
    recent = (
        select(HookTest.at, HookTest.hook_id, Hook.target)
        .outerjoin(Hook, Hook.id == HookTest.hook_id)
        .where(HookTest.user_id == hook.user_id)
        .order_by(HookTest.at)
    )
    with transaction() as connection:
        # Prevent other transactions from counting tests of this user at the same time.
        events.lock_stream(connection, hook.user_id)
        # A test whose time is in the future was sent before the clock was set back.
        is_recent = HookTest.at.between(clock.moved(now, -MINUTE_SECONDS), now)
        connection.execute(delete_from(HookTest).where(~is_recent))
        tests = connection.execute(recent).all()
        if len(tests) >= MAX_TESTS:
            sent = f"{MAX_TESTS} tests were sent in the last minute"
            raise _too_many_tests(sent, tests[0].at, MINUTE_SECONDS, now)
        for test in tests:
            is_same = hook.id == test.hook_id or hook.target == test.target
            if is_same and test.at > clock.moved(now, -TEST_SECONDS):
                sent = f"A test was sent to this address less than {TEST_SECONDS:.0f} s ago"
                raise _too_many_tests(sent, test.at, TEST_SECONDS, now)
        new = {"id": clock.new_id(), "user_id": hook.user_id, "hook_id": hook.id, "at": now}
        connection.execute(insert(HookTest), new)


def _too_many_tests(sent: str, since: str, seconds: float, now: str) -> Problem:
    wait = max(1, math.ceil(seconds - clock.seconds_between(since, now)))
    detail = f"{sent}; the next test is possible in {wait} s"
    return Problem(429, detail, headers={"Retry-After": str(wait)})


def list_deliveries(caller: Caller, hook_id: str) -> list[Any]:
    """The newest MAX_LISTED deliveries of a hook, each with its `attempts`. Raises 404."""
    return _with_attempts(get(caller, hook_id), _DELIVERIES.limit(MAX_LISTED))


def list_sent(hook: HookRow) -> tuple[list[Any], int]:
    """The newest MAX_SHOWN deliveries for a page, and the number of waiting deliveries.

    Waiting deliveries have no attempts yet; they are counted only if the hook sends messages for
    people. A message can contain many events; its attempts are stored for the first event.
    """
    if hook.format not in terms.PEOPLE_FORMATS:
        return _with_attempts(hook, _DELIVERIES.limit(MAX_SHOWN)), 0
    was_tried = exists().where(Attempt.delivery_id == Delivery.id)
    is_lost = Delivery.state.in_((terms.FAILED, terms.CANCELLED))
    sent = _with_attempts(hook, _DELIVERIES.where(was_tried | is_lost).limit(MAX_SHOWN))
    waiting = select(func.count().label("count")).where(
        Delivery.hook_id == hook.id, deliveries.is_pending, ~was_tried
    )
    row = read_one(waiting)
    return sent, row.count if row else 0


def _with_attempts(hook: HookRow, which: AnySelect) -> list[Any]:
    """Deliveries of a hook, with their attempts. If the hook sends messages for people, its pending
    deliveries are due with the next message.
    """
    rows = deliveries.with_attempts(which, hook_id=hook.id)
    if hook.format in terms.PEOPLE_FORMATS:
        next_attempt_at = hook.next_attempt_at if hook.state == terms.ACTIVE else None
        for row in rows:
            row.next_attempt_at = row.next_attempt_at and next_attempt_at
    return rows


def redeliver(caller: Caller, hook_id: str, delivery_id: str) -> Any:
    """Make a delivery due now, with a new retry schedule. Raises 404 and 409."""
    this = _DELIVERIES.where(Delivery.id == delivery_id)
    with transaction() as connection:
        hook = _locked(connection, caller, hook_id)
        delivery = require(connection.execute(this, {"hook_id": hook_id}).one_or_none(), "delivery")
        if hook.state == terms.OFF:
            raise Problem(409, "The hook is off; turn it on first")
        if hook.format in terms.PEOPLE_FORMATS:
            if delivery.created_at < clock.now(-events.DAY_SECONDS):
                raise Problem(409, "People are not notified of events that are older than a day")
            deliveries.make_message_due(connection, hook_id, delivery)
        else:
            deliveries.make_due(connection, delivery_id)
    resources.find(deliveries.DueDeliveries).set()
    # The delivery may have been deleted in the meantime.
    rows = _with_attempts(get(caller, hook_id), this)
    return require(next(iter(rows), None), "delivery")
