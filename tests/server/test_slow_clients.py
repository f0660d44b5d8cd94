"""Slow, idle and waiting clients of the real service, over real sockets."""

import resource
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.deployed_caddy import deployed_caddy
from tests.support.deployed_nginx import DeployedNginx
from tests.support.gunicorn_process import read_to_end
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until

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
        key = alice.key
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


# More than the threads of a process, and those that it starts when all of them are held up.
SLOW_CLIENTS = 12
FEW_THREADS = {"THREADS": "4", "WAITS": "1", "PROXY_HOPS": "1"}


class Proxied:
    """A service with few threads, a user of it, and the address of the proxy in front."""

    def __init__(self, service: Service, url: str, authority: Path) -> None:
        self.alice = service.add_user()
        self.key = str(self.alice.session.headers["apikey"])
        self.port = int(urlsplit(url).port or 0)
        self.trusted = ssl.create_default_context(cafile=str(authority))

    def connect(self, data: bytes) -> socket.socket:
        client = self.trusted.wrap_socket(connect(self.port), server_hostname="localhost")
        client.sendall(data)
        return client

    def get(self, path: str) -> bytes:
        return get(f"/tasks{path}", self.key)


@pytest.fixture(params=["nginx", "caddy"])
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxied]:
    with Service(tmp_path / "data", **FEW_THREADS) as service:
        if request.param == "nginx":
            with DeployedNginx(tmp_path / "proxy", [service.port]) as nginx:
                yield Proxied(service, nginx.url, nginx.authority)
        else:
            with deployed_caddy(tmp_path / "proxy", behind=service.port) as (url, authority):
                yield Proxied(service, url, authority)


def test_slow_requests_through_a_proxy_hold_no_thread(proxied: Proxied) -> None:
    path, body = f"/api/v1/task/{proxied.alice.start()['id']}/logs", b"x\n" * 50_000
    head = proxied.get(path).replace(b"GET", b"POST", 1)[:-2]
    head += b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        slow = [
            stack.enter_context(proxied.connect(head[:50] if number % 3 == 0 else head + body[:9]))
            for number in range(SLOW_CLIENTS)
        ]
        quick = stack.enter_context(proxied.connect(b""))
        for _ in range(3):
            assert status_of(quick, proxied.get("/api/v1/user")) == 200
        # The service has cut off none of them, so the others were quicker than its time limit.
        for number, client in enumerate(slow):
            rest = head[50:] + body if number % 3 == 0 else body[9:]
            assert status_of(client, rest) == 201


def test_slow_readers_through_nginx_hold_no_thread(tmp_path: Path) -> None:
    with (
        Service(tmp_path / "data", **FEW_THREADS) as service,
        DeployedNginx(tmp_path / "nginx", [service.port]) as nginx,
        ExitStack() as stack,
    ):
        proxied = Proxied(service, nginx.url, nginx.authority)
        request = proxied.get(task_with_log(proxied.alice))[:-2]
        request += b"Accept: text/plain\r\nConnection: close\r\n\r\n"
        slow = [stack.enter_context(proxied.connect(request)) for _ in range(SLOW_CLIENTS)]
        quick = stack.enter_context(proxied.connect(b""))
        for _ in range(3):
            assert status_of(quick, proxied.get("/api/v1/user")) == 200
        assert min(map(size_of_response, slow)) > LOG_BYTES


def size_of_response(client: socket.socket) -> int:
    return sum(len(piece) for piece in iter(lambda: client.recv(MIB), b""))


def status_of(client: socket.socket, request: bytes) -> int:
    """The status of the response, once all of it has arrived."""
    client.sendall(request)
    with HTTPResponse(client) as response:
        response.begin()
        response.read()
        return response.status


