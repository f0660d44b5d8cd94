"""`events/*`: what happens to a user's agents, polled by a client or posted to its URL."""

import base64
import logging
import time
from collections import defaultdict, deque
from contextlib import suppress
from functools import partial
from secrets import token_urlsafe
from typing import Any

from flask import current_app
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from taskservice import resources, terms
from taskservice.auth import caller
from taskservice.errors import Problem
from taskservice.mcp.protocol import Call, RpcError
from taskservice.schemas import strict_json
from taskservice.schemas.fields import integer, label_texts, uuid
from taskservice.services import agents, attempts, subscriptions, tasks
from taskservice.services.attempts import FirstAttemptSlots
from taskservice.services.subscriptions import SUBSCRIPTION_HEADER, TooMany, Wanted
from taskservice.webhooks import signing
from taskservice.webhooks.destinations import RefusedError, check_url, kind_of
from taskservice.webhooks.messages import Message

logger = logging.getLogger(__name__)

# Of errors, by their names.
CODES = {
    "NotFound": -32011,
    "ResourceExhausted": -32013,
    "Unsupported": -32014,
    "CallbackEndpointError": -32015,
}
POLL_MS = 5_000
EVENTS, MAX_EVENTS = 50, 200
DAY_MS = 86_400_000
MIN_TTL_MS, MAX_TTL_MS = 60_000, 30 * DAY_MS
# In bytes.
MIN_SECRET, MAX_SECRET = 24, 64
# Maximum number of challenges of a user that fail in one process within a minute.
MAX_FAILURES, FAILURES_SECONDS = 10, 60.0


def error(name: str, **data: Any) -> RpcError:
    return RpcError(CODES[name], name, data, status=200)


_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_ARGUMENTS = {
    "agentId": _TEXT | {"description": "Only events of the agent with this ID."},
    "label": _TEXT | {"description": "Only events of tasks with this label, as key:value."},
    "taskId": _TEXT | {"description": "Only events of the task with this ID."},
}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_AGENT = {"agent": _object(id=_TEXT, name=_TEXT)}
_TASK = {
    "task": _object(
        id=_TEXT,
        name=_TEXT,
        agentId=_TEXT,
        status={"enum": terms.STATUSES},
        error=_object(type=_TEXT, message=_TEXT) | {"type": ["object", "null"]},
        endedBy=_TEXT_OR_NULL,
        labels={"type": "object", "additionalProperties": _TEXT},
        createdAt=_TEXT,
        finishedAt=_TEXT_OR_NULL,
    )
}
_QUESTION = _object(id=_TEXT, message=_TEXT, schema={"type": "object"}, expiresAt=_TEXT_OR_NULL)


def _definition(name: str, description: str, data: dict[str, Any]) -> dict[str, Any]:
    of_agent = {"agentId": _ARGUMENTS["agentId"]}
    arguments = _ARGUMENTS if name.startswith("task.") else of_agent
    return {
        "name": name,
        "description": description,
        "delivery": ["webhook", "poll"],
        "inputSchema": {"type": "object", "properties": arguments, "additionalProperties": False},
        "payloadSchema": _object(**data),
    }


DEFINITIONS = [
    _definition(terms.TASK_ENDED, "A task ended.", _TASK),
    _definition(terms.TASK_FAILED, "A task failed or timed out.", _TASK),
    _definition(terms.TASK_ASKS, "A task asks a person.", _TASK | {"question": _QUESTION}),
    _definition(terms.AGENT_BROKEN, "A task failed, and the one before had not.", _AGENT | _TASK),
    _definition(
        terms.AGENT_FIXED,
        "A task completed, and the one before had failed.",
        _AGENT | _TASK | {"brokenSince": _TEXT},
    ),
    _definition(terms.AGENT_LATE, "An expected run did not start.", _AGENT | {"dueAt": _TEXT}),
    _definition(
        terms.AGENT_BACK,
        "A run started after one was late.",
        _AGENT | _TASK | {"dueAt": _TEXT, "onTime": {"type": "boolean"}},
    ),
]


def _check_url(url: str) -> None:
    try:
        target = check_url(url, current_app.config["CALLBACK_ALLOWED"])
    except RefusedError as error:
        raise ValidationError(str(error), "url") from None
    literal = target.literal
    is_loopback = target.host == "localhost" or (literal and kind_of(literal) == "loopback")
    if target.scheme == "http" and not is_loopback:
        raise ValidationError("Must begin with https://.", "url")


def _check_secret(text: str) -> None:
    try:
        key = base64.b64decode(text.removeprefix(signing.PREFIX), validate=True)
    except ValueError:
        key = b""
    is_exact = text == signing.PREFIX + base64.b64encode(key).decode()
    if not is_exact or not MIN_SECRET <= len(key) <= MAX_SECRET:
        size = f"{MIN_SECRET} to {MAX_SECRET} bytes"
        raise ValidationError(f"Must be {signing.PREFIX} and {size} in padded base64.")


def _number(name: str, low: int, default: int | None = None) -> fields.Integer:
    check = validate.Range(low)
    return integer(data_key=name, allow_none=True, load_default=default, validate=check)


