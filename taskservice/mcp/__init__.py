"""The Model Context Protocol at `/mcp`: one JSON-RPC message in, one response out, no session."""

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.exceptions import MethodNotAllowed

from taskservice import __version__
from taskservice.auth import KEY_HEADERS, authenticate, caller
from taskservice.errors import Problem
from taskservice.mcp import protocol, results, tool_calls
from taskservice.mcp.protocol import MISSING_CAPABILITY, Call, RpcError
from taskservice.operations import request_log
from taskservice.services import reports, tasks
from taskservice.terms import FOREIGN_ORIGIN, MCP_PATH, READ, TASK_FINISHED
from taskservice.web import responses
from taskservice.web.request import (
    is_loopback,
    json_bytes,
    large_json_slot,
    require_id,
    url_parts,
)
from taskservice.web.responses import FastResponse

MAX_LOGGED = 64
OTHER_METHODS = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")
CACHED = ("tools/list", "server/discover")
CACHE = {"ttlMs": 60_000, "cacheScope": "private"}
SERVER = {"name": "taskservice", "title": "taskservice", "version": __version__}
INSTRUCTIONS = (
    "Each tool named after an agent starts a task, which a worker runs. The task keeps running "
    "even if this conversation ends. If the status in a result is running, call wait_task with "
    "its taskId until the task has ended; read_log returns its log. If a result contains "
    "questions, ask your user, then call answer_task. If the result of a call was lost, call "
    "list_tasks before you repeat the call: the task can already be running."
)

blueprint = Blueprint("mcp", __name__)


def initialize(call: Call) -> dict[str, Any]:
    version = call.params.get("protocolVersion")
    return {
        "protocolVersion": version if version in protocol.LEGACY else protocol.LEGACY[0],
        "capabilities": {"tools": {}},
        "serverInfo": SERVER,
        "instructions": INSTRUCTIONS,
    }


def discover(call: Call) -> dict[str, Any]:
    return {
        "supportedVersions": protocol.VERSIONS,
        "capabilities": {"tools": {}, "extensions": {protocol.TASKS: {}}},
        "instructions": INSTRUCTIONS,
    }


def get_task(call: Call) -> dict[str, Any]:
    return results.task_state(call, tasks.get(caller, _task_id(call)))


def update_task(call: Call) -> dict[str, Any]:
    results.answer_forms(_task_id(call), call.params.get("inputResponses"))
    return {}


def cancel_task(call: Call) -> dict[str, Any]:
    """Cancel a task; one that has ended stays as it is."""
    try:
        reports.cancel(caller, _task_id(call))
    except Problem as problem:
        if problem.code != TASK_FINISHED:
            raise
    return {}


def _task_id(call: Call) -> str:
    return require_id("task", str(call.params.get("taskId")))


Method = Callable[[Call], dict[str, Any]]
_TASKS = {"tasks/get": get_task, "tasks/update": update_task, "tasks/cancel": cancel_task}
_BOTH: dict[str, Method] = {
    "tools/list": lambda call: {"tools": tool_calls.definitions()},
    "tools/call": tool_calls.run,
}
MODERN_METHODS = {**_BOTH, "server/discover": discover, **_TASKS}
LEGACY_METHODS = {**_BOTH, "initialize": initialize, "ping": lambda call: {}}
OF_READ_KEYS = {"server/discover", "initialize", "ping", "tools/list", "tools/call", "tasks/get"}


@blueprint.post(MCP_PATH, provide_automatic_options=False)
def handle() -> Response:
    message_id = None
    try:
        call = _read_call()
        # All requests have the same path: the log names the method and the tool.
        name = call.params.get("name")
        tool = {"tool": name[:MAX_LOGGED]} if isinstance(name, str) else {}
        request_log.add_details(method=call.method[:MAX_LOGGED], **tool)
        if call.is_notification:
            # Not even `notifications/cancelled` ends a task: clients send it for finished calls.
            return FastResponse(status=202)
        if caller.agent_id is not None or call.method not in OF_READ_KEYS:
            caller.require_full_access()
        caller.require_user_key()
        message_id = call.id
        call = protocol.with_era(call, request.headers)
        if caller.access == READ:
            # It can't answer questions, so it gets no forms.
            call = call._replace(capabilities={**call.capabilities, "elicitation": None})
        return responses.json({"jsonrpc": "2.0", "id": message_id, "result": _result(call)})
    except RpcError as error:
        refusal = {"jsonrpc": "2.0", "id": message_id, "error": error.json}
        return responses.json(refusal, error.status)


