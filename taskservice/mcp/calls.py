"""A request of a client: its era, the check of its headers, and what its client can do."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NamedTuple

from werkzeug.datastructures import Headers

from taskservice.mcp.protocol import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    UNSUPPORTED_VERSION,
    Message,
    RpcError,
)

MODERN = "2026-07-28"
# Those that open with `initialize`, the newest first.
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
VERSIONS = (MODERN, *LEGACY)

VERSION_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
SERVER_KEY = "io.modelcontextprotocol/serverInfo"
TASKS = "io.modelcontextprotocol/tasks"

# Method -> the parameter that the header `Mcp-Name` repeats.
NAMED_BY = {
    "tools/call": "name",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
_BASE64 = ("=?base64?", "?=")


class Call(NamedTuple):
    """A request whose headers fit it; `capabilities` are what its client declares with it."""

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
        """Whether its client shows forms to a person; without modes, forms are meant."""
        modes = self.capabilities.get("elicitation")
        return isinstance(modes, dict) and (not modes or "form" in modes)


def read(message: Message, headers: Headers) -> Call:
    """The call of a message, if its headers fit. Raises RpcError."""
    meta = _object(message.params.get("_meta"))
    version = _header(headers, "MCP-Protocol-Version")
    is_modern = VERSION_KEY in meta or version not in (None, *LEGACY)
    if not is_modern:
        return Call(message.method, message.params, is_modern, {})
    _check_version(meta, version)
    _check_capabilities(meta)
    _check_routing(message, headers)
    return Call(message.method, message.params, is_modern, meta[CAPABILITIES_KEY])


def _check_version(meta: Mapping[str, Any], header: str | None) -> None:
    version = meta.get(VERSION_KEY, header)
    if version != header:
        raise RpcError(HEADER_MISMATCH, f"MCP-Protocol-Version differs from {VERSION_KEY}")
    if version != MODERN:
        data = {"supported": VERSIONS, "requested": version}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def _check_capabilities(meta: Mapping[str, Any]) -> None:
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise RpcError(INVALID_PARAMS, f"_meta lacks {', '.join(missing)}", status=400)
    if not isinstance(meta[CAPABILITIES_KEY], dict):
        raise RpcError(INVALID_PARAMS, f"{CAPABILITIES_KEY} must be an object", status=400)


def _check_routing(message: Message, headers: Headers) -> None:
    """Raises -32020 unless the headers by which proxies route are those of the body."""
    if _header(headers, "Mcp-Method") != message.method:
        raise RpcError(HEADER_MISMATCH, "Mcp-Method differs from the method")
    if message.method in NAMED_BY:
        parameter, given = NAMED_BY[message.method], _header(headers, "Mcp-Name")
        # Some clients leave it out for tasks.
        is_needed = message.method == "tools/call" or given is not None
        if is_needed and _decoded(given) != message.params.get(parameter):
            raise RpcError(HEADER_MISMATCH, f"Mcp-Name differs from {parameter}")


def _header(headers: Headers, name: str) -> str | None:
    value = headers.get(name)
    return None if value is None else value.strip(" \t")


def _decoded(value: str | None) -> str | None:
    """A header's value; of the form for what a header cannot contain, the text inside."""
    before, after = _BASE64
    if value is None or not (value.startswith(before) and value.endswith(after)):
        return value
    try:
        return base64.b64decode(value[len(before) : -len(after)], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        # No name: it contains what is no character of one.
        return "\0"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
