"""The endpoint `/mcp`: each request is one JSON-RPC message, without a session."""

from flask import Blueprint, Response, request
from werkzeug.exceptions import MethodNotAllowed

from taskservice.auth import caller
from taskservice.mcp import access, protocol
from taskservice.mcp.methods import result_of
from taskservice.mcp.protocol import RpcError
from taskservice.operations import request_log
from taskservice.terms import MCP_PATH, READ
from taskservice.web import responses
from taskservice.web.request import json_bytes, large_json_slot
from taskservice.web.responses import FastResponse

MAX_LOGGED = 64
OTHER_METHODS = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")

OF_READ_KEYS = {"server/discover", "initialize", "ping", "tools/list", "tools/call", "tasks/get"}

blueprint = Blueprint("mcp", __name__)
blueprint.before_request(access.require_access)
blueprint.after_request(access.add_vary)


@blueprint.post(MCP_PATH, provide_automatic_options=False)
def handle() -> Response:
    message_id = None
    try:
        data = json_bytes()
        with large_json_slot(data):
            call = protocol.read_call(data)
        # Log the method and the tool, since all requests have the same path.
        name = call.params.get("name")
        tool = {"tool": name[:MAX_LOGGED]} if isinstance(name, str) else {}
        request_log.add_details(method=call.method[:MAX_LOGGED], **tool)
        if call.is_notification:
            # Notifications are ignored. `notifications/cancelled` must not end a task, since
            # clients send it for finished calls too.
            return FastResponse(status=202)
        if caller.agent_id is not None or call.method not in OF_READ_KEYS:
            caller.require_full_access()
        caller.require_user_key()
        message_id = call.id
        call = protocol.with_era(call, request.headers)
        if caller.access == READ:
            # A read key can't answer questions, so results contain no forms for questions.
            call = call._replace(capabilities={**call.capabilities, "elicitation": None})
        return responses.json({"jsonrpc": "2.0", "id": message_id, "result": result_of(call)})
    except RpcError as error:
        refusal = {"jsonrpc": "2.0", "id": message_id, "error": error.json}
        return responses.json(refusal, error.status)


@blueprint.route(MCP_PATH, methods=OTHER_METHODS, provide_automatic_options=False)
def refuse() -> Response:
    """Reject methods other than POST."""
    raise MethodNotAllowed(["POST"])
