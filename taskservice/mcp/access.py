"""Who may call `/mcp`: the host and the origin of a request, and its key."""

from flask import current_app, request

from taskservice.auth import authenticate, caller
from taskservice.context import current
from taskservice.errors import Problem
from taskservice.terms import FOREIGN_ORIGIN
from taskservice.web.request import is_loopback, url_parts

PATH = "/mcp"
EXPOSED = "Retry-After, WWW-Authenticate, X-Request-Id"


def require_access() -> None:
    """Check a request to `/mcp` before its route and body are. Raises 401 and 403."""
    if current(request).path == PATH:
        _check_host()
        _check_origin()
        if not is_preflight():
            authenticate()
            caller.require_user_key()


def is_preflight() -> bool:
    """Whether a browser asks if a page may send a request (CORS), which it does without a key."""
    if current(request).path != PATH or request.method != "OPTIONS":
        return False
    return "Origin" in request.headers and "Access-Control-Request-Method" in request.headers


def headers_for_browsers() -> dict[str, str]:
    """The headers with which a browser lets a page of an allowed origin read the answer."""
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is None or not _may_call(origin):
        return {}
    allowed = {"Access-Control-Allow-Origin": origin}
    if not is_preflight():
        return {**allowed, "Access-Control-Expose-Headers": EXPOSED}
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    return {
        **allowed,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": wanted,
        "Access-Control-Max-Age": "7200",
    }


def _check_host() -> None:
    """A page of the web whose name leads to this machine (DNS rebinding) has another host."""
    host = request.environ.get("HTTP_HOST", "")
    if _is_local() and not is_loopback(url_parts(f"//{host}").hostname):
        detail = (
            "The service listens on loopback only, so the Host must be too; behind a reverse "
            "proxy set TASKSERVICE_PROXY_HOPS"
        )
        raise Problem(403, detail, code=FOREIGN_ORIGIN)


def _check_origin() -> None:
    origin = request.environ.get("HTTP_ORIGIN")
    if origin is not None and not _may_call(origin):
        detail = "Pages of this Origin may not call; add it to TASKSERVICE_MCP_ORIGINS"
        raise Problem(403, detail, code=FOREIGN_ORIGIN)


def _may_call(origin: str) -> bool:
    is_own = _is_local() and is_loopback(url_parts(origin).hostname)
    return is_own or origin in current_app.config["MCP_ORIGINS"]


def _is_local() -> bool:
    """Whether programs on this machine alone can connect, without a proxy in front."""
    config = current_app.config
    return not config["PROXY_HOPS"] and is_loopback(url_parts(f"//{config['BIND']}").hostname)
