"""The cookie of the dashboard's sessions, here since requests to the API pass it, too."""

from flask import Flask, Request, request
from flask.sessions import NullSession, SecureCookieSession, SecureCookieSessionInterface

from taskservice.terms import API_PREFIX

_NO_SESSION = NullSession()


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, in a cookie for this service alone; requests to the API have none.

    Its path is the prefix of the service behind a proxy.
    """

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        # The API should not pay for what only pages use.
        is_api = request.path.startswith(f"{API_PREFIX}/")
        return _NO_SESSION if is_api else super().open_session(app, request)

    def get_cookie_path(self, app: Flask) -> str:
        return f"{request.script_root}/"

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure
