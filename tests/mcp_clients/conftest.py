"""Fixtures: a service whose agents have workers, and what each client needs to reach it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients import agents
from tests.support.mcp_clients.packages import node_packages, python_environment
from tests.support.service import Service


@pytest.fixture(scope="session")
def mcp_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests; the workers that wait leave enough threads for waits of clients."""
    data = tmp_path_factory.mktemp("mcp") / "data"
    with Service(data, THREADS="64") as service:
        yield service


@pytest.fixture(scope="session")
def owner(mcp_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteClient]:
    """The user whose agents the clients call."""
    owner = mcp_service.add_user()
    with agents.working(owner, tmp_path_factory.mktemp("agents")):
        yield owner


@pytest.fixture(scope="session")
def node() -> Path:
    """The directory `node_modules` with the clients for Node.js."""
    return node_packages()


@pytest.fixture(scope="session")
def official_python() -> Path:
    """Python with the official client."""
    return python_environment("mcp")


@pytest.fixture(scope="session")
def fastmcp_python() -> Path:
    """Python with fastmcp and its tasks."""
    return python_environment("fastmcp")