def test_upload_is_not_cut_off_by_silent_connections(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        alice = service.add_user()
        key = alice.key
        path = f"/api/v1/task/{alice.start()['id']}/logs"
        idle = [stack.enter_context(connect(service.port)) for _ in range(20)]
        for client in idle:
            assert status_of(client, get("/api/v1/user", key)) == 200
        body = b"x\n" * 50_000
        upload = stack.enter_context(connect(service.port))
        head = get(path, key).replace(b"GET", b"POST", 1)[:-2]
        head += b"Content-Type: text/plain\r\nContent-Length: %d\r\n" % len(body)
        upload.sendall(head + b"Expect: 100-continue\r\n\r\n")
        # Says that the service has checked the key.
        assert upload.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        upload.sendall(body[:50_000])
        for _ in range(700):
            stack.enter_context(connect(service.port))
        assert status_of(upload, body[50_000:]) == 201
        for client in idle:
            assert status_of(client, get("/api/v1/user", key)) == 200


def test_idle_connections_close_no_new_client(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        key = str(service.add_user().session.headers["apikey"])
        request = get("/api/v1/user", key)
        # More than a process has, with its waits and streams.
        for _ in range(720):
            client = stack.enter_context(connect(service.port))
            assert status_of(client, request) == 200
        new = [stack.enter_context(connect(service.port)) for _ in range(20)]
        for client in new:
            assert status_of(client, request) == 200


def test_2000_silent_connections_keep_nobody_waiting(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        alice = service.add_user()
        request = get("/api/v1/user", alice.key)
        kept = stack.enter_context(connect(service.port))
        assert status_of(kept, request) == 200
        begun = stack.enter_context(connect(service.port))
        begun.sendall(request[:50])
        silent = [stack.enter_context(connect(service.port)) for _ in range(2000)]
        assert alice.start()["status"] == "running"
        assert status_of(kept, request) == 200
        assert status_of(begun, request[50:]) == 200
        # The oldest were closed, and no other had to reach its time limit.
        assert silent[0].recv(1) == b""
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


def test_30_readers_that_take_nothing_keep_nobody_waiting(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        request = get(task_with_log(alice), alice.key)[:-2]
        request += b"Accept: text/plain\r\nConnection: close\r\n\r\n"
        readers = [stack.enter_context(connect(service.port)) for _ in range(30)]
        for reader in readers:
            reader.sendall(request)
            assert reader.recv(1)
        assert bob.request("GET", "/user").status_code == 200
        assert bob.start()["status"] == "running"
        # None of them had been let go.
        assert size_of_response(readers[0]) > LOG_BYTES


def test_pipelined_requests_are_all_answered_as_their_responses_are_read(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, connect(service.port) as client:
        last = get("/openapi.json")[:-2] + b"Connection: close\r\n\r\n"
        # The responses have 6 MB, of which the kernel keeps a part.
        client.sendall(get("/openapi.json") * 49 + last)
        assert read_to_end(client).count(b"HTTP/1.1 200 ") == 50


def request_of(person: RemoteClient, method: str, path: str, *headers: str) -> bytes:
    key = person.key
    lines = [f"{method} /api/v1{path} HTTP/1.1", "Host: localhost", f"apikey: {key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def metric(service: Service, name: str) -> float:
    lines = requests.get(f"{service.url}/metrics", timeout=30).text.splitlines()
    return float(dict(line.rsplit(" ", 1) for line in lines)[f"taskservice_{name}"])


def test_200_workers_and_100_followers_leave_the_threads_to_others(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        alice, bob = service.add_user("alice"), service.add_user("bob")
        task = alice.start()
        alice.request("PUT", "/agent/idle", json={}).raise_for_status()
        follow = request_of(alice, "GET", f"/task/{task['id']}/events")
        claim = request_of(alice, "POST", "/agent/idle/claim", "Prefer: wait=60")
        clients = [stack.enter_context(connect(service.port)) for _ in range(300)]
        for client in clients[100:]:
            client.sendall(claim)
        until(lambda: metric(service, "waits") == metric(service, "waits_limit") == 200)
        for client in clients[:100]:
            client.sendall(follow)
        # The workers whose slots the followers take get `Retry-After`.
        until(lambda: sum(is_readable(client) for client in clients[100:]) == 100)
        early = next(client for client in clients[100:] if is_readable(client)).recv(2000)
        assert early.startswith(b"HTTP/1.1 204 ")
        assert b"\r\nRetry-After: " in early
        assert bob.request("GET", "/user").status_code == 200
        # And another user gets the slot of a worker.
        seen = bob.start()
        follow = request_of(bob, "GET", f"/task/{seen['id']}/events")
        clients.append(stack.enter_context(connect(service.port)))
        clients[-1].sendall(follow)
        until(lambda: is_readable(clients[-1]))
        for person, followed in ((alice, task), (bob, seen)):
            path = f"/task/{followed['id']}/logs"
            person.request("POST", path, json={"logs": ["news"]}).raise_for_status()
        for client in clients[:100] + clients[-1:]:
            with client.makefile("rb") as stream:
                assert b" 200 " in stream.readline()
                assert any(b"news" in line for line in stream)


def is_readable(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


def test_service_stops_at_once_while_many_wait(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, ExitStack() as stack:
        alice = service.add_user()
        alice.request("PUT", "/agent/idle", json={}).raise_for_status()
        claim = request_of(alice, "POST", "/agent/idle/claim", "Prefer: wait=60")
        clients = [stack.enter_context(connect(service.port)) for _ in range(100)]
        for client in clients:
            client.sendall(claim)
        until(lambda: metric(service, "waits") == 100)
        assert service.stop() == 0
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 204"}
