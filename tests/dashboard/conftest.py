"""Fixtures: browsers without scripts, of Alice and of a stranger."""

import pytest
from flask import Flask

from tests.support.api_client import ApiClient
from tests.support.plain_browser import Browser, signed_in


@pytest.fixture
def window(alice: ApiClient) -> Browser:
    """Alice's, signed in."""
    return signed_in(alice)


@pytest.fixture
def stranger(app: Flask) -> Browser:
    """A browser without a session."""
    return Browser(app)
