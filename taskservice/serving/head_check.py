"""Checks the API key of a request by its head, before a large body arrives."""

from typing import Any

from flask import Flask, Response, g, request

from taskservice.api import require_key
from taskservice.auth import caller
from taskservice.mcp import protocol
from taskservice.operations import request_log


class RefusedByApplicationError(Exception):
    """The application refuses the request by its head, with `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def find_owner(app: Flask, environ: dict[str, Any]) -> str | None:
    """The id of the user whose key the request has; None for a route that needs no key.

    Raises RefusedByApplicationError.
    """
    with app.request_context(environ):
        request_log.begin()
        try:
            require_key()
            if request.path == protocol.PATH:
                protocol.require_access()
        except Exception as error:
            answer = app.handle_user_exception(error)
            raise RefusedByApplicationError(app.finalize_request(answer)) from error
        return caller.user_id if "caller" in g else None
