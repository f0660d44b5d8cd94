"""Long headers of strangers: read in a time that grows as their length does."""

import time
from dataclasses import replace
from itertools import product

import pytest
from flask import Flask
from werkzeug.test import create_environ, run_wsgi_app

from taskservice.config import Config
from tests.support.marks import one_database

# All that anything in front of the views could read, and what only other programs have.
HEADERS = (
    "Cookie", "Accept", "Accept-Encoding", "Accept-Language", "Accept-Charset",
    "Authorization", "Apikey", "Cache-Control", "Content-Encoding", "Content-Type", "Expect",
    "Forwarded", "Host", "Idempotency-Key", "If-Match", "If-None-Match", "If-Modified-Since",
    "If-Range", "If-Unmodified-Since", "Last-Event-ID", "Mcp-Method", "Mcp-Name",
    "Mcp-Protocol-Version", "Origin", "Pragma", "Prefer", "Range", "Referer",
    "Sec-Fetch-Site", "Traceparent", "Transfer-Encoding", "User-Agent", "X-Forwarded-For",
    "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Proto",
    "X-Request-Id", "X-Remote-User", "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
)  # fmt: skip
BEGINNINGS = ("", "a=", 'a="', "a/b;c=", "multipart/form-data; boundary=")
UNITS = ("\t", " ", "a", ",", ";", '"', "\\", "a=b;", '"a",', '\\"', "a*0=b;", "a/b;c=d,")
ENDS = ("", 'x";', "/")
SHAPES = list(product(BEGINNINGS, UNITS, ENDS))
# Their number has no common divisor with those above, so that each sees each unit and end.
REQUESTS = (
    ("GET", "/nowhere"), ("POST", "/sign-in"), ("POST", "/mcp"), ("GET", "/docs"),
    ("GET", "/favicon.ico"),
)  # fmt: skip
LENGTH = 64 * 1024
# All headers of one request together take 0.3 s; one header in quadratic time takes 10 s or more.
MAX_SECONDS = 3.0


@pytest.fixture
def config(standard_config: Config) -> Config:
    return replace(standard_config, PROXY_HOPS=1, LOGIN_HEADER="X-Remote-User")


def seconds_for(app: Flask, method: str, path: str, headers: dict[str, str]) -> float:
    """The CPU time of this thread, which other programs of a busy machine don't change."""
    environ = create_environ(path, method=method, data=b"a=b" if method == "POST" else None)
    for name, value in headers.items():
        prefix = "" if name == "Content-Type" else "HTTP_"
        environ[prefix + name.upper().replace("-", "_")] = value
    began = time.thread_time()
    run_wsgi_app(app.wsgi_app, environ, buffered=True)
    return time.thread_time() - began


@one_database
@pytest.mark.filterwarnings("ignore:The '.*' cookie is too large")
def test_header_of_64_kib_without_a_key_is_read_in_linear_time(app: Flask) -> None:
    for number, (begin, unit, end) in enumerate(SHAPES):
        value = begin + unit * (LENGTH // len(unit)) + end
        method, path = REQUESTS[number % len(REQUESTS)]
        seconds = seconds_for(app, method, path, dict.fromkeys(HEADERS, value))
        assert seconds < MAX_SECONDS, (method, path, value[:30], value[-10:])
