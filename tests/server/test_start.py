"""What `taskservice serve` loads at its start, and what only its rarer uses load."""

import gc
import sys
from pathlib import Path

import click
import pytest

from taskservice.cli import main
from tests.support.service import Service

# Each takes a considerable part of the time of a start to load.
LOADED_LATER = {"alembic", "apispec", "requests", "sqlalchemy.dialects.postgresql", "urllib3"}


class TracedService(Service):
    """A service whose log names each module that its processes load."""

    command = (sys.executable, "-X", "importtime", "-m", "taskservice", "serve")

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
    gc.unfreeze()
