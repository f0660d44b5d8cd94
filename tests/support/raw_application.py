"""The WSGI application behind the gunicorn that tests speak raw HTTP to."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from taskservice import resources
from taskservice.operations import metrics


def application(  # noqa: C901 - a list of behaviours
    environ: dict[str, Any], start_response: Any
) -> Iterable[bytes]:
    def answer(body: bytes, status: str = "200 OK") -> list[bytes]:
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    def pieces(*parts: bytes) -> Iterator[bytes]:
        start_response("200 OK", [])
        return iter(parts)

    path, argument = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/hello":
        return answer(b"hello")
    if path == "/echo":
        return answer(environ["wsgi.input"].read())
    if path == "/lines":
        return answer(b"|".join(environ["wsgi.input"]))
    if path == "/environ":
        return answer(json.dumps({k: v for k, v in environ.items() if type(v) is str}).encode())
    if path == "/metrics":
        return answer("".join(metrics.requests.metrics(0)).encode())
    if path == "/unread":
        return answer(b"no", "401 Unauthorized")
    if path == "/sleep":
        print("begun", flush=True)
        time.sleep(float(argument))
        return answer(b"slept")
    if path == "/wait":
        resources.stopping.wait(30)
        return answer(b"waited")
    if path == "/large":
        return answer(bytes(int(argument)))
    if path == "/pieces":
        return pieces(b"first", b"", b"last")
    if path == "/pid":
        return answer(str(os.getpid()).encode())
    if path == "/fail":
        raise ValueError("a secret")
    if path == "/bad-header":
        start_response("200 OK", [("X-Split", "a\r\nb")])
    if path == "/break":
        start_response("200 OK", [])
        return breaking()
    if path == "/late-failure":
        start_response("200 OK", [("Content-Length", "5")])
        return Closing([b"whole"])
    if path == "/stream":
        start_response("200 OK", [])
        return stream()
    return answer(environ["REQUEST_METHOD"].encode(), "404 Not Found")


class Closing(list[bytes]):
    def close(self) -> None:
        raise ValueError("a secret")


def stream() -> Iterator[bytes]:
    yield b"begin"
    while not resources.stopping.wait(0.05):
        yield b"event"
    yield b"end"


def breaking() -> Iterator[bytes]:
    yield b"part"
    raise ValueError("a secret")
