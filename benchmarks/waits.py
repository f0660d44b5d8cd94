"""What idle workers and followers cost: CPU time and memory of the service, and others' requests.

WORKERS long polls and FOLLOWERS streams of one task are open while nothing happens, and then while
another task gets APPENDS lines a second.
"""

import os
import re
import selectors
import socket
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contents import Person, add_person
from benchmarks.servers import Server, ours, pin_load

WORKERS = int(os.environ.get("WORKERS", "200"))
FOLLOWERS = int(os.environ.get("FOLLOWERS", "100"))
APPENDS = int(os.environ.get("APPENDS", "10"))
SECONDS = float(os.environ.get("SECONDS", "20"))
# What the client asks for.
WAIT_SECONDS = 30
SETTLE_SECONDS = 5.0


@dataclass
class Client:
    """A connection that repeats its request after each response, as long as the run lasts."""

    socket: socket.socket
    request: bytes
    pause_until: float = 0.0

    def send(self) -> None:
        self.socket.sendall(self.request)


class Clients(threading.Thread):
    """All workers and followers; a worker repeats its claim after the requested pause."""

    def __init__(self, port: int, claim: bytes, follow: bytes) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self._paused: list[Client] = []
        self.done = threading.Event()
        self.claims = self.lost = self.news = 0
        # Workers without a slot repeat their claims later; a follower would be refused.
        for request in [follow] * FOLLOWERS + [claim] * WORKERS:
            client = Client(socket.create_connection(("127.0.0.1", port), timeout=60), request)
            client.send()
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def run(self) -> None:
        while not self.done.is_set():
            for key, _ in self._selector.select(0.1):
                self._receive(key.data)
            now = time.monotonic()
            due = [client for client in self._paused if client.pause_until <= now]
            self._paused = [client for client in self._paused if client.pause_until > now]
            for client in due:
                client.send()

    def _receive(self, client: Client) -> None:
        data = client.socket.recv(262_144)
        if b"claim" not in client.request.partition(b"\r\n")[0]:
            self.news += data.count(b"event: log")
            if not data or data.startswith(b"HTTP/1.1 503"):
                self.lost += 1
                self._selector.unregister(client.socket)
            return
        self.claims += 1
        pause = re.search(rb"(?i)retry-after: (\d+)", data)
        client.pause_until = time.monotonic() + (int(pause[1]) if pause else 0)
        self._paused.append(client)


def cpu_share(server: Server, clients: Clients) -> str:
    """CPU usage of the service while no other requests come."""
    before, began, claims = server.processor_seconds(), time.monotonic(), clients.claims
    time.sleep(SECONDS)
    seconds = time.monotonic() - began
    used = (server.processor_seconds() - before) / seconds
    repeated = (clients.claims - claims) / seconds
    return f"{used:.1%} of a processor, {repeated:.1f} claims repeated a second"


def delays(person: Person, appends: int) -> str:
    """Latency of ten GETs a second, while another task gets this many appends a second."""
    path = f"/task/{person.start([])['id']}/logs"
    before, began, times, sent = person.server.processor_seconds(), time.monotonic(), [], 0
    while (passed := time.monotonic() - began) < SECONDS:
        if sent < passed * appends:
            person.call("POST", path, json={"logs": ["a line"]})
            sent += 1
        asked = time.perf_counter()
        person.call("GET", "/user")
        times.append(1000 * (time.perf_counter() - asked))
        time.sleep(0.1)
    used = (person.server.processor_seconds() - before) / passed
    median, late = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    return f"a GET takes {median:.1f} ms (95 %: {late:.1f}); {used:.1%} of a processor"


def main() -> None:
    pin_load()
    with tempfile.TemporaryDirectory() as folder, ours(Path(folder, "data")) as server:
        alice, bob = add_person(server, "alice"), add_person(server, "bob")
        followed = alice.start([])["id"]
        claim = alice.request("POST", "/agent/bench/claim", Prefer=f"wait={WAIT_SECONDS}")
        follow = alice.request("GET", f"/task/{followed}/events")
        clients = Clients(server.port, claim, follow)
        clients.start()
        time.sleep(SETTLE_SECONDS)
        print(f"idle: {cpu_share(server, clients)}, {server.megabytes():.0f} MB", flush=True)
        print(f"GET meanwhile: {delays(bob, 0)}", flush=True)
        print(f"with {APPENDS} appends a second: {delays(bob, APPENDS)}", flush=True)
        print(f"{clients.lost} of {FOLLOWERS} streams were lost")
        clients.done.set()
        clients.join()


if __name__ == "__main__":
    main()
