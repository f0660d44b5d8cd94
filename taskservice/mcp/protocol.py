"""JSON-RPC 2.0: the message of a request, and the errors that answer one."""

from typing import Any, NamedTuple

import orjson

from taskservice.schemas import strict_json

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022

# Those of the request itself; the others are 200, unless the error says otherwise.
_STATUSES = dict.fromkeys(
    (PARSE_ERROR, INVALID_REQUEST, HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION), 400
)


class RpcError(Exception):
    """An error of JSON-RPC, with the status of its HTTP answer."""

    def __init__(
        self, code: int, message: str, data: Any = None, *, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status or _STATUSES.get(code, 200)
        self.json = {"code": code, "message": message}
        if data is not None:
            self.json["data"] = data


class Message(NamedTuple):
    """A request, or without an id a notification, which has no answer."""

    method: str
    params: dict[str, Any]
    id: Any
    is_notification: bool


def read(data: bytes) -> Message:
    """The message in the body of a request. Raises RpcError."""
    try:
        value = strict_json.loads(data)
    except (strict_json.NotJson, strict_json.UnsupportedNumber) as error:
        raise RpcError(PARSE_ERROR, f"The body cannot be read as JSON: {error}") from None
    if not _is_request(value):
        raise RpcError(INVALID_REQUEST, "The body must be one request of JSON-RPC 2.0")
    return Message(value["method"], value.get("params", {}), value.get("id"), "id" not in value)


def _is_request(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("jsonrpc") == "2.0"
        and isinstance(value.get("method"), str)
        and isinstance(value.get("params", {}), dict)
        and _is_id(value.get("id", ""))
    )


def _is_id(value: Any) -> bool:
    # A number that Python would round is kept as its text.
    return isinstance(value, str | int | float | orjson.Fragment) and not isinstance(value, bool)


def result(message_id: Any, value: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message_id, "result": value}


def error(message_id: Any, raised: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": message_id, "error": raised.json}
