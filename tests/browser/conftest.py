"""The browser and the service, which the tests of a file share."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.api_client import RemoteClient
from tests.support.browser import Visitor, launched
from tests.support.service import Service


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("browser") / "data") as service:
        yield service


@pytest.fixture
def alice(service: Service) -> RemoteClient:
    """A new user in each test, so that each list has its own tasks."""
    return service.add_user(f"alice {time.monotonic_ns()}")


@pytest.fixture
def visitor(chromium: Browser, service: Service, alice: RemoteClient) -> Iterator[Visitor]:
    """Alice's window, signed in; whatever it did, it must have done quietly."""
    visitor = Visitor(chromium, service.url)
    visitor.sign_in(alice.key)
    yield visitor
    visitor.check()
    visitor.close()
