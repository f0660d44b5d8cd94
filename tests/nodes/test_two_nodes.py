"""Two nodes behind nginx under load, while one part after the other is lost and comes back."""

import gc
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.support.api_client import RemoteClient
from tests.support.crash_load import (
    Agent,
    Caller,
    Client,
    Ledger,
    Person,
    Watcher,
    check_questions,
    check_tasks,
)
from tests.support.databases import Databases
from tests.support.deployed_nginx import DeployedNginx
from tests.support.followers import Follower
from tests.support.pgbouncer import PGBOUNCER, PgBouncer, pgbouncer
from tests.support.postgresql_server import PostgresqlServer, postgresql_server
from tests.support.readiness import is_ready, is_unready
from tests.support.receiver import Receiver
from tests.support.requirements import needs
from tests.support.service import Service
from tests.support.waiting import until

SECONDS = float(os.environ.get("NODES_SECONDS", "60"))
CLIENTS = 6
AGENTS = 3
PEOPLE = 2
WATCHERS = 2
FOLLOWERS = 2
# After the end of a fault all is as before within this time, without a restart.
RECOVERY_SECONDS = 30.0
END_LEASES = "UPDATE deliveries SET leased_until = now() WHERE lease IS NOT NULL"
JOIN_SECONDS = 120.0


@dataclass
class Installation:
    """Two nodes behind nginx, with one PostgreSQL, and maybe a pooler in front of it."""

    nodes: list[Service]
    nginx: DeployedNginx
    server: PostgresqlServer
    bouncer: PgBouncer | None
    alice: RemoteClient
    # How long it took after the end of each fault.
    recoveries: dict[str, float] = field(default_factory=dict)


def start_nodes(folder: Path, url: str, stack: ExitStack) -> list[Service]:
    nodes = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        node = Service(folder / name / "data", DATABASE_URL=url, PROXY_HOPS="1")
        nodes.append(stack.enter_context(node))
    return nodes


