"""The service's own log: a line for each request, as text or JSON, and never a secret."""

import json
import logging
import re
import sys
import time
from typing import Any

from flask import Flask, Response, g, request

from taskservice.stamps import new_id, now

logger = logging.getLogger("taskservice.request")

_SECRET = re.compile(r"(tsk_(?:user|agent)_|whsec_)[0-9A-Za-z+/=_-]+")
# A path may hold a line end, which would write a line of the caller's own.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_OWN = ("taskservice", "gunicorn.error")


def _escaped(character: re.Match[str]) -> str:
    return ascii(character[0])[1:-1]


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        more = "".join(f" {name}={value}" for name, value in _details(record).items())
        message = _CONTROL.sub(_escaped, f"{record.getMessage()}{more}")
        text = f"{now()} {record.levelname:7} {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return _SECRET.sub(r"\1…", text)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": now(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_details(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _SECRET.sub(r"\1…", json.dumps(entry))


def _details(record: logging.LogRecord) -> dict[str, Any]:
    details: dict[str, Any] = getattr(record, "details", {})
    return details


def configure_logging(level: str, form: str) -> None:
    """Send our own log, and gunicorn's, to stderr; `form` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    for name in _OWN:
        own = logging.getLogger(name)
        own.handlers[:] = [handler]
        own.propagate = False
        own.setLevel(level.upper())


def init_app(app: Flask) -> None:
    """Give each request an id, taken from `X-Request-Id` or made, and a line in the log."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    g.started = time.perf_counter()
    taken = request.headers.get("X-Request-Id", "")
    g.request_id = taken if _REQUEST_ID.fullmatch(taken) else new_id()


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    if logger.isEnabledFor(logging.INFO):
        # The path only: a query may hold what somebody wrongly put there.
        details = {
            "status": response.status_code,
            "ms": round((time.perf_counter() - g.started) * 1000, 1),
            "request": g.request_id,
        }
        logger.info("%s %s", request.method, request.path, extra={"details": details})
    return response
