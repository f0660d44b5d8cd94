"""Two nodes on one database that are upgraded to a next version while clients use them."""

import time
from pathlib import Path

import pytest
import requests

from tests.support.crash_load import Client, Ledger
from tests.support.databases import DATABASES, Databases
from tests.support.next_version import REVISION, install_next_version
from tests.support.service import Service
from tests.support.waiting import until

CLIENTS = 6
# The load is ended by the test, when the second node has seen all of it.
MAX_SECONDS = 300.0


def readiness(service: Service) -> int:
    return requests.get(f"{service.url}/readyz", timeout=30).status_code


@pytest.mark.timeout(MAX_SECONDS + 180)
@pytest.mark.parametrize("kind", DATABASES)
def test_node_that_runs_while_another_is_upgraded_loses_nothing(
    databases: Databases, kind: str, tmp_path: Path
) -> None:
    """It answers, or 503 while the migration holds its locks; /readyz says that it is old."""
    # Not the database that the tests of this process share: it is of the next version then.
    is_sqlite = kind == "sqlite"
    database_url = databases.copy_sqlite(tmp_path) if is_sqlite else databases.new_postgresql()
    folders = [tmp_path / name for name in ("one", "two")]
    one, two = (Service(folder / "data", DATABASE_URL=database_url) for folder in folders)
    for folder in folders:
        folder.mkdir()
    next_version = install_next_version(tmp_path / "next")
    ledger = Ledger()
    with one, two:
        alice = two.add_user()
        alice.request("PUT", "/agent/worker")
        end = time.monotonic() + MAX_SECONDS
        load = [Client(number, alice, ledger, end) for number in range(CLIENTS)]
        for client in load:
            client.start()
        until(lambda: ledger.answers[200] > 20)
        assert one.stop() == 0
        one.environment |= next_version
        upgraded = one.run("db", "upgrade", "--yes")
        assert upgraded.stdout == f"{REVISION}\n", upgraded
        one.start()
        # The old node works on, and says that it is not ready any more.
        before = ledger.answers.total()
        until(lambda: ledger.answers.total() > before + 50)
        until(lambda: readiness(two) == 503)
        assert readiness(one) == 200
        for client in load:
            client.until = 0
        for client in load:
            client.join()
        assert two.stop() == 0
        refused = two.run("serve")
        assert refused.returncode == 1
        assert "does not know: it is newer than the code" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        two.environment |= next_version
        two.start()
        stored = {task["id"]: task for task in alice.request("GET", "/task").json()}
    print(f"\n{ledger.answers.total()} answers {dict(ledger.answers)}, {len(stored)} tasks")
    assert ledger.wrong == []
    assert ledger.breaks == []
    assert ledger.answers[503]
    assert stored.keys() == ledger.lines.keys() - ledger.deleted
    for task_id, task in stored.items():
        assert task["logs"] == ledger.lines[task_id]
        assert task["status"] == ledger.finished.get(task_id, "running")
