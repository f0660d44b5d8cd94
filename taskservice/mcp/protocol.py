"""JSON-RPC 2.0 and MCP: the message of a request, its errors, its headers, and access."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from flask import current_app, request
from werkzeug.datastructures import Headers

from taskservice.auth import authenticate
from taskservice.errors import Problem
from taskservice.schemas import strict_json
from taskservice.terms import FOREIGN_ORIGIN
from taskservice.web.request import is_loopback, url_parts

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022

# Errors of the request itself; others are 200, unless they have a status of their own.
_STATUSES = dict.fromkeys(
    (PARSE_ERROR, INVALID_REQUEST, HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION), 400
)


class RpcError(Exception):
    """A JSON-RPC error, with the status of its HTTP response."""

    def __init__(
        self, code: int, message: str, data: Any = None, *, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status or _STATUSES.get(code, 200)
        self.json = {"code": code, "message": message}
        if data is not None:
            self.json["data"] = data


class Message(NamedTuple):
    """A request, or without an id a notification, which gets no response."""

    method: str
    params: dict[str, Any]
    id: Any
    is_notification: bool


def read_message(data: bytes) -> Message:
    """The message in the body of a request. Raises RpcError."""
    try:
        value = strict_json.loads(data)
    except (strict_json.NotJson, strict_json.UnsupportedNumber) as error:
        raise RpcError(PARSE_ERROR, f"The body cannot be read as JSON: {error}") from None
    if not (
        isinstance(value, dict)
        and value.get("jsonrpc") == "2.0"
        and isinstance(value.get("method"), str)
        and isinstance(value.get("params", {}), dict)
        # A number that Python would round is kept as its text.
        and isinstance(value.get("id", ""), str | int | float | orjson.Fragment)
        and not isinstance(value.get("id"), bool)
    ):
        raise RpcError(INVALID_REQUEST, "The body must be one JSON-RPC 2.0 request")
    return Message(value["method"], value.get("params", {}), value.get("id"), "id" not in value)


# A client's request: its era, the check of its headers, and the client's capabilities.

MODERN = "2026-07-28"
# The versions that begin with `initialize`, newest first.
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
VERSIONS = (MODERN, *LEGACY)

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
TASKS = "io.modelcontextprotocol/tasks"
EVENTS = "io.modelcontextprotocol/events"

# Method -> the parameter that the header `Mcp-Name` repeats.
NAMED_BY = {"tools/call": "name"}
NAMED_BY |= dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId")
NAMED_BY |= dict.fromkeys(("events/poll", "events/subscribe", "events/unsubscribe"), "name")
_BASE64 = ("=?base64?", "?=")


class Call(NamedTuple):
    """A request whose headers match its body, and the `capabilities` of its client."""

    method: str
    params: dict[str, Any]
    is_modern: bool
    capabilities: Mapping[str, Any]

    @property
    def meta(self) -> dict[str, Any]:
        return _object(self.params.get("_meta"))

    @property
    def declares_tasks(self) -> bool:
        return TASKS in _object(self.capabilities.get("extensions"))

    @property
    def takes_forms(self) -> bool:
        """Whether the client shows forms to a person; without modes, it means forms."""
        modes = self.capabilities.get("elicitation")
        return isinstance(modes, dict) and (not modes or "form" in modes)


def read_call(message: Message, headers: Headers) -> Call:
    """The call of a message, if its headers match. Raises RpcError."""
    meta = _object(message.params.get("_meta"))
    version = _header(headers, "MCP-Protocol-Version")
    is_modern = VERSION_KEY in meta or version not in (None, *LEGACY)
    if not is_modern:
        return Call(message.method, message.params, is_modern, {})
    requested = meta.get(VERSION_KEY, version)
    if requested != version:
        raise RpcError(HEADER_MISMATCH, f"MCP-Protocol-Version differs from {VERSION_KEY}")
    if requested != MODERN:
        data = {"supported": VERSIONS, "requested": requested}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)
    if missing := [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]:
        raise RpcError(INVALID_PARAMS, f"_meta must contain {', '.join(missing)}", status=400)
    if not isinstance(meta[CAPABILITIES_KEY], dict):
        raise RpcError(INVALID_PARAMS, f"{CAPABILITIES_KEY} must be an object", status=400)
    # Proxies route by these headers, so they must match the body.
    if _header(headers, "Mcp-Method") != message.method:
        raise RpcError(HEADER_MISMATCH, "Mcp-Method differs from the method")
    if message.method in NAMED_BY:
        parameter, name = NAMED_BY[message.method], _header(headers, "Mcp-Name")
        # Some clients leave the header out for other methods.
        is_needed = message.method == "tools/call" or name is not None
        if is_needed and _decoded(name) != message.params.get(parameter):
            raise RpcError(HEADER_MISMATCH, f"Mcp-Name differs from {parameter}")
    return Call(message.method, message.params, is_modern, meta[CAPABILITIES_KEY])


def _header(headers: Headers, name: str) -> str | None:
    value = headers.get(name)
    return None if value is None else value.strip(" \t")


def _decoded(value: str | None) -> str | None:
    """The value of a header, decoded if it is in the base64 form for non-ASCII text."""
    before, after = _BASE64
    if value is None or not (value.startswith(before) and value.endswith(after)):
        return value
    try:
        return base64.b64decode(value[len(before) : -len(after)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        # Not a valid name: no name contains NUL.
        return "\0"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# Access to `/mcp`: the host and the origin of a request, and its key.

PATH = "/mcp"
EXPOSED = "Retry-After, WWW-Authenticate, X-Request-Id"


def require_access() -> None:
    """Check the access of a request, before its method and body. Raises 401 and 403."""
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
    if not is_preflight():
        authenticate()


def is_preflight() -> bool:
    """Whether this is a CORS preflight request, which browsers send without a key."""
    headers = request.headers
    has_headers = "Origin" in headers and "Access-Control-Request-Method" in headers
    return request.method == "OPTIONS" and has_headers


def headers_for_browsers() -> dict[str, str]:
    """The CORS headers that let a page of an allowed origin read the response."""
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is None or not _is_allowed(origin):
        return {}
    allowed = {"Access-Control-Allow-Origin": origin}
    if not is_preflight():
        return {**allowed, "Access-Control-Expose-Headers": EXPOSED}
    requested = request.headers.get("Access-Control-Request-Headers", "")
    return {
        **allowed,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": requested,
        "Access-Control-Max-Age": "7200",
    }


def _is_allowed(origin: str) -> bool:
    is_own = _is_local() and is_loopback(url_parts(origin).hostname)
    return is_own or origin in current_app.config["MCP_ORIGINS"]


def _is_local() -> bool:
    """Whether only programs on this machine can connect, without a proxy."""
    config = current_app.config
    return not config["PROXY_HOPS"] and is_loopback(url_parts(f"//{config['BIND']}").hostname)
