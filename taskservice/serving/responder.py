"""What a thread of the pool does: run the application on a request and send its response."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http import wsgi

from taskservice.operations import metrics, request_log
from taskservice.serving.connection import Connection
from taskservice.serving.proxies import Application
from taskservice.serving.refusals import INTERNAL, as_response, refusal_for
from taskservice.serving.request_parser import Request
from taskservice.serving.response import Response
from taskservice.serving.sender import ClientGoneError, Sender


class Next(Enum):
    """What to do with a connection after a response."""

    KEEP_ALIVE = 1
    LINGER = 2
    # The response is incomplete.
    RESET = 3


class Responder:
    """Responds to requests; its methods may run in any thread.

    `is_stopping` says whether the worker accepts no further request on a connection.
    """

    def __init__(
        self, cfg: Config, log: Logger, sender: Sender, is_stopping: Callable[[], bool]
    ) -> None:
        self._cfg = cfg
        self._log = log
        self._sender = sender
        self._is_stopping = is_stopping

    def respond(self, connection: Connection, request: Request, application: Application) -> Next:
        response = None
        try:
            response, environ = self.prepare(connection, request)
            self._run(application, response, environ)
        except ClientGoneError as error:
            self._log.debug("A client did not read its response to the end: %s", error)
            return Next.RESET
        except (Exception, SystemExit) as error:
            if response is None or not response.has_begun:
                self.refuse(connection, error, request)
                return Next.LINGER
            self._log_failure("Failed in %s %s", response, error)
        if not response.is_complete:
            self._log_failure("Aborted the response to %s %s", response)
            return Next.RESET
        return Next.LINGER if response.should_close() else Next.KEEP_ALIVE

    def prepare(self, connection: Connection, request: Request) -> tuple[Response, dict[str, Any]]:
        """The response to fill, and the WSGI environ of the request."""
        response, environ = wsgi.create(
            request,
            connection.sock,
            connection.client,
            connection.server,
            self._cfg,
            response_class=Response,
            response_args=(partial(self._sender.send, connection),),
        )
        environ["wsgi.input"] = request.content
        environ["wsgi.multithread"] = True
        if self._is_stopping() or not request.is_complete:
            response.force_close()
        return response, environ

    def _run(self, application: Application, response: Response, environ: dict[str, Any]) -> None:
        began = datetime.now()
        body = application(environ, response.start_response)
        try:
            for piece in body:
                response.write(piece)
            response.close()
        finally:
            if hasattr(body, "close"):
                body.close()
            self._log.access(response, response.req, environ, datetime.now() - began)

    def refuse(
        self, connection: Connection, error: BaseException, request: Request | None = None
    ) -> None:
        """Send what `error` says to the client, or a plain 500, without the application."""
        refusal = refusal_for(error)
        # The application counts all other requests; this one it did not see or did not answer.
        metrics.requests.add(None, request.method if request else "", refusal.status, 0.0)
        request_id = _request_id(request.headers if request else ())
        of_request = request_log.of_request(request_id)
        if refusal is INTERNAL or isinstance(error, MemoryError):
            name = f"{request.method} {request.path}" if request else "a request"
            self._log.error("Could not answer %s", name, exc_info=error, extra=of_request)
        else:
            host = _host(connection.client)
            self._log.info("Refused a request from %s: %s %s", host, *refusal[:2], extra=of_request)
        with suppress(OSError):
            method = request.method if request else None
            connection.sock.send(as_response(refusal, method, request_id))

    def _log_failure(
        self, message: str, response: Response, error: BaseException | None = None
    ) -> None:
        of_request = request_log.of_request(_request_id(response.headers))
        request = response.req
        self._log.error(message, request.method, request.path, exc_info=error, extra=of_request)


def _request_id(headers: Iterable[tuple[str, str]]) -> str:
    """The request id in the headers of a request or response, or a new one."""
    named = (value for name, value in headers if name.lower() == "x-request-id")
    return request_log.request_id(next(named, ""))


def _host(client: Any) -> str:
    """The address of a client; that of a unix socket has none."""
    return str(client[0]) if client else "a local socket"
