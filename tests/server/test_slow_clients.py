"""Slow and idle clients of the real service, over real sockets."""

import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.api_client import RemoteClient
from tests.support.deployed_nginx import DeployedNginx
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

Connect = Callable[[], socket.socket]
MIB = 1024 * 1024
LINE = "x" * 65_535
# More than the kernel keeps for the readers below.
LOG_BYTES = 20 * MIB
SLOW_BYTES = 10_000


def connect(port: int) -> socket.socket:
    """A client that lets the kernel keep as little as possible of what it has not read."""
    client = socket.socket()
    client.settimeout(PATIENCE_SECONDS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.connect(("127.0.0.1", port))
    return client


def task_with_log(alice: RemoteClient) -> str:
    """The path of the log of a new task, which has `LOG_BYTES`."""
    path = f"/task/{alice.start()['id']}/logs"
    text = f"{LINE}\n" * (LOG_BYTES // 4 // MIB * 16)
    for _ in range(4):
        alice.request(
            "POST", path, data=text, headers={"Content-Type": "text/plain"}
        ).raise_for_status()
    return f"/api/v1{path}"


def get(path: str, key: str | None = None) -> bytes:
    headers = [f"apikey: {key}"] if key else []
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def bytes_of_slow_reader(client: socket.socket, request: bytes) -> int:
    """Read 10 KB a second for 40 s, then the rest; the length of all that arrived."""
    with client:
        client.sendall(request)
        size = 0
        for _ in range(40):
            size += len(client.recv(SLOW_BYTES))
            time.sleep(1)
        while piece := client.recv(MIB):
            size += len(piece)
    return size


def test_reader_of_10_kb_a_second_is_not_cut_off(tmp_path: Path) -> None:
    with (
        Service(tmp_path / "data", PROXY_HOPS="1") as service,
        DeployedNginx(tmp_path / "nginx", [service.port]) as nginx,
        ThreadPoolExecutor() as pool,
    ):
        alice = service.add_user()
        key = str(alice.session.headers["apikey"])
        path = task_with_log(alice)
        headers = "Accept: text/plain\r\nConnection: close\r\n\r\n"

        def request(prefix: str) -> bytes:
            return get(f"{prefix}{path}", key)[:-2] + headers.encode()

        trusted = ssl.create_default_context(cafile=str(nginx.authority))
        tls = trusted.wrap_socket(
            connect(int(urlsplit(nginx.url).port or 0)), server_hostname="localhost"
        )
        through_nginx = pool.submit(bytes_of_slow_reader, tls, request("/tasks"))
        directly = pool.submit(bytes_of_slow_reader, connect(service.port), request(""))
        assert directly.result() > LOG_BYTES
        assert through_nginx.result() > LOG_BYTES