class _ParametersSchema(Schema):
    name = fields.String(required=True)
    arguments = fields.Dict(allow_none=True, load_default=None)
    cursor = fields.String(allow_none=True, load_default=None)
    max_age = _number("maxAgeMs", 0)
    limit = _number("maxEvents", 1)
    # Null is the longest.
    ttl = _number("ttlMs", 0, DAY_MS)
    delivery = fields.Dict(required=True)


class _EndpointSchema(Schema):
    url = fields.String(required=True)
    secret = fields.String(required=True, validate=_check_secret)


class _ArgumentsSchema(Schema):
    agentId = fields.String()
    label = fields.String(validate=lambda text: label_texts("").deserialize([text]))
    taskId = uuid()


_poll_schema = _ParametersSchema(exclude=["ttl", "delivery"], unknown=EXCLUDE)
_subscribe_schema = _ParametersSchema(exclude=["limit"], unknown=EXCLUDE)
_unsubscribe_schema = _ParametersSchema(only=["name", "arguments", "delivery"], unknown=EXCLUDE)
_endpoint_schema = _EndpointSchema(unknown=EXCLUDE)
_url_schema = _EndpointSchema(only=["url"], unknown=EXCLUDE)
_arguments_schemas = {
    each["name"]: _ArgumentsSchema(only=list(each["inputSchema"]["properties"]))
    for each in DEFINITIONS
}


def _wanted(params: dict[str, Any]) -> Wanted:
    name = params["name"]
    if name not in _arguments_schemas:
        raise error("NotFound", kind="event")
    arguments = _arguments_schemas[name].load(params["arguments"] or {})
    return Wanted(name, arguments, params.get("cursor"), params.get("max_age"))


def _require_visible(wanted: Wanted) -> None:
    """Raises 404 for an agent or a task that the key has no access to."""
    if "agentId" in wanted.arguments:
        agents.get(caller, wanted.arguments["agentId"])
    if "taskId" in wanted.arguments:
        tasks.get(caller, wanted.arguments["taskId"])


def poll(call: Call) -> dict[str, Any]:
    params = _poll_schema.load(call.params)
    wanted = _wanted(params)
    _require_visible(wanted)
    limit = min(params["limit"] or EVENTS, MAX_EVENTS)
    return {**subscriptions.poll(caller, wanted, limit), "nextPollMs": POLL_MS}


def subscribe(call: Call) -> dict[str, Any]:
    params = _subscribe_schema.load(call.params)
    wanted, mode = _wanted(params), params["delivery"].get("mode")
    if mode != "webhook":
        raise error("Unsupported", feature="deliveryMode", value=mode)
    ttl = MAX_TTL_MS if params["ttl"] is None else params["ttl"]
    seconds = min(max(ttl, MIN_TTL_MS), MAX_TTL_MS) / 1000
    wanted = wanted._replace(seconds=seconds, **_endpoint_schema.load(params["delivery"]))
    _check_url(wanted.url)
    _require_visible(wanted)
    try:
        if subscriptions.must_verify(caller, wanted):
            _verify(wanted)
        return subscriptions.subscribe(caller, wanted)
    except TooMany:
        raise error("ResourceExhausted", limit="subscriptions", max=terms.MAX_HOOKS) from None


def unsubscribe(call: Call) -> dict[str, Any]:
    params = _unsubscribe_schema.load(call.params)
    url = _url_schema.load(params["delivery"])["url"]
    subscriptions.unsubscribe(caller, _wanted(params)._replace(url=url))
    return {}


METHODS = {"events/poll": poll, "events/subscribe": subscribe, "events/unsubscribe": unsubscribe}


class FailedChallenges(defaultdict[str, deque[float]]):
    """User id -> the times of the last challenges that failed in this process."""

    def __init__(self) -> None:
        super().__init__(partial(deque, [-FAILURES_SECONDS] * MAX_FAILURES, MAX_FAILURES))


def _verify(wanted: Wanted) -> None:
    """Let the URL of a first subscription answer a signed challenge. Raises RpcError."""
    times, text = resources.find(FailedChallenges)[caller.user_id], token_urlsafe(32)
    webhook_id, body = subscriptions.challenge(text)
    headers = {SUBSCRIPTION_HEADER: subscriptions.id_of(caller, wanted)}
    challenge = Message(wanted.url, body, id=webhook_id, headers=headers, secrets=[wanted.secret])
    with resources.find(FirstAttemptSlots).acquire(caller.user_id) as is_acquired:
        if not is_acquired or time.monotonic() - times[0] < FAILURES_SECONDS:
            raise error("ResourceExhausted", limit="verifications")
        outcome = attempts.until_stop(partial(attempts.send, challenge))
    if outcome is None:
        raise Problem(503, "The service is stopping", code=terms.STOPPING)
    logger.info("Challenge of %s: %s", headers[SUBSCRIPTION_HEADER], outcome.message)
    reason = outcome.failure
    if reason is None and not _has_answered(outcome.answer or "", text):
        reason = "challenge_failed"
    if reason is not None:
        times.append(time.monotonic())
        raise error("CallbackEndpointError", reason=reason)


def _has_answered(answer: str, text: str) -> bool:
    with suppress(ValueError, TypeError, KeyError):
        return bool(strict_json.loads(answer.encode())["challenge"] == text)
    return False
