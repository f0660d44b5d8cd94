"""Events for MCP clients: polled, or posted to the URL of a subscription, which is a hook."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, exists, func, insert, null, select, update

from taskservice import resources
from taskservice.auth import KEY_IS_VALID, Caller
from taskservice.database import clock, models
from taskservice.database.models import ApiKey, Attempt, Delivery, Event, EventStream, Hook
from taskservice.database.transactions import reading, retry_on_conflict, transaction
from taskservice.database.types import AnyRow, AnySelect, database_now
from taskservice.errors import invalid_key
from taskservice.schemas import strict_json
from taskservice.services import deliveries, events
from taskservice.terminal import shortened
from taskservice.terms import ACTIVE, CANCELLED, EVENTS, MAX_HOOKS, MCP, TASK_ASKS
from taskservice.webhooks.outcome import Outcome

# What a client is told of its subscription: some events were given up, or it was ended. These are
# stored as events that no client can poll.
GAP, TERMINATED = "gap", "terminated"
MAX_TERMINATIONS = 3  # attempts to tell a client that its subscription was ended
FORBIDDEN = {"code": -32012, "message": "Forbidden"}
SUBSCRIPTION_HEADER = "X-MCP-Subscription-Id"
MAX_ERROR = 1_000  # characters
# Maximum number of pending events of a subscription; of more, the oldest are given up.
MAX_WAITING = 1_000
VERIFIED_SECONDS = 3_600.0  # a URL stays verified after the last subscription there has ended
# The stored time of a user's last poll is at most so much too early.
POLLED_SECONDS = 60.0
CURSOR_SECONDS = events.KEPT_SECONDS - POLLED_SECONDS
# A position among a user's events, the time when it was the last one, and a checksum.
_CURSOR = re.compile(r"(([0-9]{1,18})-([0-9]{1,18}))-[0-9a-f]{8}")

_HOOKS: AnySelect = select(Hook.__table__)


class TooMany(Exception):
    """The user has as many subscriptions as are allowed."""


class Wanted(NamedTuple):
    """What a client wants: events of one name, by arguments, since when, and sent to where."""

    name: str
    arguments: Mapping[str, str]
    cursor: str | None = None
    max_age: int | None = None  # milliseconds
    url: str = ""
    secret: str = ""
    seconds: float = 0  # until the subscription expires

    def conditions(self, caller: Caller) -> list[Any]:
        agent_id, task_id, label = map(self.arguments.get, ("agentId", "taskId", "label"))
        found = [Event.user_id == caller.user_id, Event.name == self.name]
        found += [Event.agent_id == each for each in (caller.agent_id, agent_id) if each]
        found += [Event.task_id == task_id] if task_id else []
        has_label = exists().where(
            models.TaskLabel.task_id == Event.task_id, models.TaskLabel.label == label
        )
        return [*found, has_label] if label else found


# Events along cursors.


@retry_on_conflict
def poll(caller: Caller, wanted: Wanted, limit: int) -> dict[str, Any]:
    """At most `limit` events, and the cursor after them, as MCP clients get them."""
    now = clock.now()
    is_recent = EventStream.polled_at > clock.moved(now, -POLLED_SECONDS)
    stream = select(EventStream.position).where(EventStream.user_id == caller.user_id, is_recent)
    with reading() as connection:
        last = connection.scalar(stream)
    if last is None:
        with transaction() as connection:
            last = events.lock_stream(connection, caller.user_id, now)
    with reading() as connection:
        conditions, is_truncated = _start(connection, caller, wanted, last)
        of_page = events.WITH_TASKS.where(*conditions).limit(limit + 1)
        rows = connection.execute(of_page).all()
    has_more = len(rows) > limit
    reached = (rows[limit - 1].position, rows[limit - 1].at) if has_more else (last, now)
    return {
        "events": [_as_json(event) for event in rows[:limit]],
        "cursor": _cursor(caller.user_id, *reached),
        "truncated": is_truncated,
        "hasMore": has_more,
    }


def _start(
    connection: Connection, caller: Caller, wanted: Wanted, last: int
) -> tuple[list[Any], bool]:
    """The conditions of the events after the cursor, or `last`, and whether any are missing."""
    conditions = [*wanted.conditions(caller), Event.position <= last]
    parts = _CURSOR.fullmatch(wanted.cursor or "")
    is_known = parts and _checked(caller.user_id, parts[1]) == wanted.cursor
    if parts is None or not is_known or int(parts[2]) > last:
        return [*conditions, Event.position > last], wanted.cursor is not None
    conditions.append(Event.position > int(parts[2]))
    is_truncated = int(parts[3]) < clock.milliseconds(clock.now(-CURSOR_SECONDS))
    if wanted.max_age is not None:
        oldest = clock.now(-min(wanted.max_age / 1000, events.KEPT_SECONDS))
        older = select(Event.id).where(*conditions, Event.at < oldest).limit(1)
        is_truncated |= connection.scalar(older) is not None
        conditions.append(Event.at >= oldest)
    return conditions, is_truncated


def _cursor(user_id: str, position: int, at: str) -> str:
    return _checked(user_id, f"{position}-{clock.milliseconds(at)}")


def _checked(user_id: str, text: str) -> str:
    """With a checksum, since a cursor of another user or service is unknown here."""
    return f"{text}-{hashlib.sha256(f'{user_id}-{text}'.encode()).hexdigest()[:8]}"


def _as_json(event: AnyRow) -> dict[str, Any]:
    data: dict[str, Any] = strict_json.loads(event.details.encode())
    if event.name.startswith("agent."):
        data["agent"] = {"id": event.agent_id, "name": event.agent_name or event.agent_id}
    if event.task_id is not None:
        message = shortened(event.error_message or "", MAX_ERROR)
        data["task"] = {
            "id": event.task_id,
            "name": event.task_name,
            "agentId": event.agent_id,
            "status": event.status,
            "error": event.error_type and {"type": event.error_type, "message": message},
            "endedBy": event.ended_by,
            "labels": strict_json.fragment(event.labels),
            "createdAt": event.created_at,
            "finishedAt": event.finished_at,
        }
    if event.name == TASK_ASKS:
        data["question"] = {
            "id": event.question_id,
            "message": event.question,
            "schema": strict_json.fragment(event.question_schema),
            "expiresAt": event.question_expires_at,
        }
    return {"eventId": event.id, "name": event.name, "timestamp": event.at, "data": data}


def id_of(caller: Caller, wanted: Wanted) -> str:
    """The ID of a subscription, the same whenever a key subscribes to the same."""
    text = strict_json.canonical([caller.key_id, wanted.url, wanted.name, wanted.arguments])
    return f"sub_{hashlib.sha256(text).hexdigest()[:32]}"


def must_verify(caller: Caller, wanted: Wanted) -> bool:
    """Whether the URL of a subscription must answer a challenge first. Raises TooMany."""
    of_url = (Hook.key_id == caller.key_id, Hook.target == wanted.url)
    verified = select(Hook.id).where(*of_url, Hook.expires_at > clock.now(-VERIFIED_SECONDS))
    with reading() as connection:
        _check_count(connection, caller, id_of(caller, wanted))
        return connection.scalar(verified.limit(1)) is None


def _check_count(connection: Connection, caller: Caller, subscription: str) -> None:
    others = (Hook.user_id == caller.user_id, Hook.subscription != subscription)
    count = select(func.count()).where(*others, Hook.expires_at > clock.now())
    if (connection.scalar(count) or 0) >= MAX_HOOKS:
        raise TooMany


@retry_on_conflict
def subscribe(caller: Caller, wanted: Wanted) -> dict[str, Any]:
    """Create or refresh a subscription. Raises TooMany, and 401 if the key was revoked."""
    now, subscription = clock.now(), id_of(caller, wanted)
    own, own_key = Hook.subscription == subscription, ApiKey.id == caller.key_id
    valid_key = select(ApiKey.expires_at).where(own_key, *KEY_IS_VALID)
    with transaction() as connection:
        key = connection.execute(valid_key, {"now": now}).first()
        if key is None:
            raise invalid_key()
        until = min(filter(None, (clock.now(wanted.seconds), key.expires_at)))
        last = events.lock_stream(connection, caller.user_id, until)
        hook = connection.execute(_HOOKS.where(own, Hook.expires_at > now)).first()
        more = {}
        if hook is None:
            _check_count(connection, caller, subscription)
            connection.execute(delete(Hook).where(own))
            hook = _insert(connection, caller, wanted, until)
        else:
            status = more["deliveryStatus"] = _delivery_status(connection, hook)
            _refresh(connection, hook, wanted, until)
            if status["active"]:
                wanted = wanted._replace(cursor=None)
        conditions, is_truncated = _start(connection, caller, wanted, last)
        is_truncated |= _replay(connection, hook, conditions)
        cursor = _reached(connection, hook, last, now)
    resources.find(deliveries.DueDeliveries).set()
    result = {"id": subscription, "refreshBefore": until, "cursor": cursor}
    return {**result, "truncated": is_truncated, **more}


def _insert(connection: Connection, caller: Caller, wanted: Wanted, until: str) -> AnyRow:
    hook = {
        "id": clock.new_id(),
        "user_id": caller.user_id,
        "name": f"{wanted.name} for {caller.key_name}",
        "target": wanted.url,
        "format": MCP,
        "events": strict_json.dumps([wanted.name]).decode(),
        "agent_id": caller.agent_id or wanted.arguments.get("agentId"),
        "label": wanted.arguments.get("label"),
        "answer_links": False,
        "created_at": clock.now(),
        "state": ACTIVE,
        "subscription": id_of(caller, wanted),
        "key_id": caller.key_id,
        "task_id": wanted.arguments.get("taskId"),
        "secret": wanted.secret,
        "expires_at": until,
    }
    return connection.execute(insert(Hook).values(hook).returning(*Hook.__table__.columns)).one()


def _refresh(connection: Connection, hook: AnyRow, wanted: Wanted, until: str) -> None:
    values: dict[str, Any] = {"expires_at": until, "secret": wanted.secret}
    if hook.secret != wanted.secret:
        values |= {"replaced_secret": hook.secret, "replaced_at": clock.now()}
    if hook.state != ACTIVE:
        values |= {"state": ACTIVE, "reason": None, "failures": 0}
    connection.execute(update(Hook).where(Hook.id == hook.id).values(values))
    waiting = (Delivery.hook_id == hook.id, deliveries.is_pending, deliveries.is_unleased)
    connection.execute(update(Delivery).where(*waiting).values(next_attempt_at=database_now()))


def _replay(connection: Connection, hook: AnyRow, conditions: Sequence[Any]) -> bool:
    """Enqueue the newest events that meet the conditions; returns whether there are more."""
    waiting = select(Delivery.event_id).where(Delivery.hook_id == hook.id, deliveries.is_pending)
    # Not the task: locking it here could be a deadlock with its report.
    found = select(Event.id, Event.at, null().label("task_id"))
    missing = found.where(*conditions, Event.id.not_in(waiting)).order_by(Event.position.desc())
    newest = connection.execute(missing.limit(MAX_WAITING + 1)).all()
    for event in reversed(newest[:MAX_WAITING]):
        events.enqueue_for_hook(connection, hook, event.id, event)
    return len(newest) > MAX_WAITING


def _delivery_status(connection: Connection, hook: AnyRow) -> dict[str, Any]:
    is_later = Attempt.at > (hook.last_delivered_at or clock.EARLIEST)
    attempts = select(Attempt.at, Attempt.message, Attempt.status_code).order_by(Attempt.id)
    of_hook = attempts.join(Delivery, Delivery.id == Attempt.delivery_id)
    failed = connection.execute(of_hook.where(Delivery.hook_id == hook.id, is_later)).all()
    status = {"active": hook.state == ACTIVE, "lastDeliveryAt": hook.last_delivered_at}
    if not failed:
        return {**status, "lastError": None}
    last = Outcome(failed[-1].message, status_code=failed[-1].status_code)
    return {**status, "lastError": last.failure, "failedSince": failed[0].at}


def unsubscribe(caller: Caller, wanted: Wanted) -> None:
    """End a subscription, if there is one; maintenance cancels what is pending."""
    live = _HOOKS.where(Hook.subscription == id_of(caller, wanted), Hook.expires_at > clock.now())
    with transaction() as connection:
        hook = connection.execute(live).first()
        if hook is not None:
            _end(connection, hook)


# The messages of a subscription.


def challenge(text: str) -> tuple[str, bytes]:
    """The `webhook-id` and the body of a message that a client answers with the same text."""
    body = strict_json.dumps({"type": "verification", "challenge": text})
    return f"msg_verification_{token_hex(16)}", body


def message(hook: AnyRow, event: AnyRow) -> tuple[str, bytes]:
    """The `webhook-id` and the body of a message. Raises LeaseLost if the subscription ended."""
    now = clock.now()
    valid_key = select(ApiKey.id).where(ApiKey.id == hook.key_id, *KEY_IS_VALID)
    with reading() as connection:
        has_ended = hook.expires_at <= now or connection.scalar(valid_key, {"now": now}) is None
        cursor = _reached(connection, hook, event.position, event.at, event.id)
    webhook_id = f"msg_{event.name}_{event.id.replace('-', '')}"
    if event.name == TERMINATED:
        return webhook_id, strict_json.dumps({"type": TERMINATED, "error": FORBIDDEN})
    if has_ended:
        # Maintenance cancels the delivery.
        raise deliveries.LeaseLost("The subscription has ended.", CANCELLED)
    if event.name == GAP:
        return webhook_id, strict_json.dumps({"type": GAP, "cursor": cursor})
    return event.id, strict_json.dumps({**_as_json(event), "cursor": cursor})


def _reached(
    connection: Connection, hook: AnyRow, position: int, at: str, event_id: str = clock.LOWEST_ID
) -> str:
    """The cursor at `position`, or before the first pending event up to there, not `event_id`."""
    pending = (
        select(Event.position, Event.at)
        .join(Delivery, Delivery.event_id == Event.id)
        .where(Delivery.hook_id == hook.id, deliveries.is_pending)
        .where(Event.position <= position, Event.id != event_id)
        .order_by(Event.position)
    )
    first = connection.execute(pending.limit(1)).first()
    if first is not None:
        position, at = first.position - 1, first.at
    return _cursor(hook.user_id, position, at)


def terminate(connection: Connection, hook: AnyRow) -> None:
    """End a subscription and tell its client, unless it was changed since it was read."""
    if _end(connection, hook):
        _tell(connection, hook, TERMINATED)


def _end(connection: Connection, hook: AnyRow) -> int:
    """End a subscription, unless it was changed since it was read; returns how many ended."""
    events.lock_stream(connection, hook.user_id)
    unchanged = (Hook.id == hook.id, Hook.expires_at == hook.expires_at)
    # Active, so that the client of one that was off is told, too.
    ended = update(Hook).where(*unchanged).values(expires_at=clock.now(), state=ACTIVE)
    count = connection.execute(ended).rowcount
    # Events were to be recorded for it until later.
    of_user = EventStream.user_id == hook.user_id
    last = select(func.max(Hook.expires_at)).where(Hook.user_id == hook.user_id).scalar_subquery()
    later = update(EventStream).where(of_user, EventStream.polled_at > last)
    connection.execute(later.values(polled_at=last))
    return count


def _tell(connection: Connection, hook: AnyRow, name: str) -> None:
    event = events.NewEvent(name, clock.now(), hook.user_id, hook.agent_id or "")
    events.store_events(connection, [(event, [hook])])


def maintain() -> None:
    """End the subscriptions of invalid keys, give up events, and remove what has ended."""
    now = clock.now()
    valid_keys = select(ApiKey.id).where(*KEY_IS_VALID)
    # A subscription expires with its key at the latest; then its client is told.
    is_unended = (Hook.expires_at > now) | (Hook.expires_at == ApiKey.expires_at)
    with_keys = _HOOKS.join(ApiKey, ApiKey.id == Hook.key_id)
    of_invalid_key = with_keys.where(is_unended, ApiKey.id.not_in(valid_keys))
    pending = select(Delivery.hook_id).where(deliveries.is_pending, Delivery.hook_id.is_not(None))
    crowded = pending.group_by(Delivery.hook_id).having(func.count() > MAX_WAITING)
    of_mcp = _HOOKS.where(Hook.format == MCP)
    with reading() as connection:
        to_end = connection.execute(of_invalid_key, {"now": now}).all()
        too_full = connection.execute(of_mcp.where(Hook.id.in_(crowded))).all()
        has_ended = connection.execute(of_mcp.where(Hook.expires_at <= now).limit(1)).first()
    for hooks, change in ((to_end, terminate), (too_full, _give_up)):
        for hook in hooks:
            with transaction() as connection:
                change(connection, hook)
    if has_ended:
        ended = select(Hook.id).where(Hook.expires_at <= now)
        is_untold = Delivery.event_id.not_in(select(Event.id).where(Event.name == TERMINATED))
        old = Hook.expires_at <= clock.moved(now, -VERIFIED_SECONDS)
        with transaction() as connection:
            deliveries.cancel(connection, Delivery.hook_id.in_(ended), is_untold)
            connection.execute(delete(Hook).where(old, Hook.subscription.is_not(None)))


def _give_up(connection: Connection, hook: AnyRow) -> None:
    """Cancel the oldest pending events of a subscription, and let its client know."""
    events.lock_stream(connection, hook.user_id)
    found = select(Delivery.id).join(Event, Event.id == Delivery.event_id)
    waiting = found.where(Delivery.hook_id == hook.id, deliveries.is_pending)
    newest_first = waiting.where(Event.name.in_(EVENTS)).order_by(Event.position.desc())
    is_too_old = Delivery.id.in_(newest_first.offset(MAX_WAITING))
    gap = connection.execute(waiting.where(Event.name == GAP, deliveries.is_unleased)).first()
    if deliveries.cancel(connection, is_too_old) and gap is None:
        _tell(connection, hook, GAP)
