"""Fixtures: a service that all of these tests share, and what other projects test with."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.packages import node_packages
from tests.support.requirements import needs
from tests.support.service import Service

VERSIONS = json.loads((Path(__file__).parent / "versions.json").read_text())


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests, on SQLite; what others left in it does not matter."""
    with Service(tmp_path_factory.mktemp("shared") / "data") as service:
        yield service


@pytest.fixture
def owner(shared: Service) -> RemoteClient:
    """A new user of it."""
    return shared.add_user()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with the packages of npm."""
    return node_packages(VERSIONS["npm"])


@pytest.fixture(scope="session")
def java() -> str:
    """The command `java`."""
    return program("java", "default-jre-headless")


@pytest.fixture(scope="session")
def go() -> str:
    """The command `go`."""
    return program("go", "golang-go")


def program(name: str, package: str) -> str:
    return shutil.which(name) or needs(name, f"install the package {package}")
