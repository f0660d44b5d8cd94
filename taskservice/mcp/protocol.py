"""Reads the message and the headers of a request, as JSON-RPC 2.0 and MCP specify."""

import base64
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from werkzeug.datastructures import Headers

from taskservice.schemas import strict_json

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022


class RpcError(Exception):
    """A JSON-RPC error, with the status of the response."""

    def __init__(self, code: int, message: str, data: Any = None, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status or (200 if code == INVALID_PARAMS else 400)
        self.json = {"code": code, "message": message} | ({} if data is None else {"data": data})


MODERN = "2026-07-28"
# The protocol versions in which the first call is `initialize`, newest first.
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
VERSIONS = (MODERN, *LEGACY)

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
TASKS = "io.modelcontextprotocol/tasks"

# For each method, the parameter that the header `Mcp-Name` repeats.
NAMED_BY = {"tools/call": "name"}
NAMED_BY |= dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId")


class Call(NamedTuple):
    """A JSON-RPC request, or a notification, which has no ID and gets no result."""

    method: str
    params: dict[str, Any]
    id: Any
    is_notification: bool
    is_modern: bool = False
    # The client's capabilities; empty for the LEGACY versions, whose calls contain no capabilities.
    capabilities: Mapping[str, Any] = {}

    @property
    def meta(self) -> dict[str, Any]:
        return _object(self.params.get("_meta"))

    @property
    def declares_tasks(self) -> bool:
        return TASKS in _object(self.capabilities.get("extensions"))

    @property
    def takes_forms(self) -> bool:
        """Whether the client shows forms to a person; an empty capability includes forms."""
        modes = self.capabilities.get("elicitation")
        return isinstance(modes, dict) and (not modes or "form" in modes)


# Maximum size of a call in bytes, without its arguments and answers.
MAX_KEPT = 64 * 1024


def read_call(data: bytes) -> Call:
    """The call in the body of a request, without data from the headers. Raises RpcError."""
    try:
        value = strict_json.loads_request(data)
    except (strict_json.NotJson, strict_json.UnsupportedNumber) as error:
        raise RpcError(PARSE_ERROR, f"The body cannot be read as JSON: {error}") from None
    if not (
        isinstance(value, dict)
        and value.get("jsonrpc") == "2.0"
        and isinstance(value.get("method"), str)
        and isinstance(value.get("params", {}), dict)
        # The strict parser returns a Fragment for a number that Python would round.
        and isinstance(value.get("id", ""), str | int | float | orjson.Fragment)
        and not isinstance(value.get("id"), bool)
    ):
        raise RpcError(INVALID_REQUEST, "The body must be one JSON-RPC 2.0 request")
    params = value.get("params", {})
    others = {name: params[name] for name in params if name not in ("arguments", "inputResponses")}
    # All members except arguments and answers remain in memory while the call waits.
    if len(strict_json.dumps(value | {"params": others})) > MAX_KEPT:
        detail = "A request can have at most 64 KiB, not counting arguments and inputResponses"
        raise RpcError(INVALID_REQUEST, detail)
    return Call(value["method"], params, value.get("id"), "id" not in value)


def with_era(call: Call, headers: Headers) -> Call:
    """The call, with `is_modern` and `capabilities` set. Raises RpcError."""
    meta, version = call.meta, _header(headers, "MCP-Protocol-Version")
    if VERSION_KEY not in meta and version in (None, *LEGACY):
        return call
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
    if _header(headers, "Mcp-Method") != call.method:
        raise RpcError(HEADER_MISMATCH, "Mcp-Method differs from the method")
    if call.method in NAMED_BY:
        parameter, name = NAMED_BY[call.method], _header(headers, "Mcp-Name")
        # Some clients do not send `Mcp-Name` in calls about tasks.
        is_needed = call.method == "tools/call" or name is not None
        if is_needed and _decoded(name) != call.params.get(parameter):
            raise RpcError(HEADER_MISMATCH, f"Mcp-Name differs from {parameter}")
    return call._replace(is_modern=True, capabilities=meta[CAPABILITIES_KEY])


def _header(headers: Headers, name: str) -> str | None:
    value = headers.get(name)
    return None if value is None else value.strip(" \t")


def _decoded(value: str | None) -> str | None:
    """The value of a header, decoded if it is in the base64 form for non-ASCII text."""
    match = re.fullmatch(r"=\?base64\?(.*)\?=", value or "", re.DOTALL)
    if match is None:
        return value
    try:
        return base64.b64decode(match[1], validate=True).decode()
    except ValueError:
        # Return a text that can't be a name, since names contain no NUL.
        return "\0"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
