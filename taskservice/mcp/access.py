"""Checks the host, origin and key of requests to `/mcp`."""

from flask import Response, current_app, request

from taskservice.auth import KEY_HEADERS, authenticate
from taskservice.error_codes import FOREIGN_ORIGIN
from taskservice.errors import Problem
from taskservice.web.request import is_loopback, url_parts


def require_access() -> None:
    """Check the host, origin and key of a request. Raises 401 and 403."""
    if _is_local():
        _check_origin(request.environ.get("HTTP_HOST", ""), request.environ.get("HTTP_ORIGIN"))
    authenticate(request.environ)


def add_vary(response: Response) -> Response:
    response.headers.add("Vary", f"{KEY_HEADERS}, Origin")
    return response


def _check_origin(host: str, origin: str | None) -> None:
    """Reject requests that web pages send to this machine. Raises 403."""
    # In a DNS rebinding attack, `Host` contains the domain of the page.
    if not is_loopback(url_parts(f"//{host}").hostname):
        detail = (
            "The service listens on loopback only, so the Host must be a loopback name; behind a "
            "reverse proxy, set TASKSERVICE_PROXY_HOPS"
        )
        raise Problem(403, detail, code=FOREIGN_ORIGIN)
    if origin is not None and not is_loopback(url_parts(origin).hostname):
        detail = "The service listens on loopback only, so the Origin must be a loopback name"
        raise Problem(403, detail, code=FOREIGN_ORIGIN)


def _is_local() -> bool:
    """Whether only programs on this machine can connect, and there is no proxy."""
    config = current_app.config
    return not config["PROXY_HOPS"] and is_loopback(url_parts(f"//{config['BIND']}").hostname)
