"""Assigns each request an ID, logs it, and counts it in the metrics."""

import json
import logging
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from flask import Flask, Response, g, has_request_context
from sqlalchemy.exc import OperationalError, TimeoutError

from taskservice import terminal
from taskservice.auth import Caller
from taskservice.database.clock import now
from taskservice.http_request import request, request_id
from taskservice.operations import metrics
from taskservice.terminal import escaped, escaped_lines
from taskservice.terms import API_PREFIX

logger = logging.getLogger("taskservice.request")

_SECRET = re.compile(r"(tsk_[a-z]+_|whsec_|/answer/|/shared/|/sign-in/)[0-9A-Za-z+/=_%-]+")
# Text that could be mistaken for several values, or for a name and a value.
_AMBIGUOUS = re.compile(r"""[\s="\\]|^$""")
# The priorities of syslog, which systemd's journal reads from the beginning of each line.
_PRIORITIES = {"DEBUG": "<7>", "INFO": "<6>", "WARNING": "<4>", "ERROR": "<3>", "CRITICAL": "<3>"}
_APPEND = (f"{API_PREFIX}/task/<task_id>/logs", "POST")


class _Formatter(logging.Formatter):
    """Formats a record as a line of JSON, or as a line of text with details as `name=value`.

    In text, ambiguous values and messages with `=` are quoted and escaped as in JSON, and the lines
    of a traceback are indented: otherwise clients could forge lines or details.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form
        self._has_priority = form != "json" and is_journal()

    def format(self, record: logging.LogRecord) -> str:
        message, details = record.getMessage(), getattr(record, "details", {})
        if has_request_context():
            details = {**details, "requestId": request.id}
        error = record.exc_info[1] if record.exc_info else None
        # A failure of the database needs no traceback.
        is_failure = isinstance(error, OperationalError | TimeoutError)
        reason = str(getattr(error, "orig", error)) if is_failure else ""
        trace = self.formatException(record.exc_info) if record.exc_info and not reason else ""
        if self._form == "json":
            entry = {"at": now(), "level": record.levelname.lower(), "logger": record.name}
            entry |= {"message": message, **details}
            if record.exc_info:
                entry["exception"] = reason or trace
            text = json.dumps(entry)
        else:
            message += f": {reason}" if reason else ""
            shown = _quoted(message) if "=" in message else escaped(message)
            pairs = [f"{name}={_value(value)}" for name, value in details.items()]
            text = " ".join([now(), f"{record.levelname:7}", shown, *pairs])
            if trace:
                text += "\n" + textwrap.indent(escaped_lines(trace), "  ")
        if self._has_priority:
            text = textwrap.indent(text, _PRIORITIES.get(record.levelname, ""), lambda line: True)
        return _SECRET.sub(r"\1…", text)


def _value(value: Any) -> str:
    text = str(value)
    return _quoted(text) if _AMBIGUOUS.search(text) else escaped(text)


def _quoted(text: str) -> str:
    return escaped(json.dumps(text, ensure_ascii=False))


def is_journal() -> bool:
    """Whether systemd's journal reads stderr."""
    with suppress(OSError):
        status = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def log_notices(form: str) -> None:
    """In a process that only serves, log the notices, and the warnings of Python and libraries.

    Otherwise, not every line of the log would be JSON, or have a priority.
    """
    configure_logging("info", form)
    logging.basicConfig(handlers=logging.getLogger("taskservice").handlers)
    logging.captureWarnings(True)
    if form == "json" or is_journal():
        terminal.write_notice = logging.getLogger("taskservice").log


def configure_logging(level: str, form: str, *others: str) -> None:
    """Send the logs of the service and of the loggers `others` to stderr, as `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form))
    for name in ("taskservice", *others):
        named = logging.getLogger(name)
        named.handlers[:] = [handler]
        named.propagate = False
        named.setLevel(level.upper())


def log_extra(headers: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """The argument `extra` for a log line outside of a request.

    It contains the request ID from the headers, or a new ID.
    """
    named = (value for name, value in headers if name.lower() == "x-request-id")
    return {"details": {"requestId": request_id(next(named, ""))}}


def init_app(app: Flask) -> None:
    app.after_request(_end)


def add_details(**details: str) -> None:
    """Add details to the log line of the current request."""
    g.more_details = details


def _end(response: Response) -> Response:
    this = request.itself
    rule, method = this.url_rule, this.method
    response.headers.add("X-Request-Id", this.id)
    seconds = time.perf_counter() - this.began
    metrics.requests.add(rule.rule if rule else None, method, response.status_code, seconds)
    # Most requests are reads, appends, and polls without news; /metrics counts them.
    is_frequent = (
        method in ("GET", "HEAD")
        or response.status_code == 204
        or (rule is not None and (rule.rule, method) == _APPEND)
    )
    level = logging.DEBUG if is_frequent and response.status_code < 400 else logging.INFO
    if logger.isEnabledFor(level):
        details: dict[str, Any] = {"status": response.status_code, "ms": round(seconds * 1000, 1)}
        caller: Caller | None = g.get("caller")
        if caller is not None:
            details |= {"user": caller.user_name, "key": caller.key_name, "keyId": caller.key_id}
        details |= g.get("more_details", {})
        # The query of the URL is not logged, since a client may have put a secret there.
        logger.log(level, "%s %s", method, this.path, extra={"details": details})
    return response
