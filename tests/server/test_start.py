"""What `taskservice serve` loads at its start, and later; processes that start concurrently."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from taskservice.cli import main
from tests.support.fork_server import ForkedPopen
from tests.support.service import Service, environment

# Each takes a considerable part of the time of a start to load.
LOADED_LATER = {"alembic", "apispec", "requests", "sqlalchemy.dialects.postgresql", "urllib3"}


class TracedService(Service):
    """A service whose log names each module that its processes load."""

    command = (sys.executable, "-X", "importtime", "-m", "taskservice", "serve")
    has_database = False

    def loaded(self) -> set[str]:
        lines = self.log.read_text().splitlines()
        return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import ")}


@pytest.fixture
def service(tmp_path: Path) -> TracedService:
    return TracedService(tmp_path / "data")


def test_start_loads_only_what_answers_need(service: TracedService) -> None:
    alice = service.add_user()
    with service:
        task = alice.start()
        assert alice.request("GET", f"/task/{task['id']}").ok
        loaded = service.loaded()
        assert {"flask", "sqlalchemy"} <= loaded
        assert loaded.isdisjoint(LOADED_LATER)


def test_start_migrates_a_new_database(service: TracedService) -> None:
    with service:
        assert "alembic" in service.loaded()
        assert service.add_user().start()["status"] == "running"


def test_garbage_is_collected_again_when_a_command_is_loaded() -> None:
    main.get_command(click.Context(main), "serve")
    assert gc.isenabled()


def test_processes_that_start_concurrently_make_one_private_secret_key(tmp_path: Path) -> None:
    program = (
        "import sys; from taskservice.config import Config; sys.stdin.read(); "
        "print(Config.from_environment().SECRET_KEY)"
    )
    begin, held = os.pipe()
    processes = [
        ForkedPopen(
            [sys.executable, "-c", program], env=environment(tmp_path / "new", SECRET_KEY=""),
            stdin=begin, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(6)
    ]  # fmt: skip
    os.close(begin)
    # Now all processes continue.
    os.close(held)
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert len(keys) == 1
    assert len(keys.pop()) >= 32
    (path,) = (tmp_path / "new").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
