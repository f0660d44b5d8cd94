"""Fixtures of the agent's side: a service for all tests of a module, and a machine with a key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.laptop import Laptop, laptop_of
from tests.live import Service
from tests.people import RemotePerson


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a module."""
    with Service(tmp_path_factory.mktemp("agent-side") / "data") as service:
        yield service


@pytest.fixture(scope="module")
def owner(service: Service) -> RemotePerson:
    return service.add_user()


@pytest.fixture
def alice(owner: RemotePerson) -> RemotePerson:
    """A user without any tasks."""
    for task in owner.request("GET", "/task?fields=id").json():
        owner.request("DELETE", f"/task/{task['id']}").raise_for_status()
    return owner


@pytest.fixture
def laptop(alice: RemotePerson, tmp_path: Path) -> Laptop:
    return laptop_of(alice, tmp_path / "home")
