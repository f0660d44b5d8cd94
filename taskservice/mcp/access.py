"""Checks the host, origin and key of requests to `/mcp`, and adds headers for web pages."""

from flask import Response, current_app, request

from taskservice.auth import KEY_HEADERS, authenticate
from taskservice.error_codes import FOREIGN_ORIGIN
from taskservice.errors import Problem
from taskservice.web.request import is_loopback, url_parts


def require_access() -> None:
    """Check the host, origin and key of a request. Raises 401 and 403."""
    host, origin = request.environ.get("HTTP_HOST", ""), request.environ.get("HTTP_ORIGIN")
    # In a DNS rebinding attack, a web page sends requests to this machine, but `Host` contains the
    # domain of the page.
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
        authenticate(request.environ)


def add_headers(response: Response) -> Response:
    """Set `Vary` for the key and the origin; let web pages of allowed origins read the response."""
    headers, origin = response.headers, request.environ.get("HTTP_ORIGIN")
    headers.add("Vary", f"{KEY_HEADERS}, Origin")
    if origin is not None and _is_allowed(origin):
        headers["Access-Control-Allow-Origin"] = origin
        if is_preflight():
            requested = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Allow-Methods"] = "POST"
            headers["Access-Control-Allow-Headers"] = requested
            headers["Access-Control-Max-Age"] = "7200"
        else:
            headers["Access-Control-Expose-Headers"] = "Retry-After, WWW-Authenticate, X-Request-Id"
    return response


def is_preflight() -> bool:
    """Whether this is a CORS preflight request, which browsers send without a key."""
    names = ("Origin", "Access-Control-Request-Method")
    return request.method == "OPTIONS" and all(name in request.headers for name in names)


def _is_allowed(origin: str) -> bool:
    is_own = _is_local() and is_loopback(url_parts(origin).hostname)
    return is_own or origin in current_app.config["MCP_ORIGINS"]


def _is_local() -> bool:
    """Whether only programs on this machine can connect, and there is no proxy."""
    config = current_app.config
    return not config["PROXY_HOPS"] and is_loopback(url_parts(f"//{config['BIND']}").hostname)