@pytest.fixture(params=["direct", "pgbouncer"])
def installation(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> Iterator[Installation]:
    if request.param == "pgbouncer" and PGBOUNCER is None:
        needs("PgBouncer", "install the package pgbouncer")
    with ExitStack() as stack:
        server = stack.enter_context(postgresql_server(databases.programs))
        server.create()
        server.execute("CREATE DATABASE tasks")
        url, bouncer = server.url("tasks"), None
        if request.param == "pgbouncer":
            folder = quote(str(server.folder), safe="")
            local = f"postgresql://postgres@{folder}:{server.port}/tasks"
            bouncer = stack.enter_context(pgbouncer(tmp_path / "pgbouncer", local, 20))
            url = bouncer.url
        nodes = start_nodes(tmp_path, url, stack)
        ports = [node.port for node in nodes]
        nginx = stack.enter_context(DeployedNginx(tmp_path / "nginx", ports))
        alice = nodes[0].add_user("alice")
        alice.url, alice.session.verify = f"{nginx.url}/tasks", str(nginx.authority)
        yield Installation(nodes, nginx, server, bouncer, alice)
        alice.session.close()


def database_is_away(installation: Installation) -> None:
    for node in installation.nodes:
        until(partial(is_unready, node))


def lose_node(installation: Installation) -> None:
    """Its own process and its workers, while the other node serves all."""
    lost, other = installation.nodes
    lost.kill()
    for _ in range(5):
        start_a_task(installation.alice)
    until(partial(is_ready, other))
    lost.start()


def restart_node(installation: Installation) -> None:
    """As for an upgrade."""
    node = installation.nodes[1]
    assert node.stop() == 0
    node.start()


def restart_nginx(installation: Installation) -> None:
    installation.nginx.stop()
    installation.nginx.start()


def restart_postgresql(mode: str) -> Callable[[Installation], None]:
    def restart(installation: Installation) -> None:
        installation.server.stop(mode)
        database_is_away(installation)
        installation.server.start()

    return restart


def restart_pgbouncer(installation: Installation) -> None:
    assert installation.bouncer
    installation.bouncer.kill()
    database_is_away(installation)
    installation.bouncer.start()


FAULTS: dict[str, Callable[[Installation], None]] = {
    "a node is killed": lose_node,
    "a node is restarted": restart_node,
    "nginx is restarted": restart_nginx,
    "PostgreSQL is restarted": restart_postgresql("fast"),
    "PostgreSQL is restarted without a checkpoint": restart_postgresql("immediate"),
    "PgBouncer is killed": restart_pgbouncer,
}


def start_a_task(person: RemoteClient) -> None:
    """As soon as a write is answered."""

    def is_started() -> bool:
        try:
            return person.request("POST", "/task", json={"agentId": "prober"}).status_code == 201
        except requests.RequestException:
            return False

    until(is_started)


def recover(installation: Installation) -> None:
    """Wait until a write is answered, by the proxy and by each node, and each node is ready."""
    start_a_task(installation.alice)
    for node in installation.nodes:
        person = RemoteClient(node.url, str(installation.alice.session.headers["apikey"]))
        start_a_task(person)
        person.session.close()
        until(partial(is_ready, node))


def suffer(installation: Installation, name: str) -> None:
    """One fault, from its begin to the time when all is as before."""
    FAULTS[name](installation)
    ended = time.monotonic()
    recover(installation)
    installation.recoveries[name] = time.monotonic() - ended


class Writer(Caller):
    """Adds one line after the other to one task, which it completes in the end."""

    def __init__(self, task_id: str, *arguments: Any) -> None:
        super().__init__(0, *arguments)
        self.path, self.lines = f"/task/{task_id}", 0

    def run(self) -> None:
        while time.monotonic() < self.until:
            body = {"logs": [f"line {self.lines + 1}"], "seq": self.lines + 1}
            self.call("POST", f"{self.path}/logs", json=body)
            self.lines += 1
        self.call("PATCH", self.path, json={"status": "complete"})


def callers(person: RemoteClient, ledger: Ledger, receiver: Receiver) -> list[Caller]:
    common = (person, ledger, math.inf)
    agents = [Agent(number, *common) for number in range(AGENTS)]
    people = [Person(number, *common, agents=agents) for number in range(PEOPLE)]
    watchers = [Watcher(number, *common, agents=agents) for number in range(WATCHERS)]
    clients = [Client(number, *common) for number in range(CLIENTS)]
    for client in clients:
        client.callback, client.gone = receiver.url, 404
    return [*agents, *people, *watchers, *clients]


def suffer_all(installation: Installation) -> None:
    """Each fault, spread over the time of the load."""
    faults = [name for name in FAULTS if installation.bouncer or "PgBouncer" not in name]
    end = time.monotonic() + SECONDS
    for number, name in enumerate(faults):
        time.sleep(max(0.0, end - time.monotonic()) / (len(faults) - number + 1))
        suffer(installation, name)
    time.sleep(max(0.0, end - time.monotonic()))


# urllib3 leaves a connection with TLS that nginx has ended to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.timeout(SECONDS + 400)
def test_nothing_acknowledged_is_lost_and_all_recovers_by_itself(
    installation: Installation, receiver: Receiver
) -> None:
    alice, ledger = installation.alice, Ledger()
    for agent_id in ("worker", "asker", "prober", "writer"):
        alice.request("PUT", f"/agent/{agent_id}").raise_for_status()
    long_task = alice.start("writer", claim=True)
    writer = Writer(long_task["id"], alice, ledger, math.inf)
    load = [writer, *callers(alice, ledger, receiver)]
    followers = [Follower(alice, long_task) for _ in range(FOLLOWERS)]
    for thread in (*load, *followers):
        thread.start()
    suffer_all(installation)
    for caller in load:
        caller.until = 0
    for thread in (*load, *followers):
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()
    for caller in load:
        caller.person.session.close()
    report(installation, ledger)
    assert max(installation.recoveries.values()) < RECOVERY_SECONDS
    assert ledger.wrong == []
    stored = {task["id"]: task for task in alice.request("GET", "/task").json()}
    check_lines(writer, followers, stored.pop(long_task["id"]))
    check_tasks(ledger, {i: task for i, task in stored.items() if task["agentId"] != "prober"})
    check_questions(ledger, questions(alice, ledger))
    # A node that was killed while it posted a webhook would hold it for a minute.
    installation.server.execute(END_LEASES, "tasks")
    check_webhooks(ledger, receiver)
    gc.collect()


def report(installation: Installation, ledger: Ledger) -> None:
    times = ", ".join(f"{name}: {s:.1f} s" for name, s in installation.recoveries.items())
    print(f"\n{ledger.answers.total()} answers {dict(ledger.answers)}, "
          f"{len(ledger.breaks)} without one, {len(ledger.lines)} tasks; {times}")  # fmt: skip
    if ledger.wrong:
        print(*(node.log.read_text() for node in installation.nodes))


def questions(person: RemoteClient, ledger: Ledger) -> list[dict[str, Any]]:
    return [
        question
        for task_id in ledger.outputs
        for question in person.request("GET", f"/task/{task_id}/question").json()
    ]


def check_lines(writer: Writer, followers: list[Follower], task: dict[str, Any]) -> None:
    """Each line is there once, at its position, and each follower got it once, in order."""
    lines = [f"line {number}" for number in range(1, writer.lines + 1)]
    assert task["status"] == "complete"
    assert task["logs"] == lines
    for follower in followers:
        assert follower.lines == [(str(number), line) for number, line in enumerate(lines, 1)]
        assert follower.connections > 1


def check_webhooks(ledger: Ledger, receiver: Receiver) -> None:
    """Each finished task has one webhook, which came at least once, always with the same ID."""
    until(lambda: webhooks(receiver).keys() == ledger.finished.keys())
    assert {len(ids) for ids in webhooks(receiver).values()} == {1}


def webhooks(receiver: Receiver) -> dict[str, set[str]]:
    """The IDs of the webhooks that came for each task."""
    ids = defaultdict(set)
    for request in list(receiver.requests):
        ids[json.loads(request.body)["id"]].add(request.headers["webhook-id"])
    return ids
