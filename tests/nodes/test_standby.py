"""Nodes on a PostgreSQL with a standby, which takes the place of its primary."""

import math
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.api_client import RemoteClient
from tests.support.commands import run
from tests.support.crash_load import Client, Ledger, check_tasks
from tests.support.databases import Databases
from tests.support.documents import block_in
from tests.support.postgresql_server import PostgresqlServer, make_standby, postgresql_server
from tests.support.readiness import is_ready, is_unready
from tests.support.service import Service
from tests.support.waiting import until

CLIENTS = 4
# All continues by itself within this time, without a restart of a node.
RECOVERY_SECONDS = 60.0
IS_STREAMING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
# Whether the standby has all that has been written.
HAS_ALL = "SELECT bool_and(replay_lsn >= pg_current_wal_lsn()) FROM pg_stat_replication"


@dataclass
class Pair:
    """A primary and its standby, and the URL with both."""

    primary: PostgresqlServer
    standby: PostgresqlServer

    @property
    def url(self) -> str:
        hosts = f"{self.primary.host},{self.standby.host}"
        return f"postgresql://postgres@{hosts}/tasks?target_session_attrs=read-write"

    def replicate_synchronously(self, commit: str) -> None:
        """No commit is confirmed before the standby has it."""
        names = {"synchronous_standby_names": "standby", "synchronous_commit": commit}
        self.primary.set(**names)
        self.primary.reload()
        until(lambda: self.primary.ask("SHOW synchronous_standby_names") == "standby")


@pytest.fixture
def pair(databases: Databases) -> Iterator[Pair]:
    with (
        postgresql_server(databases.programs) as primary,
        postgresql_server(databases.programs) as standby,
    ):
        primary.create()
        primary.execute("CREATE DATABASE tasks")
        make_standby(standby, primary)
        until(lambda: primary.ask(IS_STREAMING) == 1)
        yield Pair(primary, standby)


@pytest.fixture
def nodes(pair: Pair, tmp_path: Path) -> Iterator[list[Service]]:
    with ExitStack() as stack:
        nodes = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            node = Service(tmp_path / name / "data", DATABASE_URL=pair.url)
            nodes.append(stack.enter_context(node))
        yield nodes


@pytest.fixture
def people(nodes: list[Service]) -> list[RemoteClient]:
    """The same user at each node."""
    alice = nodes[0].add_user("alice")
    alice.request("PUT", "/agent/worker").raise_for_status()
    key = alice.key
    return [alice, *[RemoteClient(node.url, key) for node in nodes[1:]]]


def start(person: RemoteClient, key: str) -> str:
    """The ID of a task that is started with this idempotency key; empty for an honest 503."""
    headers, body = {"Idempotency-Key": key}, {"agentId": "worker"}
    answer = person.request("POST", "/task", json=body, headers=headers)
    if answer.status_code == 503:
        assert answer.headers["Retry-After"]
        return ""
    answer.raise_for_status()
    return str(answer.json()["id"])


def listed(person: RemoteClient) -> list[str]:
    return sorted(task["id"] for task in person.request("GET", "/task").json())


def recover(nodes: list[Service], people: list[RemoteClient]) -> list[str]:
    """Wait until each node is ready and answers writes; returns the tasks."""
    began = time.monotonic()
    keys = [str(uuid4()) for _ in people]
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(lambda *who: until(partial(start, *who)), people, keys))
    for node in nodes:
        until(partial(is_ready, node))
    seconds = time.monotonic() - began
    print(f"\nrecovered after {seconds:.1f} s")
    assert seconds < RECOVERY_SECONDS
    return started


def test_commit_that_the_standby_does_not_have_is_never_answered(
    pair: Pair, nodes: list[Service], people: list[RemoteClient]
) -> None:
    """Neither by the first request nor by one that repeats it."""
    pair.replicate_synchronously("on")
    alice = people[0]
    acknowledged = [start(alice, "first")]
    pair.standby.kill()
    for _ in range(2):
        assert start(alice, "second") == ""
        assert listed(alice) == acknowledged
    for node in nodes:
        until(partial(is_unready, node))
    pair.standby.start()
    acknowledged += [*recover(nodes, people), start(alice, "second")]
    assert listed(alice) == sorted(acknowledged)


