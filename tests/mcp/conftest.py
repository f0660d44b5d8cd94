"""A client for the tests of MCP."""

import pytest

from tests.support.api_client import ApiClient
from tests.support.mcp import McpClient


@pytest.fixture
def mcp(alice: ApiClient) -> McpClient:
    """One that neither follows tasks nor shows forms."""
    return McpClient(alice)
