"""No file descriptors or threads are left to the running service: 503, and then it goes on."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.databases import Databases
from tests.support.every_write import EveryWrite
from tests.support.marks import one_database
from tests.support.receiver import Receiver
from tests.support.requirements import needs
from tests.support.service import COMMAND, Service
from tests.support.waiting import until

# The first of many ids that no user has.
FIRST_USER = 1_000_000
# The threads of a worker that answer requests, by default.
THREADS = 16
# More processes and threads than a test needs.
MANY = 10_000


@contextmanager
def limited(kind: int, pid: int, limit: int) -> Iterator[None]:
    """The running process has this limit, as one that has used up what it may."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


def free_descriptor(pid: int) -> int:
    """The number of the next file that the process opens, and not one that it closes just now."""
    return min(_free_descriptor(pid) for _ in range(20))


def _free_descriptor(pid: int) -> int:
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in count() if number not in used)


@one_database
def test_writes_without_a_file_descriptor_are_503_and_go_on_with_one(service: Service) -> None:
    writes = EveryWrite(service.add_user())
    (worker,) = service.workers()
    # The connection of this client is open already, and those to the database.
    before = writes.state()
    with limited(resource.RLIMIT_NOFILE, worker, free_descriptor(worker)):
        for name, (method, path, body) in writes.requests().items():
            answer = writes.alice.request(method, path, json=body)
            assert answer.status_code == 503, (name, answer.text)
            assert int(answer.headers["Retry-After"]) > 0
        assert writes.state() == before
        # A new client takes the place of an idle one, and is served.
        for _ in range(3):
            assert writes.probe("/livez") == 200
            assert writes.probe("/readyz") == 503
    writes.succeed()
    assert service.workers() == [worker]


def test_lost_database_is_not_reached_without_a_file_descriptor_and_then_it_is(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.new_postgresql()
    with Service(tmp_path / "data", DATABASE_URL=url) as service:
        writes = EveryWrite(service.add_user())
        (worker,) = service.workers()
        # Those of the lost connections, which are free then, are past the limit too.
        with limited(resource.RLIMIT_NOFILE, worker, 3):
            end_connections(url)
            for name, (method, path, body) in writes.requests().items():
                answer = writes.alice.request(method, path, json=body)
                assert answer.status_code == 503, (name, answer.text)
            assert writes.alice.session.get(f"{service.url}/livez", timeout=30).status_code == 200
            assert writes.alice.session.get(f"{service.url}/readyz", timeout=30).status_code == 503
        writes.succeed()
        assert service.workers() == [worker]


def end_connections(url: str) -> None:
    """End those of the service, as a restart of PostgreSQL does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class ServiceOfItsOwnUser(Service):
    """A service whose processes and threads are counted alone; with root's rights to files."""

    def __init__(self, **settings: str) -> None:
        # The system counts them for each user, and lets root start any number.
        if os.geteuid() or shutil.which("setpriv") is None:
            needs("root with setpriv", "run the tests as root, and install util-linux")
        user = FIRST_USER + os.getpid()
        # Not below pytest's folder, which this user may not enter.
        self._folder = Path(tempfile.mkdtemp(prefix="service-"))
        os.chown(self._folder, user, -1)
        super().__init__(self._folder / "data", **settings)
        self._as_user = ["setpriv", f"--reuid={user}"]
        rights = "+dac_override,+fowner,+chown"
        more = [f"--inh-caps={rights}", f"--ambient-caps={rights}"]
        self.command = [*self._as_user, *more, *COMMAND, "serve"]

    def __enter__(self) -> "ServiceOfItsOwnUser":
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.remove()

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def limit(self, number: int, *processes: int) -> None:
        """Let these start a process or thread only where there are fewer in all."""
        for pid in processes:
            change = ["prlimit", f"--nproc={number}:", "--pid", str(pid)]
            subprocess.run([*self._as_user, *change], check=True)


def test_service_without_threads_does_all_but_tell_that_it_is_ready() -> None:
    with ServiceOfItsOwnUser() as service, Receiver() as receiver:
        writes = EveryWrite(service.add_user(), receiver.url)
        service.limit(1, *service.workers())
        writes.are_done()
        path = f"/task/{writes.tasks['append']['id']}"
        waited = writes.alice.request("GET", f"{path}/logs?after=1", headers={"Prefer": "wait=1"})
        assert waited.json()["logs"] == []
        assert writes.probe("/livez") == 200
        assert writes.probe("/readyz") == 503
        delivered = f"/task/{writes.tasks['report']['id']}/deliveries"
        (delivery,) = writes.alice.request("GET", delivered).json()
        assert delivery["state"] == "delivered"
        service.limit(MANY, *service.workers())
        until(lambda: writes.probe("/readyz") == 200)


@pytest.mark.parametrize(
    ("name", "said"),
    [("process", "Can't replace a worker yet"), ("thread", "can't start new thread")],
)
def test_killed_worker_is_replaced_as_soon_as_that_is_possible(name: str, said: str) -> None:
    with ServiceOfItsOwnUser(WORKERS="2") as service:
        alice = service.add_user()
        assert service.process is not None
        main, (killed, other) = service.process.pid, until(partial(whole_workers, service))
        # Enough for a process, but not for all of its threads.
        enough = threads_of(main) + threads_of(other) + THREADS // 2
        service.limit(1 if name == "process" else enough, main)
        os.kill(killed, signal.SIGKILL)
        until(lambda: service.log.read_text().count(said) > 1)
        assert alice.start()["status"] == "running"
        service.limit(MANY, main)
        until(lambda: len(set(service.workers()) - {killed}) == 2)
        assert other in service.workers()
        assert service.process.poll() is None
        assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (1, 1, "taskservice: can't start a worker: Resource temporarily unavailable"),
        (4, 3, "A worker can't start: can't start new thread"),
    ],
    ids=["process", "thread"],
)
def test_service_that_cannot_start_its_processes_says_so(number: int, code: int, said: str) -> None:
    service = ServiceOfItsOwnUser()
    serve = len(COMMAND) + 1
    few = ["prlimit", f"--nproc={number}:"]
    command = [*service.command[:-serve], *few, *service.command[-serve:]]
    ended = subprocess.run(
        command, env=service.environment, capture_output=True, text=True, timeout=60
    )
    service.remove()
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def whole_workers(service: Service) -> list[int]:
    """Both workers, when each has started its threads; before that none."""
    workers = service.workers()
    # Those of the pool, of the probes, the loops and the watcher, and the main one.
    are_whole = [threads_of(worker) >= THREADS + 6 for worker in workers]
    return workers if are_whole == [True, True] else []


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