@pytest.mark.parametrize("commit", ["on", "remote_apply"])
def test_nothing_acknowledged_is_lost_when_the_standby_is_promoted(
    pair: Pair, nodes: list[Service], people: list[RemoteClient], commit: str
) -> None:
    pair.replicate_synchronously(commit)
    ledger = Ledger()
    load = [Client(number, people[number % 2], ledger, math.inf) for number in range(CLIENTS)]
    for client in load:
        client.start()
    until(lambda: ledger.answers[201] > 50)
    pair.primary.kill()
    for node in nodes:
        until(partial(is_unready, node))
    # The standby answers, but is read-only.
    assert pair.standby.ask("SELECT pg_is_in_recovery()")
    until(lambda: ledger.answers[503])
    pair.standby.promote()
    probes = recover(nodes, people)
    before = ledger.answers[201]
    until(lambda: ledger.answers[201] > before + 50)
    for client in load:
        client.until = 0
    for client in load:
        client.join()
    assert ledger.wrong == []
    stored = {task["id"]: task for task in people[0].request("GET", "/task").json()}
    check_tasks(ledger, {id: task for id, task in stored.items() if id not in probes})


def test_only_what_an_asynchronous_standby_had_not_received_is_lost(
    pair: Pair, nodes: list[Service], people: list[RemoteClient]
) -> None:
    alice = people[0]
    lag = block_in("operate", "lag")
    received = [start(alice, f"before {number}") for number in range(10)]
    until(lambda: pair.primary.rows(lag) == [("standby", 0)])
    pair.standby.stop()
    for number in range(10):
        assert start(alice, f"after {number}") not in ("", *received)
    pair.primary.kill()
    pair.standby.start()
    pair.standby.promote()
    received += recover(nodes, people)
    assert listed(alice) == sorted(received)


def test_commands_that_only_read_work_at_a_standby(
    pair: Pair, people: list[RemoteClient], tmp_path: Path
) -> None:
    task_id = start(people[0], "before")
    until(lambda: pair.primary.ask(HAS_ALL))
    url = pair.standby.url("tasks")
    for command in ("export", "user list", "delivery list"):
        done = run(tmp_path, *command.split(), DATABASE_URL=url)
        assert done.returncode == 0
        assert done.stderr.startswith("taskservice: database postgresql://")
        assert len(done.stderr.splitlines()) == 1
        assert task_id in done.stdout or command != "export"
    checked = run(tmp_path, "db", "check", DATABASE_URL=url)
    assert "it is read-only, like a standby" in checked.stdout
    assert "ok       revision" in checked.stdout


def test_primary_that_hangs_does_not_hold_up_the_nodes_after_the_promotion(
    pair: Pair, nodes: list[Service], people: list[RemoteClient]
) -> None:
    pair.replicate_synchronously("on")
    acknowledged = [start(people[0], "before")]
    # It still accepts connections, but answers none.
    pair.primary.signal(signal.SIGSTOP)
    pair.standby.promote()
    acknowledged += recover(nodes, people)
    assert listed(people[0]) == sorted(acknowledged)


def test_node_at_a_standby_answers_reads_until_it_can_write(pair: Pair, tmp_path: Path) -> None:
    """Its URL has no target_session_attrs, so that it connects to the standby before that."""
    with Service(tmp_path / "data", DATABASE_URL=pair.url.partition("?")[0]) as node:
        alice = node.add_user("alice")
        alice.request("PUT", "/agent/worker").raise_for_status()
        started = [start(alice, "before")]
        until(lambda: pair.primary.ask(HAS_ALL))
        pair.primary.kill()
        until(partial(is_unready, node))
        until(lambda: alice.request("GET", "/task").ok)
        assert listed(alice) == started
        assert start(alice, "meanwhile") == ""
        assert not is_ready(node)
        pair.standby.promote()
        started += recover([node], [alice])
        assert listed(alice) == sorted(started)
