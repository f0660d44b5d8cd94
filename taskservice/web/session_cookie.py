"""The cookie of the dashboard's sessions."""

import hmac

from flask import Flask, Request, request
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface

from taskservice.terms import API_PREFIX

_NO_SESSION = NullSession()


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, in a cookie for this service alone; requests to the API have none.

    Its path is the prefix of the service behind a proxy. Its name differs between services
    on one host, since browsers share cookies between ports.
    """

    def __init__(self, secret_key: str) -> None:
        digest = hmac.digest(secret_key.encode(), b"cookie name", "sha256")
        self._cookie_name = f"taskservice-{digest.hex()[:8]}"

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        # The API should not pay for what only pages use.
        is_api = request.path.startswith(f"{API_PREFIX}/")
        return _NO_SESSION if is_api else super().open_session(app, request)

    def get_cookie_name(self, app: Flask) -> str:
        return self._cookie_name

    def get_cookie_path(self, app: Flask) -> str:
        return f"{request.script_root}/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure
