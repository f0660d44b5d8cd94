"""The Model Context Protocol at `/mcp`: each agent is a tool, on the same services as the API."""

from taskservice.mcp.endpoint import init_app

__all__ = ["init_app"]
