"""Checks the key of requests under `/api/v1`, and prevents caching of responses."""

from flask import Response

from taskservice.auth import KEY_HEADERS, authenticate, still_valid
from taskservice.errors import from_exception, invalid_key, respond
from taskservice.http_request import request
from taskservice.terms import API_PREFIX

BELOW_PREFIX = f"{API_PREFIX}/"
# Requests that a read key can send in addition to GET and HEAD.
ALSO_FOR_READ_KEYS = {("POST", f"{API_PREFIX}/sign-in-link")}


def require_key() -> None:
    """Authenticate requests under `/api/v1`. A request without a valid key gets 401, even if no
    route matches.
    """
    this = request.itself
    if _is_below_prefix(this.path):
        caller = authenticate(this.environ)
        is_read = this.method in ("GET", "HEAD")
        if not is_read and (this.method, this.path) not in ALSO_FOR_READ_KEYS:
            caller.require_full_access()


def refuse_deleted_user(error: Exception) -> Response:
    """Respond with 401 if the user was deleted during the request, otherwise with the error."""
    return respond(from_exception(error) if still_valid() else invalid_key())


def prevent_caching(response: Response) -> Response:
    """Add `Cache-Control: no-store` unless the view set it, and `Vary` with the key headers."""
    headers = response.headers
    if _is_below_prefix(request.path):
        headers.add("Vary", KEY_HEADERS)
    if "Cache-Control" not in headers:
        headers.add("Cache-Control", "no-store")
    return response


def _is_below_prefix(path: str) -> bool:
    return path.startswith(BELOW_PREFIX) or path == API_PREFIX
