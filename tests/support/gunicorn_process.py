"""A real gunicorn in its own process, on a port of its own, for tests that speak raw HTTP to it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parent.parent
THREADS = 4
MIB = 1024 * 1024
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"

APPLICATION = """
import json, os, socket, threading, time
from taskservice import metrics, stopping

def application(environ, start_response):
    def answer(body, status="200 OK"):
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    def pieces(*parts):
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
        return answer(metrics.text(metrics.requests.metrics()).encode())
    if path == "/unread":
        return answer(b"no", "401 Unauthorized")
    if path == "/sleep":
        time.sleep(float(argument))
        return answer(b"slept")
    if path == "/wait":
        stopping.event.wait(30)
        return answer(b"waited")
    if path == "/large":
        return answer(bytes(int(argument)))
    if path == "/pieces":
        return pieces(b"first", b"", b"last")
    if path == "/threads":
        return answer(str(threading.active_count()).encode())
    if path == "/stack-size":
        # A stack larger than all of the address space: the machine refuses each new thread.
        threading.stack_size(int(argument))
        return answer(b"set")
    if path == "/pid":
        return answer(str(os.getpid()).encode())
    if path == "/fail":
        raise ValueError("a secret")
    if path == "/exit":
        raise SystemExit(1)
    if path == "/os-error":
        open("/nowhere/at/all")
    if path == "/bad-header":
        start_response("200 OK", [("X-Split", "a\\r\\nb")])
    if path == "/short":
        start_response("200 OK", [("Content-Length", "10")])
        return [b"short"]
    if path == "/break":
        start_response("200 OK", [])
        return breaking()
    if path == "/late-failure":
        start_response("200 OK", [("Content-Length", "5")])
        return Closing([b"whole"])
    if path == "/user-timeout":
        option = environ["gunicorn.socket"].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        return answer(str(option).encode())
    if path == "/stream":
        start_response("200 OK", [])
        return stream()
    return answer(environ["REQUEST_METHOD"].encode(), "404 Not Found")

class Closing(list):
    def close(self):
        raise ValueError("a secret")

def stream():
    yield b"begin"
    while not stopping.event.wait(0.05):
        yield b"event"
    yield b"end"

def breaking():
    yield b"part"
    raise ValueError("a secret")
"""

# As in earnest, but with less patience, and what a test wants otherwise.
SETTINGS = """
from taskservice.serving.gunicorn_config import *

settle = post_fork

def post_fork(arbiter, worker):
    settle(arbiter, worker)
    worker.request_seconds = worker.answer_seconds = worker.linger_seconds = 0.7
    worker.sweep_seconds = 0.1
    for name, value in {attributes}.items():
        setattr(worker, name, value)

globals().update({settings})
"""

SERVE = """
from application import application
from taskservice.config import Config
from taskservice.serving.application import serve

serve(lambda: application, Config.from_environment())
"""

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "settings.py", "application:application"]
EMBEDDED = [sys.executable, "serve.py"]

Result = TypeVar("Result")


class GunicornProcess:
    """A server in a process group of its own; it serves once `wait_until_it_serves` is back."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | _surroundings(folder) | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.port = 0

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_until_it_serves(self) -> None:
        listening = until(lambda: re.search(r"Listening at: \S+:(\d+)", self.log) or self._over())
        self.port = int(listening[1])
        self.ask(HELLO)

    def _over(self) -> None:
        assert self.process.poll() is None, self.log

    def connect(self, data: bytes = b"", *, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        client.settimeout(10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client

    def ask(self, data: bytes) -> bytes:
        """All that the server sends until it closes; it is told that no more comes after `data`."""
        with self.connect(data) as client:
            client.shutdown(socket.SHUT_WR)
            return read_to_end(client)

    def get(self, path: str, *headers: str) -> bytes:
        """The body of the answer to an ordinary request on a connection of its own."""
        lines = [f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]
        return self.ask("\r\n".join(lines).encode("latin-1")).partition(b"\r\n\r\n")[2]

    def seconds_to_answer(self) -> float:
        began = time.monotonic()
        assert self.get("/hello") == b"hello"
        return time.monotonic() - began

    def worker(self) -> int:
        """The process id of the worker that happens to answer."""
        return int(self.get("/pid"))

    def seconds_to_end(self, signum: int) -> float:
        """How long the process takes to end after this signal."""
        began = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(10)
        return time.monotonic() - began

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(
    folder: Path,
    command: list[str] = GUNICORN,
    *,
    attributes: dict[str, object] | None = None,
    settings: dict[str, object] | None = None,
    **environ: str,
) -> Iterator[GunicornProcess]:
    """A server that serves, with these attributes of its worker and settings of gunicorn."""
    server = unready(folder, command, attributes=attributes, settings=settings, **environ)
    try:
        server.wait_until_it_serves()
        yield server
    finally:
        server.kill()


def unready(
    folder: Path,
    command: list[str] = GUNICORN,
    *,
    attributes: dict[str, object] | None = None,
    settings: dict[str, object] | None = None,
    **environ: str,
) -> GunicornProcess:
    """A server that has just been told to start, and must be waited for or killed."""
    (folder / "application.py").write_text(APPLICATION)
    (folder / "serve.py").write_text(SERVE)
    text = SETTINGS.format(attributes=attributes or {}, settings=settings or {})
    (folder / "settings.py").write_text(text)
    return GunicornProcess(command, folder, environ)


def _surroundings(folder: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{ROOT}:{folder}",
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "TASKSERVICE_DATA": str(folder / "data"),
        "TASKSERVICE_BIND": "127.0.0.1:0",
        "TASKSERVICE_THREADS": str(THREADS),
        "TASKSERVICE_MAX_BODY": str(2 * MIB),
    }


def until(happened: Callable[[], Result]) -> Result:
    """What `happened` says as soon as that is true, within 10 s."""
    deadline = time.monotonic() + 10
    while not (result := happened()):
        assert time.monotonic() < deadline, "It did not happen within 10 s"
        time.sleep(0.02)
    return result


def read_to_end(client: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is a ConnectionResetError."""
    answer = b""
    while piece := client.recv(MIB):
        answer += piece
    return answer


def read_bodies(client: socket.socket, count: int = 1) -> list[bytes]:
    """The bodies of the next answers, measured by their Content-Length."""
    bodies = []
    with client.makefile("rb") as stream:
        for _ in range(count):
            head = b"".join(iter(stream.readline, b"\r\n"))
            bodies.append(stream.read(int(re.search(rb"(?i)content-length: (\d+)", head)[1])))
    return bodies


def post(body: bytes, *headers: str, path: str = "/echo", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes, path: str = "/echo") -> bytes:
    """A request with a body in these chunks; an empty one is the last."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
