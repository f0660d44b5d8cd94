"""Requests, responses, long polling and event streams, for the API, MCP and the dashboard."""
