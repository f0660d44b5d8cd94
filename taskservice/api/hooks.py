"""Routes for hooks and their deliveries."""

from typing import Any

from flask import Blueprint, Response

from taskservice.auth import Caller
from taskservice.error_codes import DELIVERY_UNDER_WAY, TOO_MANY_HOOKS, TOO_MANY_REQUESTS
from taskservice.schemas.hooks import (
    change_hook_schema,
    create_hook_schema,
    hook_delivery_schema,
    hook_schema,
    tested_hook_schema,
)
from taskservice.services import hooks
from taskservice.web import responses
from taskservice.web.request import operation

blueprint = Blueprint("hooks", __name__)


@blueprint.get("/hook")
@operation("listHooks", [hook_schema], user_key=True)
def list_all(caller: Caller) -> Response:
    """List hooks.

    Returns all hooks of the user, oldest first.
    """
    return responses.dump(hook_schema, hooks.list_all(caller), many=True)


@blueprint.post("/hook")
@operation(
    "createHook",
    responses={201: hook_schema},
    user_key=True,
    body=create_hook_schema,
    response_headers=["Location"],
    errors=[TOO_MANY_HOOKS],
)
def create(caller: Caller, body: dict[str, Any]) -> Response:
    """Create a hook.

    From then on, the target receives the events that the hook selects. In the format `standard`,
    each event is a signed webhook. In the other formats, a message for people describes all events
    since the previous message, and a target receives at most one message every 30 s.
    """
    hook = hooks.create(caller, body)
    return responses.dump(hook_schema, hook, 201, headers={"Location": f"hook/{hook.id}"})


@blueprint.get("/hook/<hook_id>")
@operation("getHook", hook_schema, user_key=True)
def get(caller: Caller, hook_id: str) -> Response:
    """Get a hook."""
    return responses.dump(hook_schema, hooks.get(caller, hook_id))


@blueprint.patch("/hook/<hook_id>")
@operation("changeHook", hook_schema, user_key=True, body=change_hook_schema)
def change(caller: Caller, hook_id: str, body: dict[str, Any]) -> Response:
    """Change a hook.

    Changes the fields in the request. Set `state` to `active` to turn the hook on.
    """
    return responses.dump(hook_schema, hooks.change(caller, hook_id, body))


@blueprint.delete("/hook/<hook_id>")
@operation("deleteHook", hook_schema, user_key=True)
def delete(caller: Caller, hook_id: str) -> Response:
    """Delete a hook.

    Cancels the pending deliveries of the hook. Returns the deleted hook.
    """
    return responses.dump(hook_schema, hooks.delete(caller, hook_id))


@blueprint.post("/hook/<hook_id>/test")
@operation("testHook", tested_hook_schema, user_key=True, errors=[TOO_MANY_REQUESTS])
def test(caller: Caller, hook_id: str) -> Response:
    """Test a hook.

    Sends a sample event, marked as a test, to the target of the hook, and waits for the outcome. A
    user can send at most ten tests per minute, and one test per address every 10 s.
    """
    return responses.dump(tested_hook_schema, hooks.test(caller, hook_id))


@blueprint.get("/hook/<hook_id>/deliveries")
@operation("listHookDeliveries", [hook_delivery_schema], user_key=True)
def list_deliveries(caller: Caller, hook_id: str) -> Response:
    """List the deliveries of a hook.

    Returns the newest 100 deliveries, newest first. Deliveries older than 7 days are deleted.
    """
    return responses.dump(hook_delivery_schema, hooks.list_deliveries(caller, hook_id), many=True)


@blueprint.post("/hook/<hook_id>/deliveries/<delivery_id>")
@operation(
    "redeliverToHook",
    responses={202: hook_delivery_schema},
    user_key=True,
    errors=[DELIVERY_UNDER_WAY],
)
def redeliver(caller: Caller, hook_id: str, delivery_id: str) -> Response:
    """Send a delivery of a hook again.

    Schedules this delivery for immediate sending, whatever its state, and restarts its retry
    schedule.
    """
    return responses.dump(hook_delivery_schema, hooks.redeliver(caller, hook_id, delivery_id), 202)