def _read_call() -> Call:
    data = json_bytes()
    with large_json_slot(data):
        return protocol.read_call(data)


def _result(call: Call) -> dict[str, Any]:
    methods = MODERN_METHODS if call.is_modern else LEGACY_METHODS
    if call.method not in methods:
        status = 404 if call.is_modern else 200
        raise RpcError(protocol.METHOD_NOT_FOUND, f"No such method: {call.method}", status=status)
    if call.method in _TASKS and not call.declares_tasks:
        data: dict[str, Any] = {"requiredCapabilities": {"extensions": {protocol.TASKS: {}}}}
        raise RpcError(MISSING_CAPABILITY, f"The request must declare {protocol.TASKS}", data)
    try:
        result = methods[call.method](call)
    except results.REFUSED as error:
        raise RpcError(protocol.INVALID_PARAMS, results.reason(error)) from None
    if not call.is_modern:
        return result
    cache = CACHE if call.method in CACHED else {}
    return {"resultType": "complete", **result, **cache, "_meta": {protocol.SERVER_KEY: SERVER}}


@blueprint.route(MCP_PATH, methods=OTHER_METHODS, provide_automatic_options=False)
def refuse() -> Response:
    """Reject other methods, after the same checks; respond to CORS preflight requests."""
    if _is_preflight():
        return FastResponse(status=204)
    raise MethodNotAllowed(["POST"])


@blueprint.before_request
def require_access() -> None:
    """Check the host, origin and key of a request, before its method. Raises 401 and 403."""
    host, origin = request.environ.get("HTTP_HOST", ""), request.environ.get("HTTP_ORIGIN")
    # A web page whose name resolves to this machine (DNS rebinding) has another host.
    if _is_local() and not is_loopback(url_parts(f"//{host}").hostname):
        detail = (
            "The service listens on loopback only, so the Host must be a loopback name; behind a "
            "reverse proxy, set TASKSERVICE_PROXY_HOPS"
        )
        raise Problem(403, detail, code=FOREIGN_ORIGIN)
    if origin is not None and not _is_allowed(origin):
        detail = "Pages of this Origin are not allowed; add it to TASKSERVICE_MCP_ORIGINS"
        raise Problem(403, detail, code=FOREIGN_ORIGIN)
    if not _is_preflight():
        authenticate()


@blueprint.after_request
def add_headers(response: Response) -> Response:
    """Vary responses by key and origin, and let pages of allowed origins read them."""
    headers, origin = response.headers, request.environ.get("HTTP_ORIGIN")
    headers.add("Vary", f"{KEY_HEADERS}, Origin")
    if origin is not None and _is_allowed(origin):
        headers["Access-Control-Allow-Origin"] = origin
        if _is_preflight():
            requested = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Allow-Methods"] = "POST"
            headers["Access-Control-Allow-Headers"] = requested
            headers["Access-Control-Max-Age"] = "7200"
        else:
            headers["Access-Control-Expose-Headers"] = "Retry-After, WWW-Authenticate, X-Request-Id"
    return response


def _is_preflight() -> bool:
    """Whether this is a CORS preflight request, which browsers send without a key."""
    names = ("Origin", "Access-Control-Request-Method")
    return request.method == "OPTIONS" and all(name in request.headers for name in names)


def _is_allowed(origin: str) -> bool:
    is_own = _is_local() and is_loopback(url_parts(origin).hostname)
    return is_own or origin in current_app.config["MCP_ORIGINS"]


def _is_local() -> bool:
    """Whether only programs on this machine can connect, without a proxy."""
    config = current_app.config
    return not config["PROXY_HOPS"] and is_loopback(url_parts(f"//{config['BIND']}").hostname)


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)
