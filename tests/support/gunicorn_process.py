"""A real gunicorn in a separate process, for tests that speak raw HTTP to it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tests.support.fork_server import ForkedPopen
from tests.support.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[2]
THREADS = 4
MIB = 1024 * 1024
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


# The real settings with shorter limits, and the test's own settings.
SETTINGS = """
import sys

sys.path.insert(0, {root!r})

from taskservice.serving.gunicorn_config import *

def post_fork(arbiter, worker):
    worker.request_seconds = worker.response_seconds = 0.7
    for name, value in {attributes}.items():
        setattr(worker, name, value)

globals().update({settings})
"""

SERVE = """
import sys

sys.path.insert(0, {root!r})

from tests.support.raw_application import application
from taskservice.config import Config
from taskservice.serving.settings import serve

serve(lambda: application, Config.from_environment())
"""

GUNICORN = [
    sys.executable,
    "-m",
    "gunicorn",
    "-c",
    "settings.py",
    "tests.support.raw_application:application",
]
EMBEDDED = [sys.executable, "serve.py"]

Result = TypeVar("Result")


class Code(str):
    """Text that is put into the settings as it is."""

    __repr__ = str.__str__


class GunicornProcess:
    """A server in a separate process group; it serves when `wait_until_it_serves` returns."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self.folder = folder
        with (folder / "log").open("wb") as log:
            self.process = ForkedPopen(
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
        self.port = int(until(self._listening)[1])
        self.ask(HELLO)

    def _listening(self) -> re.Match[str] | None:
        match = re.search(r"Listening at: \S+:(\d+)", self.log)
        assert match or self.process.poll() is None, self.log
        return match

    def connect(self, data: bytes = b"", *, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        client.settimeout(PATIENCE_SECONDS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client

    def ask(self, data: bytes) -> bytes:
        """All that the server sends until it closes; nothing is sent after `data`."""
        with self.connect(data) as client:
            # A server that resets the connection may have done so already.
            with suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            return read_to_end(client)

    def get(self, path: str, *headers: str) -> bytes:
        """The body of the response to an ordinary request on a new connection."""
        lines = [f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]
        return self.ask("\r\n".join(lines).encode("latin-1")).partition(b"\r\n\r\n")[2]

    def seconds_to_answer(self) -> float:
        began = time.monotonic()
        assert self.get("/hello") == b"hello"
        return time.monotonic() - began

    def worker(self) -> int:
        """The process ID of the worker that responds."""
        return int(self.get("/pid"))

    def end(self, signum: int) -> int:
        """The exit status of the process, which must end after this signal."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(
    folder: Path,
    command: list[str] = GUNICORN,
    *,
    attributes: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
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
    attributes: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    **environ: str,
) -> GunicornProcess:
    """A server that is starting, and must be waited for or killed."""
    (folder / "serve.py").write_text(SERVE.format(root=str(ROOT)))
    text = SETTINGS.format(root=str(ROOT), attributes=attributes or {}, settings=settings or {})
    (folder / "settings.py").write_text(text)
    return GunicornProcess(command, folder, environ)


def _surroundings(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "TASKSERVICE_DATA": str(folder / "data"),
        "TASKSERVICE_BIND": "127.0.0.1:0",
        "TASKSERVICE_THREADS": str(THREADS),
        "TASKSERVICE_MAX_BODY": str(2 * MIB),
    }


def read_to_end(client: socket.socket) -> bytes:
    """All bytes until the server closes; a reset is a ConnectionResetError."""
    answer = b""
    while piece := client.recv(MIB):
        answer += piece
    return answer


def read_bodies(client: socket.socket, count: int = 1) -> list[bytes]:
    """The bodies of the next responses, by their Content-Length."""
    bodies = []
    with client.makefile("rb") as stream:
        for _ in range(count):
            head = b"".join(iter(stream.readline, b"\r\n"))
            (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
            bodies.append(stream.read(int(length)))
    return bodies


def post(body: bytes, *headers: str, path: str = "/echo", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes, path: str = "/echo") -> bytes:
    """A request with a body in these chunks; an empty one is the last."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
